"""Commands that judge: verify, eval tiny, eval understanding."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import echat
from echat.cli.options import DEFAULT_DEVICE, DEFAULT_MODEL, Device, Json, Model

Figures = Annotated[
    Path | None, typer.Option("--output", "-o", help="Also write the figures as JSON to this file.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many items, evenly spaced.")]


def add_to(app: typer.Typer) -> None:
    app.command()(verify)
    group = typer.Typer(no_args_is_help=True, help="Measure a model.")
    group.command("tiny")(evaluate_tiny)
    group.command("understanding")(evaluate_understanding)
    app.add_typer(group, name="eval")


def verify(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of golden numbers (default: the bundled ones).")
    ] = None,
    device: Device = DEFAULT_DEVICE,
    precision: Annotated[str, typer.Option(help="Of the networks: fp32 or bf16.")] = "fp32",
    converted: Annotated[
        bool, typer.Option("--converted", help="First convert the weights, then check the model folder.")
    ] = False,
    json: Json = False,
) -> None:
    """Does this machine reproduce golden numbers, on this device and in this precision?

    The first line says where; then one line per array. Exit code 1 when one differs by more than its
    tolerance.
    """
    from dataclasses import asdict

    from echat.cli import display
    from echat.verify.comparison import Backend
    from echat.verify.verification import bundled_folders, verify_folder

    backend = Backend.of(device, precision)
    passed = failed = 0
    for number, folder in enumerate(folders or bundled_folders()):
        for check in verify_folder(folder, backend, converted):
            if not number and not passed + failed and not json:
                print(backend)
            if json:
                display.json_line({"where": str(backend), **asdict(check), "ok": check.ok})
            else:
                print(check, flush=True)
            passed, failed = passed + check.ok, failed + (not check.ok)
    if not json:
        print(f"{passed} passed, {failed} failed")
    if failed:
        raise typer.Exit(1)


def evaluate_tiny(
    manifest: Annotated[
        Path | None, typer.Option(help="A held-out set made before; without it the set is made once.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = DEFAULT_DEVICE,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Of the sampled replies.")] = 0,
    json: Json = False,
    output: Figures = None,
) -> None:
    """The bundled evaluation: held-out spoken questions, how well they were heard and answered."""
    from echat.cli import display, engine_io
    from echat.eval.benchmarks import tiny

    _require_files([manifest] if manifest else [])
    questions = manifest or _held_out_set()
    engine = engine_io.open_engine(model, device)
    report = tiny.run(engine, questions, limit, json_out=output, markdown_out=markdown, seed=seed)
    if json:
        display.json_line(report.as_dict())
    else:
        print(report)


def evaluate_understanding(
    manifest: Annotated[list[Path], typer.Option(help="JSON lines of labelled clips. Repeatable.")],
    split: Annotated[str | None, typer.Option(help="Only rows of this split, such as test.")] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = DEFAULT_DEVICE,
    limit: Limit = None,
    json: Json = False,
    output: Figures = None,
) -> None:
    """Word errors, accuracy and unweighted recall per label on any manifest of clips."""
    from echat.cli import display, engine_io
    from echat.eval.benchmarks import understanding

    _require_files(manifest)
    engine = engine_io.open_engine(model, device)
    report = understanding.run(engine, manifest, limit=limit, json_out=output, split=split)
    if json:
        display.json_line(report.as_dict())
    else:
        print(report)


def _held_out_set() -> Path:
    """The manifest of the held-out questions, made on the first call; an interrupted making goes on."""
    from echat.cli.data import progress
    from echat.corpus.build import build_held_out
    from echat.release.hub_models import cache_folder

    folder = cache_folder() / f"tiny-held-out-{echat.__version__}"
    if not (folder / "manifest.jsonl").is_file():
        _require_for_making_speech()
        print(f"making the held-out questions in {folder}, once", file=sys.stderr)
    with progress("making questions") as step:
        return build_held_out(folder, workers=min(2, os.cpu_count() or 1), progress=step)


def _require_for_making_speech() -> None:
    """Everything that is missing, and the one line that brings it, before anything is made."""
    from importlib.util import find_spec
    from shutil import which

    from echat.corpus.synthesis.tts_engines import voices
    from echat.optional_dependencies import how_to_install

    programs = sorted({voice.engine for voice in voices("test")})
    missing = [name for name in programs if which(name) is None]
    packages = [name for name in ("pyworld", "scipy") if find_spec(name) is None]
    remedies = [f"apt-get install {' '.join(missing)}"] if missing else []
    remedies += [how_to_install(packages[0])] if packages else []
    if remedies:
        raise ValueError(
            f"making the held-out questions: expected {', '.join([*programs, 'pyworld', 'scipy'])}, found no "
            f"{', '.join(missing + packages)}; {' && '.join(remedies)}, or give --manifest"
        )


def _require_files(paths: list[Path]) -> None:
    """Before a model is loaded: the clearest time to hear of a wrong path."""
    for path in paths:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing"
            raise ValueError(f"{path}: expected a manifest in JSON lines, found {found}; check the path")
