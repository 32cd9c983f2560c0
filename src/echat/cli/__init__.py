"""The command line. Commands import what they need when called, so that ``echat --help`` is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from echat.cli.errors import ErrorHandlingGroup

app = typer.Typer(
    cls=ErrorHandlingGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A spoken question in, an empathetic spoken answer out.",
)


def _version(is_asked: bool) -> None:
    if is_asked:
        import echat

        print(f"echat {echat.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _register() -> None:
    from echat.cli import corpus, data, evaluate, infer, models, serve, train
    from echat.cli.options import set_command_class

    for module in (infer, serve, evaluate, train, corpus, data, models):
        module.add_to(app)
    set_command_class(app)


_register()


def main(args: list[str] | None = None, standalone: bool = True) -> None:
    """Run ``echat`` with ``args`` (None: those of the process); ``standalone``: then leave the process."""
    try:
        app(args, prog_name="echat")
    except SystemExit:
        if standalone:
            raise
