"""The published raw format: JSON lines with ``key``, ``wav``, ``txt``, ``task`` and a dictionary ``extra``.

What ``txt`` means depends on the task: the finished target of an understanding task, otherwise the reply.
Where the published loader and its documentation differ (an emptied label-only target, a question that takes
the place of a transcription's prompt), the documented meaning is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from echat.checkpoint import atomic_path
from echat.data.sample import AudioRef, DataError, Sample, Turn, json_lines, speech_ids_of
from echat.dialogue.labels import Labels, canonical, split_reply_emotion, tag
from echat.dialogue.tasks import Task, get_task, task_for_tag

DEFAULT_TAG = "<TRANSCRIBE>"
_AROUND_IDEOGRAPH = re.compile(r"\s*([\u4e00-\u9fff])\s*")
_AROUND_TAG = re.compile(r"\s*([<>])\s*")
_HISTORY_TEXT = re.compile(r"txt_(\d+)")
_UNKNOWN_LABELS = ("<none>", "<null>", "none", "null")


def read_raw(path: Path | str, root: Path | str | None = None) -> list[Sample]:
    """All records of a raw list. Relative audio paths start at ``root`` (default: the folder of the list)."""
    path = Path(path)
    folder = Path(root) if root is not None else path.parent
    samples = []
    for number, record in json_lines(path):
        try:
            samples.append(from_raw(record, folder, source=path.parent.name))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    if not samples:
        raise DataError(f"{path}: expected raw records, found none")
    return samples


def write_raw(samples: Iterable[Sample], path: Path | str) -> int:
    """Write samples (each with ``task``) as a raw list, whole or not at all; returns how many."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for sample in samples:
            lines.write(json.dumps(to_raw(sample), ensure_ascii=False) + "\n")
            count += 1
    return count


def from_raw(record: Mapping[str, Any], folder: Path, source: str = "") -> Sample:
    """One raw record. Fields only the published format has stay in ``Sample.extra``."""
    rest = dict(record)
    key = rest.pop("key", None)
    if not isinstance(key, str) or not key:
        raise DataError(f"record: field key: expected a non-empty string, found {key!r}")
    missing = [name for name in ("wav", "txt") if not isinstance(rest.get(name), str)]
    if missing:
        raise DataError(f"record {key}: field {missing[0]}: expected text, found {rest.get(missing[0])!r}")
    extra = _extra(rest.pop("extra", None))
    task = task_for_tag(
        rest.pop("task", None) or DEFAULT_TAG, "language" if extra.get("think_str") else "label"
    )
    audio = _audio(rest, folder)
    text = normalise(rest.pop("txt"), task)
    sample = Sample(
        key=key,
        task=task.name,
        history=_history(rest, extra, folder, key),
        language=rest.pop("lang", None),
        source=source or str(extra.get("dataset", "")),
        seconds=extra.pop("duration", None),
    )
    ids = extra.pop("speech_token", None) or rest.pop("speech_token", None)
    sample = replace(
        sample,
        speech_ids=speech_ids_of(ids, f"record {key}"),
        labels=_labels(extra),
        thought=extra.pop("think_str", None),
        extra={**rest, "extra": extra},
    )
    return _place_text(sample, task, text, audio)


def _place_text(sample: Sample, task: Task, text: str, audio: AudioRef | None) -> Sample:
    """What the task calls ``txt`` and ``wav``, where they belong."""
    if task.understands and task.name != "asr_chat":
        words = text.split("<", 1)[0] if task.transcribes else None
        return replace(sample, audio=audio, target=text, text=words or None)
    if task.name == "asr_chat":
        words, _, reply = text.partition("<开始回答>")
        return replace(sample, audio=audio, text=words, reply=reply)
    inner = sample.extra["extra"]
    question = inner.pop("q_txt", None) or inner.get("question")
    emotion, reply = split_reply_emotion(text)
    sample = replace(sample, text=question, reply=reply, reply_emotion=emotion)
    if task.hears == "audio":
        return replace(sample, audio=audio)
    return replace(sample, reply_audio=audio) if task.writes_speech else sample


