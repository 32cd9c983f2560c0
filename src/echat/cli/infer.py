"""Commands that run a model: reply, understand, say, chat."""

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
    from echat.cli import display, engines, io, records
    from echat.cli.io import Inputs
    from echat.dialogue.tasks import reply_task
    from echat.dialogue.turns import Conversation

    inputs = Inputs(questions)
    speech_of = io.speech_files(questions, output)
    if voice and not output:
        raise ValueError("--voice: expected -o FILE for the speech, found none; add -o answer.wav")
    past = [turn for path in history or [] for turn in records.read_history(path)]
    user_turns = {number: turn for number, turn in records.read_questions(inputs)}
    engine = engines.open_engine(model, device, output is not None, precision)
    task = reply_task(think.value, bool(output))
    for number, question in inputs:
        with inputs.part(number):
            conversation = Conversation([*past, user_turns[number]])
            answer = engine.run_with_retry(
                conversation, task, seed, voice=engines.resolve_voice(engine, voice)
            )
            display.note_dropped_turns(engine, answer)
            speech = speech_of[number]
            if speech:
                io.write_reply(speech, answer)
            with io.texts_beside(speech):
                if json:
                    display.json_line(records.reply_record(answer, task, question=question, output=speech))
                else:
                    display.heading(question, inputs.are_several)
                    display.reply(answer, speech)
    inputs.end()


def understand(
    clips: Annotated[
        list[Path], typer.Argument(metavar="CLIP", help="Speech: wav, flac, ogg or mp3; - is stdin.")
    ],
    task: Annotated[str, typer.Option(help="What to recognize: understand, asr, emotion, age_gender ...")] = (
        "understand"
    ),
    model: Model = DEFAULT_MODEL,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Transcribe clips and label the voice."""
    from echat.cli import display, engines, records
    from echat.cli.io import Inputs
    from echat.dialogue.tasks import TASKS, get_task

    if not get_task(task).understands:
        names = ", ".join(name for name, row in TASKS.items() if row.understands)
        raise ValueError(f"--task: expected one of {names}, found {task!r}, which answers; use echat reply")
    inputs = Inputs(clips)
    user_turns = {number: turn for number, turn in records.read_questions(inputs)}
    engine = engines.open_engine(model, device, precision=precision)
    for number, clip in inputs:
        with inputs.part(number):
            found = engine.understand(user_turns[number].audio, task)
            if json:
                display.json_line(records.understanding_record(found, task, clip))
            else:
                display.heading(clip, inputs.are_several)
                display.understanding(found)
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

    from echat.cli import display, engines, io
    from echat.cli.io import stdin_text

    io.check_speech(output)
    text = stdin_text() if text == "-" else text
    engine = engines.open_engine(model, device, True, precision)
    parts = list(engine.read_aloud(text, voice=engines.resolve_voice(engine, voice), seed=seed))
    waveform, rate = torch.cat([part.waveform for part in parts]), parts[0].rate
    io.write_speech(output, waveform, rate)
    seconds, doubtful = round(len(waveform) / rate, 3), [part.text for part in parts if part.is_doubtful]
    display.doubtful(doubtful)
    with io.texts_beside(output):
        if json:
            facts = {"text": text, "audio": str(output), "rate": rate, "duration_s": seconds}
            display.json_line({**facts, "spoken": [part.text for part in parts], "doubtful": doubtful})
        else:
            display.written(output, seconds)


def chat(
    seed: Seed = None,
    model: Model = DEFAULT_MODEL,
    device: Device = DEFAULT_DEVICE,
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Chat in text, one line a turn; an empty line or the end of input ends it.

    A line without an answer is reported and left out of the history; the exit code is then not 0.
    """
    from echat.cli import display, engines, records
    from echat.cli.errors import explain
    from echat.dialogue.turns import Conversation, UserTurn
    from echat.errors import ModelError

    engine = engines.open_engine(model, device, precision=precision)
    turns: list[Turn] = []
    is_noted, code = False, 0
    for line in _typed_lines():
        question = UserTurn(text=line)
        try:
            answer = engine.run_with_retry(Conversation([*turns, question]), "t2t", seed)
        except (ValueError, ModelError) as error:
            code, message = explain(error)
            print(f"error: {message}", file=sys.stderr)
            continue
        is_noted = is_noted or display.note_dropped_turns(engine, answer)
        turns += [question, answer.as_turn()]
        if json:
            display.json_line(records.reply_record(answer, "t2t", text=line))
        else:
            display.chat_line(answer.text)
    raise typer.Exit(code)


def _typed_lines() -> Iterator[str]:
    """Lines up to the first empty one; a terminal shows a prompt."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            print("you: ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
