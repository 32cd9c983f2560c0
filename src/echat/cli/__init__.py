"""The command line. Every command opens its door only when asked, so that ``echat --help`` is instant."""

from __future__ import annotations

import typer

from echat.cli.border import Border

app = typer.Typer(
    cls=Border,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="A spoken question in, an empathetic spoken answer out.",
)


def _register() -> None:
    from echat.cli import data, live, measure, serve, talk, weights, work

    for module in (talk, live, serve, measure, work, data, weights):
        module.add_to(app)


_register()


def main(args: list[str] | None = None, standalone: bool = True) -> None:
    """Run ``echat`` with ``args`` (None: those of the process); ``standalone``: then leave the process."""
    try:
        app(args)
    except SystemExit:
        if standalone:
            raise
