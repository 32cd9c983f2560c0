"""Commands that look at models and make them: info, train, corpus build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echat.cli.talk import Json


def add_to(app: typer.Typer) -> None:
    app.command()(info)
    app.command()(train)
    group = typer.Typer(no_args_is_help=True, help="Make dialogue data.")
    group.command("build")(build_corpus)
    app.add_typer(group, name="corpus")


def info(
    model: Annotated[
        str | None, typer.Argument(help="A shipped model or a model folder; without it: this installation.")
    ] = None,
    json: Json = False,
) -> None:
    """Tell about this installation and its tasks, or about one model."""
    from echat.cli import inspection, show

    facts = inspection.installation() if model is None else inspection.model(model)
    if json:
        show.json_line(facts)
    else:
        show.facts(facts)


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
    from echat.train.loop import train as run

    run(recipe, overrides or [], resume)


def build_corpus(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe of a corpus.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value: wins over the recipe.")
    ] = None,
) -> None:
    """Write and speak the dialogues that a recipe describes."""
    from echat.corpus.build import main as build

    build([str(recipe), *(overrides or [])])
