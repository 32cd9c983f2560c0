"""Inspection of one record: its fields, the token sequence it becomes, its sounds and spectrograms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from echat.audio.features import MEL_RATE, N_MELS, SAMPLE_RATE, EncoderInput, log_mel
from echat.audio.waveform import write
from echat.data import storage
from echat.data.audio_loading import load_audio
from echat.data.conversation import build_conversation
from echat.data.defects import DataError, Defect, DefectKind
from echat.data.eligibility import can_serve
from echat.data.sample import AudioRef, Sample
from echat.data.tools.statistics import picture
from echat.dialogue.rendering import AudioSegment, Segment, TextSegment, render
from echat.dialogue.tasks import TASKS, Profile, Task, get_task
from echat.dialogue.vocabulary import Tokenizer, Vocabulary

_SHOWN_IDS = 12  # speech ids at each end of a span that are shown


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """Neighbouring positions of a sequence that are of one kind, and targets or not."""

    begin: int
    count: int
    kind: str  # text, speech, sound
    learn: bool
    content: str


def facts(sample: Sample) -> dict[str, Any]:
    """Name and value of every field that the record has, for people."""
    found: dict[str, Any] = {
        "key": sample.key,
        "corpus": sample.source,
        "task": sample.task or "left to the recipe",
        "serves": ", ".join(eligible_tasks(sample)) or "no task",
        "sound": _format_audio(sample.audio),
        "stated seconds": sample.seconds,
        "text": sample.text,
        **sample.labels.as_dict(),
        "prompt": sample.prompt,
        "target": sample.target,
        "thought": sample.thought,
        "reply": sample.reply,
        "reply_emotion": sample.reply_emotion,
        "reply sound": _format_audio(sample.reply_audio),
        "speech ids": len(sample.speech_ids) if sample.speech_ids else None,
        "language": sample.language,
        "split": sample.split,
    }
    for number, turn in enumerate(sample.history, 1):
        found[f"turn {number}"] = _present(sound=_format_audio(turn.audio), text=turn.text, reply=turn.reply)
    return _present(**found, **({"further fields": dict(sample.extra)} if sample.extra else {}))


def eligible_tasks(sample: Sample) -> list[str]:
    """Tasks that the record can serve; its own alone where it names one."""
    names = TASKS if sample.task is None else (sample.task,)
    return [name for name in names if can_serve(sample, get_task(name))]


def sequence(
    sample: Sample,
    task: str | None,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    encoder: EncoderInput,
    profile: Profile,
) -> tuple[str, list[SequenceSpan]]:
    """The task, and the token sequence of the record with its targets.

    Without ``task`` it is the record's own, else the last one of the table that it serves. Raises DataError
    for a record that cannot serve the task, and for sound that cannot be decoded.
    """
    row = get_task(task or sample.task or _last_eligible(sample))
    if not can_serve(sample, row):
        eligible = ", ".join(eligible_tasks(sample)) or "none"
        reason = f"task {row.name}: expected its input and target, found a record for {eligible}"
        raise DataError(Defect(DefectKind.UNWANTED, sample.source, key=sample.key, reason=reason))
    conversation = build_conversation(sample, row, *_load_mels(sample, row, encoder.n_mels))
    segments = render(conversation, row, tokenizer, vocabulary, profile)
    return row.name, list(_spans(segments, tokenizer, vocabulary, encoder))


def sounds(sample: Sample) -> Iterator[tuple[str, AudioRef]]:
    """(name, reference) of each sound of the record."""
    named = {"question": sample.audio, "reply": sample.reply_audio}
    named |= {f"turn{number}": turn.audio for number, turn in enumerate(sample.history, 1)}
    return ((name, ref) for name, ref in named.items() if ref is not None)


def write_sounds(sample: Sample, folder: Path) -> list[Path]:
    """Each sound as a 16 kHz WAV, as the encoder gets it, and its spectrogram; returns the paths of all."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, ref in sounds(sample):
        waveform, _ = load_audio(ref, allow_silence=True)
        path = folder / f"{storage.file_name(sample.key)}.{name}.wav"
        storage.refuse_file(path, [ref.path])
        write(path, waveform, SAMPLE_RATE)
        picture = path.with_suffix(".png")
        write_spectrogram(waveform, picture, f"{sample.key}, {name}")
        written += [path, picture]
    return written


