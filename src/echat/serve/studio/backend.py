"""Computations of the studio, without Gradio: streamed answers, spectrograms, batches of files."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from echat.audio.errors import AudioError
from echat.audio.features import SAMPLE_RATE
from echat.audio.resampling import resample
from echat.audio.waveform import read, to_int16, write
from echat.data.tools.inspection import write_spectrogram
from echat.dialogue.labels import KINDS, SHOWN_KINDS, in_english
from echat.dialogue.tasks import Task, get_task
from echat.dialogue.thinking import SLOTS, LabelThought, Thought
from echat.dialogue.turns import Conversation, ask
from echat.dialogue.understanding import parse_understanding
from echat.infer import events
from echat.infer.engine import Engine
from echat.infer.events import Reply
from echat.token2wav.voice import VoicePrompt

GradioAudio = tuple[int, np.ndarray]  # rate in Hz, (samples,) int16


@dataclass(frozen=True)
class PartialAnswer:
    """An answer as far as it is generated, in the form that the studio shows."""

    thought: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    audio: GradioAudio | None = None
    picture: str | None = None  # path of a PNG
    seconds: str = ""
    raw_text: str = ""


@dataclass(frozen=True)
class Studio:
    """One engine, and a folder for pictures and tables."""

    engine: Engine
    folder: Path

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.engine.home.name if self.engine.home else self.engine.name

    # --- one question

    def question(self, path: str | None) -> Tensor:
        """The waveform (samples,) at 16 kHz of an uploaded or recorded file."""
        if not path:
            raise ValueError("question: expected a recording or a file, found none; record or upload one")
        return read(path, SAMPLE_RATE)[0]

    def answer(
        self,
        conversation: Conversation,
        task: str,
        voice: VoicePrompt | str | None = None,
        seed: int | None = None,
    ) -> Iterator[PartialAnswer]:
        """Stream an answer; the last item is complete."""
        shown, thinking = PartialAnswer(), ""
        for event in self.engine.reply(conversation, task, voice=voice, seed=seed, show_thinking=True):
            match event:
                case events.ThoughtPiece(text):
                    thinking += text
                    shown = replace(shown, thought=thinking)
                case events.Thought(thought, _):
                    shown = replace(shown, thought=thought_text(thought), labels=thought_labels(thought))
                case events.TextPiece(text):
                    shown = replace(shown, text=shown.text + text)
                case events.Done(reply):
                    yield self._final_answer(reply, shown, get_task(task))
                    return
                case _:
                    continue
            yield shown

    def _final_answer(self, reply: Reply, shown: PartialAnswer, task: Task) -> PartialAnswer:
        if task.understands:
            shown = replace(shown, labels=understood(task, reply), text="")
        else:
            shown = replace(shown, text=reply.text)
        if reply.waveform is not None:
            rate = reply.rate or 1
            picture = self.picture(reply.waveform, rate, "answer")
            shown = replace(shown, audio=(rate, to_int16(reply.waveform)), picture=picture)
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in reply.seconds.items())
        return replace(shown, seconds=seconds, raw_text=reply.raw_text)

    def picture(self, waveform: Tensor, rate: int, title: str) -> str:
        """The spectrogram of a waveform (samples,): path of a new PNG."""
        path = self._new_file(f"{title}.png")
        write_spectrogram(resample(waveform.float(), rate, SAMPLE_RATE), path, title="")
        return str(path)

    # --- speech from text

    def voice(self, name: str | None, path: str | None) -> VoicePrompt | str | None:
        """The voice of a recording if there is one, else a voice of the model by name."""
        return self.engine.voice_from(path) if path else name

    def say(self, text: str, voice: VoicePrompt | str | None, seed: int | None) -> tuple[GradioAudio, str]:
        """Text to speech: the audio and its spectrogram."""
        waveform, rate = self.engine.say(text, voice, seed=seed)
        return (rate, to_int16(waveform)), self.picture(waveform, rate, "speech")

    # --- many files

    def batch(self, paths: Sequence[str], task: str, seed: int | None) -> tuple[list[list[str]], list[str]]:
        """Run a task on many files: rows of a table (see TABLE_HEADERS), and files to download: the records
        as JSON lines, and for a task that speaks a ZIP of the answers."""
        if not paths:
            raise ValueError("files: expected at least one sound file, found none; upload some")
        row = get_task(task)
        waveforms: dict[str, Tensor] = {}
        records: dict[str, dict[str, Any]] = {path: {"file": Path(path).name, "task": task} for path in paths}
        for path in paths:
            try:
                waveforms[path] = self.question(path)
            except AudioError as error:
                records[path]["error"] = str(error).replace(path, Path(path).name)
        replies = self.engine.run_batch(
            [ask(audio=waveform) for waveform in waveforms.values()], row, seed=seed, speak=row.writes_speech
        )
        for path, reply in zip(waveforms, replies, strict=True):
            records[path] |= record_of(row, reply)
        spoken = {
            path: reply for path, reply in zip(waveforms, replies, strict=True) if reply.waveform is not None
        }
        return [table_row(record) for record in records.values()], self._files(list(records.values()), spoken)

    def _files(self, records: list[dict[str, Any]], spoken: dict[str, Reply]) -> list[str]:
        lines = self._new_file("records.jsonl")
        lines.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), "utf-8")
        if not spoken:
            return [str(lines)]
        archive = lines.with_name("answers.zip")
        with zipfile.ZipFile(archive, "w") as members:
            for number, (path, reply) in enumerate(spoken.items(), 1):
                assert reply.waveform is not None
                wav = lines.with_name(f"{number:03}-{Path(path).stem}.wav")
                write(wav, reply.waveform, reply.rate or 1)
                members.write(wav, wav.name)
        return [str(lines), str(archive)]

    def _new_file(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder)) / name


def thought_text(thought: Thought) -> str:
    """The text of a thought; of a label thought the transcript."""
    return thought.transcript if isinstance(thought, LabelThought) else thought.text


def thought_labels(thought: Thought) -> dict[str, str]:
    """Label kinds and values in English; empty for a language thought."""
    if not isinstance(thought, LabelThought):
        return {}
    return {kind: in_english(getattr(thought, kind) or "unknown") for kind in SHOWN_KINDS if kind in SLOTS}


def understood(task: Task, reply: Reply) -> dict[str, str]:
    """The transcript and labels that an understanding task has in its target."""
    found = parse_understanding(task, reply.raw_text)
    rows = {"words": found.text} if task.transcribes else {}
    kinds = [kind for kind in KINDS if kind in task.labels]
    rows |= {kind: in_english(getattr(found.labels, kind) or "unknown") for kind in kinds}
    return rows | ({"reply": found.reply} if found.reply else {})


def record_of(task: Task, reply: Reply) -> dict[str, Any]:
    """The result of one file in a batch."""
    if task.understands:
        return {**understood(task, reply), "raw_text": reply.raw_text}
    thought = {} if reply.thought is None else {"thought": thought_text(reply.thought)}
    labels = {} if reply.thought is None else thought_labels(reply.thought)
    return {**thought, **labels, "reply": reply.text, "raw_text": reply.raw_text}


TABLE_HEADERS = ["file", "words", "labels", "reply", "error"]


def table_row(record: dict[str, Any]) -> list[str]:
    """One record as a row of the table."""
    shown = {"file", "task", "words", "thought", "reply", "error", "raw_text"}
    labels = ", ".join(f"{name}: {value}" for name, value in record.items() if name not in shown)
    words = record.get("words", record.get("thought", ""))
    return [record["file"], words, labels, record.get("reply", ""), record.get("error", "")]
