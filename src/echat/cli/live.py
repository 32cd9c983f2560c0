"""Commands for people who want to try a model: studio, talk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echat.cli.options import DEFAULT_DEVICE, DEFAULT_MODEL, Device, Model, Precision, Think


def add_to(app: typer.Typer) -> None:
    app.command()(studio)
    app.command()(talk)


def studio(
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless given.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 7860,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
) -> None:
    """Every task of a model in the browser: spectrograms, both forms of thought, many files."""
    import gradio  # noqa: F401  (before the model is loaded: is it there?)

    from echat.cli import engine_io
    from echat.serve.studio import layout

    layout.run(engine_io.open_engine(model, device, precision=precision), host, port)


def talk(
    think: Annotated[Think, typer.Option(help="The form of the thought before a reply.")] = Think.label,
    voice: Annotated[str | None, typer.Option(help="A voice of the model.")] = None,
    sound: Annotated[
        str | None, typer.Option(help="Sound device, name or number: python -m sounddevice lists them.")
    ] = None,
    loudspeaker: Annotated[
        bool, typer.Option("--loudspeaker", help="Without a headset: do not listen while the answer sounds.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--input", help="Hear this file instead of a microphone.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write what would be heard to this file.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
) -> None:
    """Talk with microphone and loudspeaker, best with a headset. Speak to interrupt; Ctrl-C says goodbye."""
    from echat.cli import display, engine_io, io
    from echat.serve.terminal import audio_io
    from echat.serve.terminal.voice_chat import run

    io.check_speech(output)
    if source is None:
        audio_io.import_sounddevice()  # before the model is loaded: is it there?
    if output is not None and source is None:
        raise ValueError("--output: expected --input FILE beside it, found none; devices play what they hear")
    engine = engine_io.open_engine(model, device, speaks=True, precision=precision)
    named = int(sound) if sound is not None and sound.isdigit() else sound
    run(engine, display.spoken_line, think.value, voice, source, output, named, not loudspeaker)
