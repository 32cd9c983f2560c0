"""Output of commands: labelled lines for people, JSON lines for programs, notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from echat.cli import records
from echat.cli.io import STREAM
from echat.dialogue.labels import in_english
from echat.dialogue.thinking import LabelThought, LanguageThought, Thought

if TYPE_CHECKING:
    from echat.infer.engine import Engine
    from echat.infer.events import Reply, Understanding


def console() -> Console:
    """Made per use, so that it writes to the stdout of the moment; colours only for a terminal."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def json_line(record: Any) -> None:
    """One line of JSON; what the encoding of stdout lacks is escaped, so that nothing is lost."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(record)
    print(line)


def heading(path: Path, are_several: bool) -> None:
    """The name of the input above its results, where there are several."""
    if are_several:
        console().print(Text(f"{path}:"))


def reply(answer: Reply, output: Path | None) -> None:
    """Thought, reply and timing; the path of the speech when it was written."""
    if answer.thought is not None:
        _print_labelled("thought", _thought(answer.thought), style="dim italic")
    emotion = f"({in_english(answer.reply_emotion)}) " if answer.reply_emotion else ""
    _print_labelled("reply", f"{emotion}{answer.text}", style="bold")
    if output is not None:
        written(output, records.duration(answer) or 0.0)
    _print_labelled("time", timing(answer.seconds), style="dim")


def spoken_line(who: str, text: str) -> None:
    """One line of a spoken conversation, at once."""
    styles = {"echat": "bold", "thought": "dim italic"}
    if who == "note":
        console().print(Text(text, style="dim"))
    else:
        _print_labelled(who, text, style=styles.get(who, ""))
    sys.stdout.flush()


def timing(seconds: Mapping[str, float]) -> str:
    """``2.1 s: listen 0.1, think 0.8, ...``; without a total it is the sum of the parts."""
    parts = {name: value for name, value in seconds.items() if name != "total"}
    total = seconds.get("total", sum(parts.values()))
    detail = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    return f"{total:.2f} s" + (f" ({detail})" if detail else "")


def understanding(found: Understanding) -> None:
    if found.text:
        _print_labelled("words", found.text, style="bold")
    if found.reply:
        _print_labelled("reply", found.reply, style="bold")
    for kind, label in found.labels.as_dict().items():
        if label is not None:
            _print_labelled(kind.replace("_", " "), in_english(str(label)))
    if not found.text and not any(found.labels.as_dict().values()):
        _print_labelled("heard", found.raw_text or "nothing")


def written(path: Path, seconds: float) -> None:
    _print_labelled("speech", f"{'stdout' if path == STREAM else path} ({seconds:.1f} s)")


def note_dropped_turns(engine: Engine, answer: Reply) -> bool:
    """A note on stderr where earlier turns were left out of the prompt; was there one?"""
    if not (turns := answer.counts.get("turns_left_out", 0)):
        return False
    learned = engine.capabilities.history_turns
    why = (
        "has no room for more"
        if learned is None
        else "learned single turns"
        if learned == 0
        else (f"learned {learned} earlier turns at most")
    )
    note(f"{engine.name} {why}: {turns} earlier turn{'s are' if turns > 1 else ' is'} left out")
    return True


def doubtful(texts: Sequence[str]) -> None:
    """A note on stderr for each piece of a text whose sound is too short or too long for its words."""
    for text in texts:
        note(f"words may be missing or made up in {text!r}; try another --seed or shorter sentences")


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def facts(values: Mapping[str, Any], indent: int = 0) -> None:
    """Nested names and values as an indented list."""
    width = max((len(name) for name in values), default=0) + 1
    for name, value in values.items():
        head = f"{' ' * indent}{name + ':':<{width}}"
        if isinstance(value, Mapping):
            console().print(Text(head.rstrip()))
            facts(value, indent + 2)
        else:
            console().print(Text(f"{head} {_fact(value)}"))


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_count else str(value)


def chat_line(text: str) -> None:
    _print_labelled("echat", text, style="bold")


def _thought(thought: Thought) -> str:
    if isinstance(thought, LanguageThought):
        return thought.text
    assert isinstance(thought, LabelThought)
    slots = {kind: value for kind, value in thought.as_dict().items() if kind != "transcript" and value}
    return f'"{thought.transcript}" ' + ", ".join(
        f"{kind.replace('_', ' ')} {in_english(value)}" for kind, value in slots.items()
    )


def _print_labelled(name: str, text: str, style: str = "") -> None:
    line = Text(f"{name + ':':<13} ")
    line.append(text, style=style)
    console().print(line)
