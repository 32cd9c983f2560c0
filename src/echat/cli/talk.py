"""Commands that talk: reply, understand, say, chat."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from echat.dialogue.turns import Turn

DEFAULT_MODEL = "echat-tiny"

Model = Annotated[str, typer.Option("--model", "-m", help="Name of a shipped model, or a model folder.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, npu ...")]
Precision = Annotated[
    str | None, typer.Option(help="Compute with packed weights on the CPU: fp32, bf16, int8 or int4.")
]
Seed = Annotated[int | None, typer.Option(help="Any number: the same seed gives the same answer.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where the speech goes: .wav, .flac or .ogg.")
]
Voice = Annotated[
    str | None, typer.Option(help="A voice of the model, or a recording (3 to 10 s) of another one.")
]


class Think(StrEnum):
    """How the model thinks before it answers."""

    label = "label"
    language = "language"
    off = "off"


def add_to(app: typer.Typer) -> None:
    for command in (reply, understand, say, chat):
        app.command()(command)


def reply(
    question: Annotated[Path, typer.Argument(help="A spoken question: wav, flac, ogg or mp3.")],
    output: Output = None,
    think: Annotated[Think, typer.Option(help="The form of the thought before the reply.")] = Think.language,
    history: Annotated[
        list[Path] | None,
        typer.Option(help="Earlier turns, oldest first: what --json printed. Once per file."),
    ] = None,
    voice: Voice = None,
    seed: Seed = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "cpu",
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Answer a spoken question: thought, reply and, with -o, speech."""
    from echat.cli import record, show
    from echat.dialogue.tasks import get_task
    from echat.dialogue.turns import Conversation
    from echat.infer.replying import answered

    record.check_output(output)
    if voice and not output:
        raise ValueError("--voice: expected -o FILE for the speech, found none; add -o answer.wav")
    past = [turn for path in history or [] for turn in record.read_history(path)]
    conversation = Conversation([*past, record.listen(question)])
    engine = record.open_engine(model, device, output is not None, precision)
    task = ("s2s" if output else "s2t") + ("" if think is Think.off else f"_think_{think.value}")
    answer = answered(engine, conversation, get_task(task), seed, voice=record.voice(engine, voice))
    show.left_out(engine, answer)
    if output:
        record.write_speech(output, answer)
    if json:
        show.json_line(record.reply_record(answer, task, question=question, output=output))
    else:
        show.reply(answer, output)


def understand(
    clip: Annotated[Path, typer.Argument(help="Speech: wav, flac, ogg or mp3.")],
    task: Annotated[str, typer.Option(help="What to tell: understand, asr, emotion, age_gender ...")] = (
        "understand"
    ),
    model: Model = DEFAULT_MODEL,
    device: Device = "cpu",
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Say what was said in a clip and how it was said."""
    from echat.cli import record, show
    from echat.dialogue.tasks import TASKS, get_task

    if not get_task(task).understands:
        names = ", ".join(name for name, row in TASKS.items() if row.understands)
        raise ValueError(f"--task: expected one of {names}, found {task!r}, which answers; use echat reply")
    heard = record.listen(clip)
    found = record.open_engine(model, device, precision=precision).understand(heard.audio, task)
    if json:
        show.json_line(record.understanding_record(found, task, clip))
    else:
        show.understanding(found)


def say(
    text: Annotated[str, typer.Argument(help="The words to speak.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the speech goes: .wav, .flac or .ogg.")
    ],
    voice: Voice = None,
    seed: Seed = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "cpu",
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Read a text aloud, of any length."""
    import torch

    from echat.audio.waveform import write
    from echat.cli import record, show

    record.check_output(output)
    engine = record.open_engine(model, device, True, precision)
    parts = list(engine.read_aloud(text, voice=record.voice(engine, voice), seed=seed))
    waveform, rate = torch.cat([part.waveform for part in parts]), parts[0].rate
    write(output, waveform, rate)
    seconds, doubtful = round(len(waveform) / rate, 3), [part.text for part in parts if part.is_doubtful]
    show.doubtful(doubtful)
    if json:
        record_ = {"text": text, "audio": str(output), "rate": rate, "duration_s": seconds}
        show.json_line({**record_, "spoken": [part.text for part in parts], "doubtful": doubtful})
    else:
        show.written(output, seconds)


def chat(
    seed: Seed = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "cpu",
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Talk by typing, one line a turn; an empty line or the end of input says goodbye."""
    from echat.cli import record, show
    from echat.dialogue.tasks import get_task
    from echat.dialogue.turns import Conversation, UserTurn
    from echat.infer.replying import answered

    engine = record.open_engine(model, device, precision=precision)
    turns: list[Turn] = []
    is_told = False
    for line in _typed_lines():
        turns.append(UserTurn(text=line))
        answer = answered(engine, Conversation(turns), get_task("t2t"), seed)
        is_told = is_told or show.left_out(engine, answer)
        turns.append(answer.as_turn())
        if json:
            show.json_line(record.reply_record(answer, "t2t", text=line))
        else:
            show.chat_line(answer.text)


def _typed_lines() -> Iterator[str]:
    """Lines up to the first empty one; a prompt is shown only to people."""
    is_person = sys.stdin.isatty()
    while True:
        if is_person:
            print("you: ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
