"""Commands for people who want to try a model: studio, talk."""

from __future__ import annotations

from typing import Annotated

import typer

from echat.cli.talk import DEFAULT_MODEL, Device, Model, Precision


def add_to(app: typer.Typer) -> None:
    app.command()(studio)


def studio(
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless given.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 7860,
    device: Device = "cpu",
    precision: Precision = None,
) -> None:
    """Every task of a model in the browser: spectrograms, both forms of thought, many files."""
    import gradio  # noqa: F401  (before the model is loaded: is it there?)

    from echat.cli import record
    from echat.serve.studio import layout

    layout.run(record.open_engine(model, device, precision=precision), host, port)
