"""Commands that train: train, finetune, export, average, assemble, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(finetune)
    app.command()(report)
    app.command()(export)
    app.command()(average)
    app.command()(assemble)


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


def export(
    run: Annotated[Path, typer.Argument(help="The run folder of a training: the output of its recipe.")],
    output: Annotated[Path, typer.Argument(help="The model folder to write.")],
    step: Annotated[
        int | None, typer.Option(help="Of the checkpoint (default: the newest that is whole).")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The one with the lowest validation loss.")] = False,
) -> None:
    """Make a model folder from a checkpoint of a training."""
    from echat.train.export import export_run

    if best and step is not None:
        raise ValueError("expected --step or --best, found both; leave one of them out")
    name = export_run(run, output, step, best)
    print(f"{output}: {name} of {run}")


def average(
    output: Annotated[Path, typer.Argument(help="The model folder to write.")],
    models: Annotated[list[Path], typer.Argument(help="Model folders of runs with the same start.")],
) -> None:
    """Average the weights of several models."""
    from echat.train.tools.average import average as run

    run(output, models)
    print(f"{output}: the mean of {len(models)} models")


def assemble(
    output: Annotated[Path, typer.Argument(help="The model folder to write.")],
    tokenizer: Annotated[Path, typer.Option(help="The exported speech tokenizer.")],
    flow: Annotated[Path, typer.Option(help="The exported flow.")],
    vocoder: Annotated[Path, typer.Option(help="The exported vocoder.")],
    dialogue: Annotated[
        Path | None, typer.Option(help="The exported speech language model; without it: speech out alone.")
    ] = None,
    voice: Annotated[
        list[str] | None, typer.Option(help="NAME=RECORDING. Repeatable; the first is the default.")
    ] = None,
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Voices keep their recording as a prompt.")
    ] = False,
) -> None:
    """Assemble one model folder from what several trainings exported."""
    from echat.train.tools.assemble import write_dialogue_model, write_speech_folders

    voices = {name: Path(path) for name, _, path in (pair.partition("=") for pair in voice or [])}
    if dialogue is not None:
        write_dialogue_model(output, dialogue)
    write_speech_folders(output, tokenizer, flow, vocoder, voices, prompt)
    print(f"{output}: speech_tokenizer and token2wav with {len(voices)} voices")
