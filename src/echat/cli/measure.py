"""Commands that judge: verify, eval tiny, eval understanding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from echat.cli.talk import DEFAULT_MODEL, Device, Json, Model

JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this JSON file.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many items.")]


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
) -> None:
    """Does this machine reproduce golden numbers? One line per array; exit code 1 when one differs."""
    from echat.infer.verify import verify as run

    checks = run(list(folders or []))
    for check in checks:
        print(check)
    failed = sum(not check.ok for check in checks)
    print(f"{len(checks) - failed} passed, {failed} failed")
    if failed:
        raise typer.Exit(1)


def evaluate_tiny(
    model: Model = DEFAULT_MODEL, device: Device = "cpu", limit: Limit = None, json: Json = False
) -> None:
    """The bundled evaluation: held-out spoken questions, how well they were heard and answered."""
    from echat.cli import record
    from echat.eval.benchmarks import tiny

    _report(tiny.run(record.open_engine(model, device), limit=limit), json)


def evaluate_understanding(
    manifest: Annotated[
        list[Path], typer.Option(help="JSON lines of clips with text and labels. Repeatable.")
    ],
    model: Model = DEFAULT_MODEL,
    device: Device = "cpu",
    limit: Limit = None,
    json: JsonFile = None,
) -> None:
    """Word errors, accuracy and unweighted recall per label on any manifest of clips."""
    from echat.cli import record
    from echat.eval.benchmarks import understanding

    _report(understanding.run(record.open_engine(model, device), manifest, limit=limit), False)


def _report(result: Any, json: bool) -> None:
    print(result)
