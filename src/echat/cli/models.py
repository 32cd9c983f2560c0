"""Commands about models: info, download, convert, quantize. Facts are read without loading a model."""

from __future__ import annotations

import json as json_module
import math
import platform
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import echat
from echat.cli.options import Json

if TYPE_CHECKING:
    from echat.dialogue.tasks import Task


class ThoughtForm(StrEnum):
    """Thought form of released weights."""

    label = "label"
    language = "language"


class StoredPrecision(StrEnum):
    """Of the dialogue model on disk."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


def add_to(app: typer.Typer) -> None:
    app.command()(info)
    app.command()(download)
    app.command()(convert)
    app.command()(quantize)


def info(
    model: Annotated[
        str | None, typer.Argument(help="A shipped model or a model folder; without it: this installation.")
    ] = None,
    json: Json = False,
) -> None:
    """Facts about this installation and its tasks, or about one model."""
    from echat.cli import display

    facts = describe_installation() if model is None else describe_model(model)
    if json:
        display.json_line(facts)
    else:
        display.facts(facts)


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

    HF_ENDPOINT names a mirror, HF_HOME another cache, HF_HUB_OFFLINE=1 uses only cached files.
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
    from echat.devices import DTYPES
    from echat.release.conversion import convert as run

    print(run(weights, llm, output, token2wav, voice, DTYPES[dtype.value]))
    print(f"written: {output}")


def quantize(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    output: Annotated[Path, typer.Argument(help="The model folder to write; a new one.")],
    choices: Annotated[
        list[str] | None,
        typer.Argument(
            help="PART=SCHEME or 'GLOB=SCHEME': parts encoder, adapter, layers, tables, heads, flow, "
            "vocoder and speech_tokenizer; schemes plain, int8, int4-32, int4-64, int4-128. Default: "
            "layers=int4-32, the others int8."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Recipe of the model's training: 4-bit layers are fitted to what they read there."),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Of that training data.")] = 40,
) -> None:
    """Write a smaller copy of a model folder with 8-bit and 4-bit weights; reports the error of each part.

    That error is no measure of what is lost: compare both models by `echat eval` or a validation loss.
    """
    from echat.release.quantization import is_int4, parse_choices, quantize_folder

    schemes, moments = parse_choices(choices or []), None
    if calibrate is not None:
        from echat.train.tools.calibration import second_moments

        moments = second_moments(calibrate, model, batches, lambda name: is_int4(name, schemes))
    for report in quantize_folder(model, output, schemes, moments):
        print(report)
    megabytes = sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) / 1e6
    print(f"written: {output}, {megabytes:.1f} MB")


def describe_installation() -> dict[str, Any]:
    """Versions, devices, shipped models and the task table."""
    import torch

    from echat.dialogue.tasks import TASKS
    from echat.infer.loading import built_in_models

    cards = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        "echat": echat.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *cards],
        "models": list(built_in_models()),
        "tasks": {name: _describe_task(row) for name, row in TASKS.items()},
    }


def _describe_task(task: Task) -> str:
    """``audio -> words, emotion`` or ``audio -> label thought, text, speech``."""
    if task.understands:
        kinds = [kind.replace("_", " ") for kind in task.labels]
        written = (["words"] if task.transcribes else []) + kinds
    else:
        written = ([f"{task.thinks} thought"] if task.thinks else []) + list(task.writes)
    return f"{task.input_modality} -> {', '.join(written)}"


def describe_model(name: str) -> dict[str, Any]:
    """Size, parameters per part, voices and configuration of a model folder."""
    from echat.config import read_yaml
    from echat.infer.loading import built_in_models
    from echat.model_files import CONFIG_FILE, VOICES_FOLDER

    built_in = built_in_models()
    folder = built_in.get(name, Path(name))
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{name}: expected a model folder with {CONFIG_FILE} or a shipped model "
            f"({', '.join(built_in) or 'none'}), found neither; check the name or the path"
        )
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "folder": str(folder),
        "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "parameters": {
            path.relative_to(folder).as_posix(): _parameters(path)
            for path in sorted(folder.rglob("*.safetensors"))
            if path.parent.name != VOICES_FOLDER
        },
        "voices": sorted(path.stem for path in folder.rglob(f"{VOICES_FOLDER}/*.safetensors")),
        "config": read_yaml(folder / CONFIG_FILE),
    }


def _parameters(path: Path) -> dict[str, int]:
    """Number of values per top-level module, from the header of the file alone."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path}: expected a safetensors file, found a broken header; copy it again")
        header = json_module.loads(file.read(size))
    counts: dict[str, int] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            part = name.split(".")[0]
            counts[part] = counts.get(part, 0) + math.prod(entry["shape"])
    return counts
