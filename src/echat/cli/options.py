"""Options that several commands share, and the command class, which accepts deprecated ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

DEFAULT_MODEL = "echat-tiny"
DEFAULT_DEVICE = "auto"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A shipped model, a model folder, osum-echat (released weights), or OWNER/NAME on the hub.",
    ),
]
Device = Annotated[
    str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, npu ...; auto is cuda where there is one.")
]
Precision = Annotated[
    str | None, typer.Option(help="Compute with packed weights on the CPU: fp32, bf16, int8 or int4.")
]
Seed = Annotated[int | None, typer.Option(help="Any whole number: the same seed gives the same answer.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Where the speech goes: .wav, .flac or .ogg; - is stdout (WAV)."),
]
Voice = Annotated[
    str | None, typer.Option(help="A voice of the model, or a recording (3 to 10 s) of another one.")
]


class Think(StrEnum):
    """How the model thinks before it answers."""

    label = "label"
    language = "language"
    off = "off"


# --- Options of commands that read a corpus.


class EngineName(StrEnum):
    """Where the workers run."""

    local = "local"
    ray = "ray"


Source = Annotated[str, typer.Argument(help="A list, a tar, or a folder that holds one; or a URL of one.")]
SourceFormat = Annotated[str, typer.Option("--format", help="Of the source; auto looks at it.")]
Root = Annotated[Path | None, typer.Option(help="Where relative names in the source begin.")]
Within = Annotated[
    list[Path] | None,
    typer.Option(help="A further folder that sound may lie in. Repeatable; / is all."),
]
CorpusFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder of the result.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
Engine = Annotated[
    EngineName, typer.Option(help="Processes here, or Ray: that of RAY_ADDRESS, or one started here.")
]
CodecSize = Annotated[int, typer.Option(min=1, help="Speech ids from here up are refused.")]
ShardSize = Annotated[int, typer.Option(min=1, help="Records per shard.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first defect.")]


def path_strings(paths: list[Path] | None) -> tuple[str, ...] | None:
    """The value of `Within` for a configuration."""
    return tuple(map(str, paths)) if paths else None


# --- The class of every command.

DEPRECATED_OPTIONS = {"--out": "--output", "--rehearse": "--replay", "--rehearse-share": "--replay-share"}
METAVARS = {"str": "TEXT", "path": "PATH", "file": "PATH", "directory": "PATH"}
METAVARS |= {"int": "NUMBER", "float": "NUMBER"}


class EchatCommand(TyperCommand):
    """A command that accepts deprecated options and shows PATH and NUMBER instead of Python types."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for parameter in self.params:
            set_metavar(parameter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts}
        words = list(_renamed(args, known))
        try:
            return super().parse_args(ctx, list(words))
        except Exception as error:  # a usage error has no class that all versions of typer share
            older = _json_with_a_file(words) if "--output" in known else words
            if older == words or not hasattr(error, "format_message"):
                raise
            ctx.params.clear()
            return super().parse_args(ctx, older)


def _renamed(args: list[str], known: set[str]) -> Iterator[str]:
    """`--out X` and `--out=X` as `--output`, and so on."""
    rest = iter(args)
    for word in rest:
        name, equals, value = word.partition("=")
        is_old = name in DEPRECATED_OPTIONS and name not in known
        yield DEPRECATED_OPTIONS[name] + equals + value if is_old else word
        if word == "--":
            yield from rest


def _json_with_a_file(words: list[str]) -> list[str]:
    """`--json FILE` of commands whose --json named a file before it became a flag; `-` was stdout."""
    for n, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--json" and (equals or n + 1 < len(words)):
            after = n + (1 if equals else 2)
            file = value if equals else words[n + 1]
            named = ["--json"] if file == "-" else ["--output", file]
            return [*words[:n], *named, *words[after:]]
    return words


def set_metavar(parameter: Any) -> None:
    """PATH and NUMBER in help, not `<list[Path]>` and `<int>` as recent versions of typer print them."""
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
        shown = name + ("..." if parameter.nargs != 1 else "")
        parameter.metavar = name
        parameter.get_usage_pieces = lambda ctx: [shown if parameter.required else f"[{shown}]"]
        parameter.display_type_rich = lambda ctx: ""
    elif hasattr(parameter, "display_type_rich"):
        python = parameter.display_type_rich
        parameter.display_type_rich = lambda ctx: parameter.metavar or _metavar(python(ctx))


def _metavar(python: str) -> str:
    word = re.sub(r"^<(?:list\[)?|\]?>$", "", python).removesuffix(" range")
    return METAVARS.get(word.lower(), word)


def set_command_class(app: typer.Typer) -> None:
    """Make every command of an app and of its groups an EchatCommand."""
    for command in app.registered_commands:
        command.cls = EchatCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            set_command_class(group.typer_instance)