def to_raw(sample: Sample) -> dict[str, Any]:
    """The record that :func:`from_raw` reads back as an equal sample (given absolute audio paths)."""
    if sample.task is None:
        raise DataError(f"record {sample.key}: expected a task to write it for, found none; set Sample.task")
    task = get_task(sample.task)
    top = {name: value for name, value in sample.extra.items() if name != "extra"}
    extra = dict(sample.extra.get("extra", {}))
    extra.update(_label_fields(sample.labels))
    extra.update(
        _present(
            duration=sample.seconds,
            think_str=sample.thought,
            speech_token=list(sample.speech_ids) if sample.speech_ids else None,
            dataset=extra.get("dataset", sample.source or None),
        )
    )
    if not task.understands:
        extra.update(_present(q_txt=sample.text))
    audio = sample.audio or sample.reply_audio
    record = {
        "key": sample.key,
        "txt": _txt(sample, task),
        "wav": audio.path if audio else "",
        "task": task.tag,
        **top,
        **_present(
            lang=sample.language,
            start=audio.start_seconds if audio else None,
            end=audio.end_seconds if audio else None,
        ),
    }
    for position, turn in enumerate(sample.history, 1):
        record[f"txt_{position}"] = turn.reply
        record.update(_present(**{f"wav_{position}": turn.audio.path if turn.audio else None}))
        extra.update(
            _present(**{f"speech_token_{position}": list(turn.speech_ids) if turn.speech_ids else None})
        )
    return {**record, "extra": extra}


def normalise(text: str, task: Task) -> str:
    """Line feeds and blanks as the published training text has them; plain transcripts in lower case."""
    text = _AROUND_TAG.sub(r"\1", _AROUND_IDEOGRAPH.sub(r"\1", text.replace("\n", " ").strip()))
    return text.lower() if task.name == "asr" else text


def _txt(sample: Sample, task: Task) -> str:
    if sample.target is not None:
        return sample.target
    if task.name == "asr_chat":
        return f"{sample.text}<开始回答>{sample.reply}"
    if task.understands:
        return sample.text or ""
    emotion = f"<{sample.reply_emotion}>" if sample.reply_emotion else ""
    return emotion + (sample.reply or "")


def _extra(value: object) -> dict[str, Any]:
    """``extra`` is an object or text that holds one; anything else counts as empty, as published."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return {}
    return dict(value) if isinstance(value, dict) else {}


def _audio(rest: dict[str, Any], folder: Path) -> AudioRef | None:
    path, start, end = rest.pop("wav"), rest.pop("start", None), rest.pop("end", None)
    return AudioRef(str(folder / path), start, end) if path else None


def _history(rest: dict[str, Any], extra: dict[str, Any], folder: Path, key: str) -> tuple[Turn, ...]:
    numbers = sorted(int(m[1]) for m in map(_HISTORY_TEXT.fullmatch, rest) if m)
    if numbers != list(range(1, len(numbers) + 1)):
        raise DataError(
            f"record {key}: fields txt_N: expected 1..{len(numbers)} without gaps, found {numbers}"
        )
    turns = []
    for n in numbers:
        path = rest.pop(f"wav_{n}", None)
        ids = speech_ids_of(extra.pop(f"speech_token_{n}", None), f"record {key}, turn {n}")
        turns.append(Turn(AudioRef(str(folder / path)) if path else None, None, rest.pop(f"txt_{n}"), ids))
    return tuple(turns)


_LABEL_FIELDS = (("age", "age"), ("gender", "gender"), ("emotion", "q_emotion"), ("sound_event", "caption"))


def _labels(extra: dict[str, Any]) -> Labels:
    found = {}
    for kind, name in _LABEL_FIELDS:
        value = extra.pop(name, None)
        known = isinstance(value, str) and value.lower() not in _UNKNOWN_LABELS
        found[kind] = canonical(kind, value) if known else None  # type: ignore[arg-type]
    return Labels(**found)


def _label_fields(labels: Labels) -> dict[str, str]:
    values = ((kind, name, getattr(labels, kind)) for kind, name in _LABEL_FIELDS)
    return {name: tag(kind, value) for kind, name, value in values if value is not None}  # type: ignore[arg-type]


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
