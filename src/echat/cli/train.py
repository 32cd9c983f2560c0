"""Commands that train: train, finetune, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(finetune)
    app.command()(report)


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value: wins over the recipe.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run folder.")
    ] = False,
) -> None:
    """Train what a recipe describes, to the end of its budget."""
    from echat.train.trainer import train as run

    run(recipe, overrides or [], resume)


def finetune(
    model: Annotated[
        str,
        typer.Argument(help="A shipped model, a model folder, or a released .pt with its Qwen2 folder."),
    ],
    data: Annotated[
        str, typer.Option(help="Folder with metadata.csv or .jsonl: question, answer, text, reply, labels.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="Run folder; the model will be in its model/.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.path=value: wins over the recipe (budget.steps=500)."),
    ] = None,
    map: Annotated[
        list[str] | None, typer.Option("--map", help="field=column, such as text=sentence. Repeatable.")
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option(help="Manifest of replay data, against forgetting. Repeatable."),
    ] = None,
    replay_share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of replay data in the mixture.")
    ] = 0.5,
    speech_tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the speech tokenizer (default: that of the model).")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without the records that cannot be used.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
) -> None:
    """Fine-tune a model on spoken questions and answers, with adapters on its linear layers."""
    from echat.cli.data import column_map
    from echat.train.tools.finetune import FineTune
    from echat.train.tools.finetune import finetune as run

    job = FineTune(model, data, out, column_map(map), replay or (), replay_share, speech_tokenizer, skip_bad)
    folder = run(job, overrides or [], resume)
    if folder.is_dir():
        print(f"{folder}: try `echat reply QUESTION.wav -m {folder}`, `echat report {out}` shows the run")


def report(
    run: Annotated[Path, typer.Argument(help="The run folder of a training.")],
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page (default: report.html in the run folder).")
    ] = None,
) -> None:
    """One page about a training: curves, samples to listen to, configuration, origins."""
    from echat.train.tools.report import write_report

    print(write_report(run, out or run / "report.html"))
