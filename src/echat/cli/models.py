"""Commands that bring released weights into echat: download, convert."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from echat.cli.options import Json


class ThoughtForm(StrEnum):
    """How released weights think."""

    label = "label"
    language = "language"


class StoredPrecision(StrEnum):
    """Of the dialogue model on disk."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


def add_to(app: typer.Typer) -> None:
    app.command()(download)
    app.command()(convert)


def download(
    release: Annotated[str, typer.Argument(help="What to fetch: osum-echat.")],
    think: Annotated[
        ThoughtForm, typer.Option(help="The form in which the weights think.")
    ] = ThoughtForm.language,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the weights (default: the newest).")
    ] = None,
    json: Json = False,
) -> None:
    """Fetch released weights into the local cache: resumable, checked by hash.

    HF_ENDPOINT names a mirror, HF_HOME another place, HF_HUB_OFFLINE=1 uses only what is there.
    """
    from echat.release import hub

    if release != hub.RELEASE:
        raise ValueError(f"release: expected {hub.RELEASE}, found {release!r}; other models are not known")
    found = hub.download(think.value, revision)
    if json:
        from echat.cli import display

        display.json_line(
            {
                "weights": str(found.weights.path),
                "token2wav": str(found.token2wav.path),
                "llm": str(found.llm_folder),
                "commit": found.weights.commit,
            }
        )
        return
    for file in found:
        print(f"{file.name}: {file.bytes:,} bytes, {file.check}, {file.repo} at {file.commit[:12]}")
    print("\nnext:")
    print(
        f"echat convert {found.weights.path} {release}-{think.value} --llm {found.llm_folder} "
        f"--token2wav {found.token2wav.path}"
    )


def convert(
    weights: Annotated[Path, typer.Argument(help="A released .pt file.")],
    output: Annotated[Path, typer.Argument(help="The model folder to write; a new one.")],
    llm: Annotated[Path, typer.Option(help="Folder with config.json and tokenizer.json of the Qwen2 model.")],
    token2wav: Annotated[
        Path | None, typer.Option(help="CosyVoice-300M-25Hz.tar or its folder; without it: text only.")
    ] = None,
    voice: Annotated[
        Path | None,
        typer.Option(help="A recording (3 to 30 s): the voice when none is named."),
    ] = None,
    dtype: Annotated[
        StoredPrecision, typer.Option(help="Precision of the weights on disk.")
    ] = StoredPrecision.bf16,
) -> None:
    """Turn released weights into a model folder, with a report of every key.

    Tensor by tensor: it needs little memory, and as much disk as the weights have.
    """
    from echat.release.conversion import DTYPES
    from echat.release.conversion import convert as run

    print(run(weights, llm, output, token2wav, voice, DTYPES[dtype.value]))
    print(f"written: {output}")
