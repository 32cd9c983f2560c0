"""Commands that converse: serve (with its API keys), studio in the browser, talk in the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from echat.cli.options import DEFAULT_DEVICE, DEFAULT_MODEL, Device, Model, Precision, Think

KeyFile = Annotated[Path, typer.Option("--keys", help="File of hashed API keys.")]


def add_to(app: typer.Typer) -> None:
    app.command()(studio)
    app.command()(talk)
    app.command()(serve)
    group = typer.Typer(no_args_is_help=True, help="API keys of the server.")
    group.command("add")(add_key)
    group.command("list")(list_keys)
    group.command("remove")(remove_key)
    app.add_typer(group, name="keys")


def serve(
    model: Model = DEFAULT_MODEL,
    host: Annotated[
        str | None, typer.Option(help="Address of the server; loopback (this machine alone) unless given.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the server; 0 takes a free one.")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Ask for API keys: those of this file (echat keys).")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which the server is reached; may be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of web pages that may use it, as https://app.example.org; may be repeated."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings; see docs/serving.md.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value: wins over the file, e.g. limits.sessions=4.")
    ] = None,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
) -> None:
    """Serve a model: the OpenAI Realtime protocol and audio endpoints, and a web page at /."""
    from echat.cli import engines
    from echat.serve import server
    from echat.serve.connection_limiter import listen

    options = {"host": host, "port": port, "keys": keys}
    options |= {"hosts": json.dumps(allow_host) if allow_host else None}
    options |= {"origins": json.dumps(allow_origin) if allow_origin else None}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    settings = server.load_config(config, [*given, *(overrides or [])])
    sockets = listen(settings.host, settings.port)  # before the model is loaded: is the port free?
    server.run(engines.open_engine(model, device, precision=precision), settings, sockets)


def add_key(
    keys: KeyFile,
    days: Annotated[float | None, typer.Option(help="Days until it expires; without it: never.")] = None,
    note: Annotated[str, typer.Option(help="Whose key it is.")] = "",
) -> None:
    """Make a key. It is printed once: the file holds only its hash."""
    from echat.serve.keys import Keys

    secret, key = Keys(keys).add(days, note)
    print(secret)
    typer.echo(f"id {key.id}; the server needs no restart", err=True)


def list_keys(keys: KeyFile) -> None:
    """The keys of a file: id, expiry, note."""
    from datetime import datetime

    from echat.serve.keys import Keys

    for key in Keys(keys).all():
        end = (
            "never expires"
            if key.expires is None
            else f"until {datetime.fromtimestamp(key.expires):%Y-%m-%d}"
        )
        print(f"{key.id}  {end}  {key.note}".rstrip())


def remove_key(key_id: Annotated[str, typer.Argument(help="As `list` shows it.")], keys: KeyFile) -> None:
    """Remove a key."""
    from echat.serve.keys import Keys

    Keys(keys).remove(key_id)


def studio(
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address of the server; loopback unless given.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the server.")] = 7860,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
) -> None:
    """Every task of a model in the browser: spectrograms, both forms of thought, many files."""
    import gradio  # noqa: F401  (before the model is loaded: is it there?)

    from echat.cli import engines
    from echat.serve.studio import layout

    layout.run(engines.open_engine(model, device, precision=precision), host, port)


def talk(
    think: Annotated[Think, typer.Option(help="The form of the thought before a reply.")] = Think.label,
    voice: Annotated[str | None, typer.Option(help="A voice of the model.")] = None,
    sound: Annotated[
        str | None, typer.Option(help="Sound device, name or number: python -m sounddevice lists them.")
    ] = None,
    loudspeaker: Annotated[
        bool,
        typer.Option("--loudspeaker", help="Without a headset: ignore the microphone while an answer plays."),
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--input", help="Read this file instead of a microphone.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write what would be played to this file.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
) -> None:
    """Voice chat with microphone and loudspeaker, best with a headset. Speak to interrupt; Ctrl-C ends it."""
    from echat.cli import display, engines, io
    from echat.serve.terminal import audio_io
    from echat.serve.terminal.voice_chat import run

    io.check_speech(output)
    if source is None:
        audio_io.import_sounddevice()  # before the model is loaded: is it there?
    if output is not None and source is None:
        raise ValueError(
            "--output: expected --input FILE beside it, found none; with devices the answer is played"
        )
    engine = engines.open_engine(model, device, speaks=True, precision=precision)
    named = int(sound) if sound is not None and sound.isdigit() else sound
    run(engine, display.spoken_line, think.value, voice, source, output, named, not loudspeaker)
