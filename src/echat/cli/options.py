"""Options that several commands share: one spelling, one meaning, one help text."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