def write_spectrogram(waveform: Tensor, path: Path, title: str, n_mels: int = N_MELS) -> None:
    """The log-mel spectrogram of 16 kHz ``(samples,)``, as the encoder reads it, as a PNG."""
    mel = log_mel(waveform, n_mels)  # (frames, n_mels)
    with picture(path) as axes:
        extent = (0.0, len(mel) / MEL_RATE, 0.0, float(mel.shape[1]))
        axes.imshow(mel.T.numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma")
        axes.set_xlabel("seconds")
        axes.set_ylabel("mel band")
        axes.set_title(_plain(title))


def _last_eligible(sample: Sample) -> str:
    eligible = eligible_tasks(sample)
    if not eligible:
        reason = "expected input and target of some task, found too little for any"
        raise DataError(Defect(DefectKind.UNWANTED, sample.source, key=sample.key, reason=reason))
    return eligible[-1]


def _load_mels(sample: Sample, task: Task, n_mels: int) -> tuple[Any, list[Any]]:
    """Mels of the question and of earlier turns, where the task has audio input."""

    def mel(ref: AudioRef | None) -> Any:
        return None if ref is None or task.input_modality != "audio" else log_mel(load_audio(ref)[0], n_mels)

    return mel(sample.audio), [mel(turn.audio) for turn in sample.history]


def _spans(
    segments: list[Segment], tokenizer: Tokenizer, vocabulary: Vocabulary, encoder: EncoderInput
) -> Iterator[SequenceSpan]:
    begin = 0
    for kind, is_target, group in _runs(segments):
        if kind == "sound":
            frames = sum(len(segment.audio) for segment in group if isinstance(segment, AudioSegment))
            count, content = encoder.llm_frames(frames), f"{frames / MEL_RATE:.2f} s"
        else:
            ids = [id_ for segment in group if not isinstance(segment, AudioSegment) for id_ in segment.ids]
            count = len(ids)
            content = (
                _format_text(ids, tokenizer, vocabulary)
                if kind == "text"
                else _format_speech_ids(ids, vocabulary)
            )
        yield SequenceSpan(begin, count, kind, is_target, content)
        begin += count


def _runs(segments: list[Segment]) -> Iterator[tuple[str, bool, list[Segment]]]:
    """Neighbours of one kind together; a sound stays alone."""
    run: list[Segment] = []
    for segment in segments:
        same = run and type(segment) is type(run[-1]) and segment.is_target == run[-1].is_target
        if run and not (same and not isinstance(segment, AudioSegment)):
            yield _kind(run[0]), run[0].is_target, run
            run = []
        run.append(segment)
    if run:
        yield _kind(run[0]), run[0].is_target, run


def _kind(segment: Segment) -> str:
    if isinstance(segment, AudioSegment):
        return "sound"
    return "text" if isinstance(segment, TextSegment) else "speech"


def _format_text(ids: list[int], tokenizer: Tokenizer, vocabulary: Vocabulary) -> str:
    """Text as it is, the ids between turns by name: a tokenizer would pass them over."""
    names = {vocabulary.turn_start: "[turn]", vocabulary.text_end: "[end]"}
    runs = groupby(ids, key=names.get)
    return "".join(name * len(list(run)) if name else tokenizer.decode(list(run)) for name, run in runs)


def _format_speech_ids(ids: list[int], vocabulary: Vocabulary) -> str:
    """Codec ids as numbers, the others by name."""
    names = {
        vocabulary.speech_boundary: "[speech]",
        vocabulary.user_audio_begin: "[sound]",
        vocabulary.user_audio_end: "[/sound]",
    }
    shown = ids if len(ids) <= 2 * _SHOWN_IDS else [*ids[:_SHOWN_IDS], None, *ids[-_SHOWN_IDS:]]
    return " ".join("…" if id_ is None else names.get(id_, str(id_)) for id_ in shown)


def _format_audio(ref: AudioRef | None) -> str | None:
    if ref is None:
        return None
    if ref.start_seconds is None and ref.end_seconds is None:
        return ref.where
    end = "its end" if ref.end_seconds is None else f"{ref.end_seconds:g} s"
    return f"{ref.where}, {ref.start_seconds or 0:g} s to {end}"


def _present(**found: Any) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value not in (None, "")}


def as_json(sample: Sample, task: str, spans: list[SequenceSpan], written: list[Path]) -> Mapping[str, Any]:
    """Everything shown, for programs."""
    learned = sum(span.count for span in spans if span.learn)
    return {
        **facts(sample),
        "sequence": {
            "task": task,
            "positions": sum(span.count for span in spans),
            "learned": learned,
            "stretches": [asdict(span) for span in spans],
        },
        "written": [str(path) for path in written],
    }


def _plain(text: str) -> str:
    """Text without characters that the font lacks or matplotlib reads as a formula."""
    return text.encode("ascii", "replace").decode().replace("$", r"\$")
