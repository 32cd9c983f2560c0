"""Commands that make dialogue data: corpus build, speak, conversation-audio, conversation-records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Make dialogue data.")
    group.command("build")(build_corpus)
    group.command("speak")(speak_table)
    group.command("conversation-audio")(speak_conversations)
    group.command("conversation-records")(write_records)
    app.add_typer(group, name="corpus")


def build_corpus(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe of a corpus.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value: wins over the recipe.")
    ] = None,
) -> None:
    """Write and speak the dialogues that a recipe describes."""
    from echat.corpus.build import build

    build(recipe, overrides or [])


def speak_table(
    table: Annotated[Path, typer.Argument(help="CSV, TSV or JSON lines with text and reply, and labels.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder of the spoken pairs.")],
    seed: Annotated[int, typer.Option(help="Of voices and prosody.")] = 1,
) -> None:
    """Speak a table of written dialogues: question and answer as sound, with metadata.jsonl."""
    from echat.corpus.spoken_table import speak_table as speak

    print(speak(table, out, seed))


def speak_conversations(
    ingredients: Annotated[Path, typer.Argument(help="Folder with kokoro/model.onnx and kokoro/voices/.")],
    texts: Annotated[Path, typer.Argument(help="Folder of conversations: cues-*.yaml, dialogues-*.yaml.")],
    out: Annotated[Path, typer.Argument(help="Folder of the clips and their manifests.")],
    fillers: Annotated[Path | None, typer.Option(help="JSON lines of further texts, spoken last.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for new texts, for ever.")] = False,
    cues: Annotated[
        bool, typer.Option("--cues", help="Questions with the emotions, ages, sounds of their cue sets, too.")
    ] = False,
    data_pack: Annotated[
        Path | None, typer.Option(help="Sets of recordings: laughs and coughs of people for --cues.")
    ] = None,
) -> None:
    """Speak written conversations with Kokoro; a run that was stopped goes on."""
    from echat.corpus.conversation_audio import speak_conversations as speak

    speak(ingredients, texts, out, fillers, follow, cues, data_pack)


def write_records(
    texts: Annotated[Path, typer.Argument(help="Folder of conversations: cues-*.yaml, dialogues-*.yaml.")],
    out: Annotated[Path, typer.Argument(help="Folder of text.jsonl and spoken.jsonl.")],
    spoken: Annotated[
        Path | None, typer.Option(help="What conversation-audio wrote; without it: text.jsonl alone.")
    ] = None,
) -> None:
    """Make records of written conversations, with their audio where it was made."""
    from echat.corpus.conversations import write_records as write

    for path, count in write(texts, out, spoken).items():
        print(f"{path}: {count} records")
