"""Commands that talk: reply, understand, say, chat."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echat.cli.options import (
    DEFAULT_DEVICE,
    DEFAULT_MODEL,
    Device,
    Json,
    Model,
    Output,
    Precision,
    Seed,
    Think,
    Voice,
)

if TYPE_CHECKING:
    from echat.dialogue.turns import Turn


def add_to(app: typer.Typer) -> None:
    for command in (reply, understand, say, chat):
        app.command()(command)


def reply(
    questions: Annotated[
        list[Path],
        typer.Argument(metavar="QUESTION", help="Spoken questions: wav, flac, ogg or mp3; - is stdin."),
    ],
    output: Output = None,
    think: Annotated[Think, typer.Option(help="The form of the thought before the reply.")] = Think.language,
    history: Annotated[
        list[Path] | None,
        typer.Option(help="Earlier turns, oldest first: what --json printed. Once per file."),
    ] = None,
    voice: Voice = None,
    seed: Seed = None,
    model: Model = DEFAULT_MODEL,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Answer spoken questions: thought, reply and, with -o, speech.

    Several questions are answered one by one, each as if it were the only one; -o then names a folder.
    """
    from echat.cli import outputs, record, show
    from echat.cli.inputs import Inputs
    from echat.dialogue.tasks import get_task
    from echat.dialogue.turns import Conversation
    from echat.infer.replying import answered

    inputs = Inputs(questions)
    speech_of = outputs.speech_files(questions, output)
    if voice and not output:
        raise ValueError("--voice: expected -o FILE for the speech, found none; add -o answer.wav")
    past = [turn for path in history or [] for turn in record.read_history(path)]
    heard = {number: turn for number, turn in record.listen_to(inputs)}
    engine = record.open_engine(model, device, output is not None, precision)
    task = ("s2s" if output else "s2t") + ("" if think is Think.off else f"_think_{think.value}")
    for number, question in inputs:
        with inputs.part(number):
            conversation = Conversation([*past, heard[number]])
            answer = answered(engine, conversation, get_task(task), seed, voice=record.voice(engine, voice))
            show.left_out(engine, answer)
            speech = speech_of[number]
            if speech:
                outputs.write_reply(speech, answer)
            with outputs.texts_beside(speech):
                if json:
                    show.json_line(record.reply_record(answer, task, question=question, output=speech))
                else:
                    show.heading(question, inputs.are_several)
                    show.reply(answer, speech)
    inputs.end()


def understand(
    clips: Annotated[
        list[Path], typer.Argument(metavar="CLIP", help="Speech: wav, flac, ogg or mp3; - is stdin.")
    ],
    task: Annotated[str, typer.Option(help="What to tell: understand, asr, emotion, age_gender ...")] = (
        "understand"
    ),
    model: Model = DEFAULT_MODEL,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Say what was said in clips and how it was said."""
    from echat.cli import record, show
    from echat.cli.inputs import Inputs
    from echat.dialogue.tasks import TASKS, get_task

    if not get_task(task).understands:
        names = ", ".join(name for name, row in TASKS.items() if row.understands)
        raise ValueError(f"--task: expected one of {names}, found {task!r}, which answers; use echat reply")
    inputs = Inputs(clips)
    heard = {number: turn for number, turn in record.listen_to(inputs)}
    engine = record.open_engine(model, device, precision=precision)
    for number, clip in inputs:
        with inputs.part(number):
            found = engine.understand(heard[number].audio, task)
            if json:
                show.json_line(record.understanding_record(found, task, clip))
            else:
                show.heading(clip, inputs.are_several)
                show.understanding(found)
    inputs.end()


def say(
    text: Annotated[str, typer.Argument(help="The words to speak; - reads them from stdin.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Where the speech goes: .wav, .flac or .ogg; - is stdout (WAV)."),
    ],
    voice: Voice = None,
    seed: Seed = None,
    model: Model = DEFAULT_MODEL,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Read a text aloud, of any length."""
    import torch

    from echat.cli import outputs, record, show
    from echat.cli.inputs import stdin_text

    outputs.check_speech(output)
    text = stdin_text() if text == "-" else text
    engine = record.open_engine(model, device, True, precision)
    parts = list(engine.read_aloud(text, voice=record.voice(engine, voice), seed=seed))
    waveform, rate = torch.cat([part.waveform for part in parts]), parts[0].rate
    outputs.write_speech(output, waveform, rate)
    seconds, doubtful = round(len(waveform) / rate, 3), [part.text for part in parts if part.is_doubtful]
    show.doubtful(doubtful)
    with outputs.texts_beside(output):
        if json:
            facts = {"text": text, "audio": str(output), "rate": rate, "duration_s": seconds}
            show.json_line({**facts, "spoken": [part.text for part in parts], "doubtful": doubtful})
        else:
            show.written(output, seconds)


def chat(
    seed: Seed = None,
    model: Model = DEFAULT_MODEL,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Talk by typing, one line a turn; an empty line or the end of input says goodbye.

    A line that has no answer is named and forgotten; the exit code tells of it at the end.
    """
    from echat.cli import record, show
    from echat.cli.border import explain
    from echat.command import ModelError
    from echat.dialogue.tasks import get_task
    from echat.dialogue.turns import Conversation, UserTurn
    from echat.infer.replying import answered

    engine = record.open_engine(model, device, precision=precision)
    turns: list[Turn] = []
    is_told, code = False, 0
    for line in _typed_lines():
        question = UserTurn(text=line)
        try:
            answer = answered(engine, Conversation([*turns, question]), get_task("t2t"), seed)
        except (ValueError, ModelError) as error:
            code, message = explain(error)
            print(f"error: {message}", file=sys.stderr)
            continue
        is_told = is_told or show.left_out(engine, answer)
        turns += [question, answer.as_turn()]
        if json:
            show.json_line(record.reply_record(answer, "t2t", text=line))
        else:
            show.chat_line(answer.text)
    raise typer.Exit(code)


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
