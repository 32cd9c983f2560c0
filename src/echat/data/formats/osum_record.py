"""The published record: ``key``, ``wav``, ``txt``, ``task`` and a dictionary ``extra``, as a sample and back.

The three published formats (raw, shard, combine) write this one record in three ways; what ``txt`` means
depends on the task: the finished target of an understanding task, otherwise the reply. Where the published
loader and its documentation differ, the documented meaning is read: docs/data_formats.md lists each case.

Fields of ours without a published counterpart are stored in ``extra["echat"]``, which other readers ignore.
What parsing normalises (white space of ``txt``, aliases of a tag) is kept beside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from echat.data.defects import DataError, Defect, DefectKind
from echat.data.formats.jsonl import json_object, present
from echat.data.formats.osum_text import normalise
from echat.data.sample import AudioRef, Sample, Turn, speech_ids_of
from echat.dialogue.label_kinds import LABEL_KINDS
from echat.dialogue.labels import Labels, canonical, split_reply_emotion, split_trailing_tags, tag
from echat.dialogue.tasks import TASKS, Task, get_task, task_for_tag
from echat.dialogue.understanding import REPLY_BEGIN

COMBINES_LIST, COMBINES_TAR_ROOT = "combines_list.txt", "combines_tar_root.txt"
SHARDS_LIST, RAW_LIST = "shards_list.txt", "data.list"
ONLY_META = "only-meta"  # what a combine row has instead of a path
DEFAULT_TAG = "<TRANSCRIBE>"
REPLY_SOUND, QUESTION_SOUND = "reply_wav", "question_wav"  # where ``wav`` is the other of the two
FILLER = "none"  # what published writers put where nothing is known
FILLED = ("lang", "speaker", "emotion", "gender")  # fields that they fill with it
_OWN = "echat"
_OWN_FIELDS = ("task", "text", "prompt", "target", "reply", "reply_emotion", "speech_ids", "thought") + (
    "language",
    "split",
    "source",
    "seconds",
)
_HISTORY_TEXT = re.compile(r"txt_(\d+)")
_LABEL_FIELDS = tuple((kind, row.osum_field) for kind, row in LABEL_KINDS.items() if row.osum_field)
_UNKNOWN_LABELS = ("<none>", "<null>", "none", "null", "")


def from_record(record: Mapping[str, Any], sounds: Mapping[str, AudioRef], source: str = "") -> Sample:
    """The sample of a published record whose sounds (``wav``, ``wav_1``, ...) have been found.

    ``source`` is the corpus where the record names none. Raises DataError that names the field.
    """
    rest = {name: value for name, value in record.items() if not _is_sound(name)}
    key, txt = rest.pop("key", None), rest.pop("txt", None)
    if not isinstance(key, str) or not key:
        raise _error(DefectKind.MISSING_FIELD, f"field key: expected a non-empty string, found {key!r}")
    if not isinstance(txt, str):
        raise _error(DefectKind.MISSING_FIELD, f"field txt: expected text, found {txt!r}")
    txt = txt.strip()
    extra = extra_of(rest.pop("extra", None))
    own = extra.pop(_OWN, None) or {}
    rest |= own.get("fields", {})
    rest = {name: value for name, value in rest.items() if not (name in FILLED and value == FILLER)}
    task = _task(rest, extra)
    text = normalise(txt, task)
    if text != txt:
        rest["txt"] = txt
    sample = Sample(
        key=key,
        task=task.name,
        history=_history(rest, extra, sounds),
        language=_pop_text(rest, "lang"),
        source=_pop_text(extra, "dataset") or source,
        seconds=_seconds(extra.pop("duration", None)),
        speech_ids=speech_ids_of(extra.pop("speech_token", None) or rest.pop("speech_token", None)),
        thought=_pop_text(extra, "think_str"),
    )
    sample = _assign_text(sample, task, text, extra)
    sample = replace(_assign_audio(sample, task, sounds), labels=_labels(rest, extra, task, text))
    return _with_own(replace(sample, extra=rest | ({"extra": extra} if extra else {})), own)


def to_record(sample: Sample) -> tuple[dict[str, Any], dict[str, AudioRef]]:
    """The record that :func:`from_record` reads back as an equal sample, and its sounds by field.

    Further fields that would be read as something else, because the published record gives their names a
    meaning, travel together among what only we know.
    """
    task = _published_task(sample)
    sounds = _sounds(sample, task)
    try:
        record = _complete(sample, task, sounds)
        if from_record(record, sounds).extra == sample.extra:
            return record, sounds
    except Exception:  # whatever these fields hold: the record without them is sound
        pass
    record = _complete(replace(sample, extra={}), task, sounds)
    record["extra"][_OWN] = {**record["extra"].get(_OWN, {}), "extra": dict(sample.extra)}
    return record, sounds


def _complete(sample: Sample, task: Task, sounds: dict[str, AudioRef]) -> dict[str, Any]:
    """The record, with labels and what only we know."""
    record = _published(sample, task)
    extra = record["extra"]
    seen = from_record(record, sounds)
    for kind, name in _LABEL_FIELDS:
        value = getattr(sample.labels, kind)
        if value not in (None, "none", getattr(seen.labels, kind)):  # "none" would be read as unknown
            extra[name] = tag(kind, value)
    seen = from_record(record, sounds)
    own: dict[str, Any] = {
        name: getattr(sample, name) for name in _OWN_FIELDS if getattr(sample, name) != getattr(seen, name)
    }
    if sample.labels != seen.labels:
        own["labels"] = sample.labels.as_dict()
    if sample.history != seen.history:
        own["questions"] = [turn.text for turn in sample.history]
    if own:
        extra[_OWN] = own
    return record


def extra_of(value: object) -> dict[str, Any]:
    """``extra`` is an object or text that holds one; anything else counts as empty, as published."""
    if isinstance(value, str):
        try:
            value = json_object(value, "", "")
        except DataError:
            return {}
    return dict(value) if isinstance(value, dict) else {}


def _is_sound(name: str) -> bool:
    return name in ("wav", "start", "end", REPLY_SOUND, QUESTION_SOUND) or bool(
        re.fullmatch(r"wav_\d+", name)
    )


def _task(rest: dict[str, Any], extra: Mapping[str, Any]) -> Task:
    given = rest.pop("task", None)
    if given in (None, "", "none"):
        given = DEFAULT_TAG
    thinks = "language" if extra.get("think_str") else "label"
    try:
        task = task_for_tag(str(given).replace("><", "> <"), thinks)  # type: ignore[arg-type]
    except ValueError as error:
        raise _error(DefectKind.UNKNOWN_TASK, f"field task: {error}") from error
    if given != task.tag:
        rest["task"] = given
    return task


def _assign_text(sample: Sample, task: Task, text: str, extra: dict[str, Any]) -> Sample:
    """What the task calls ``txt`` where it belongs."""
    if task.target == "answered":
        words, _, reply = text.partition(REPLY_BEGIN)
        return replace(sample, text=words, reply=reply)
    if task.understands:
        spoken = text.split("<", 1)[0] if task.transcribes else ""
        return replace(sample, target=text, text=spoken or None)
    question = _pop_text(extra, "q_txt") or extra.get("question")
    emotion, reply = split_reply_emotion(text)
    return replace(sample, text=question, reply=reply, reply_emotion=emotion)


def _assign_audio(sample: Sample, task: Task, sounds: Mapping[str, AudioRef]) -> Sample:
    """``wav`` is the reply where the task reads aloud, otherwise the question."""
    if task.reads_aloud:
        return replace(sample, reply_audio=sounds.get("wav"), audio=sounds.get(QUESTION_SOUND))
    return replace(sample, audio=sounds.get("wav"), reply_audio=sounds.get(REPLY_SOUND))


def _sounds(sample: Sample, task: Task) -> dict[str, AudioRef]:
    first, second, name = sample.audio, sample.reply_audio, REPLY_SOUND
    if task.reads_aloud:
        first, second, name = second, first, QUESTION_SOUND
    found = {"wav": first, name: second}
    found |= {f"wav_{number}": turn.audio for number, turn in enumerate(sample.history, 1)}
    return {name: ref for name, ref in found.items() if ref is not None}


def _published_task(sample: Sample) -> Task:
    """The record's task; for one that leaves it to the recipe, the one that shows most of it to others."""
    if sample.task is not None:
        return get_task(sample.task)
    if sample.target is not None or not sample.reply:
        return TASKS["asr"]
    if sample.audio is None:
        return TASKS["tts" if sample.speech_ids and not sample.text else "t2t"]
    return TASKS["s2s" if sample.speech_ids else "s2t"]


def _published(sample: Sample, task: Task) -> dict[str, Any]:
    """The record without sounds, labels and what only we know."""
    top = {name: value for name, value in sample.extra.items() if name not in ("extra", "txt", "task")}
    extra = dict(sample.extra.get("extra", {}))
    if not task.understands and sample.text != extra.get("question"):
        extra |= present(q_txt=sample.text)
    extra |= present(
        dataset=sample.source or None,
        think_str=sample.thought,
        speech_token=list(sample.speech_ids) if sample.speech_ids else None,
        duration=sample.seconds,
    )
    for number, turn in enumerate(sample.history, 1):
        top[f"txt_{number}"] = turn.reply
        extra |= present(**{f"speech_token_{number}": list(turn.speech_ids) if turn.speech_ids else None})
    given_tag = sample.extra.get("task")
    is_alias = isinstance(given_tag, str) and _tag_of(given_tag, task) == task.tag
    txt: str = _txt(sample, task)
    written: object = sample.extra.get("txt")
    if isinstance(written, str) and normalise(written, task) == txt:
        txt = written
    record = {"key": sample.key, "txt": txt, "task": given_tag if is_alias else task.tag}
    return {**record, **top, **present(lang=sample.language), "extra": extra}


def _tag_of(given_tag: str, task: Task) -> str | None:
    try:
        return task_for_tag(given_tag.replace("><", "> <"), task.thinks or "label").tag
    except ValueError:
        return None


def _txt(sample: Sample, task: Task) -> str:
    if task.target == "answered":
        return f"{sample.text or ''}{REPLY_BEGIN}{sample.reply or ''}"
    if task.understands:
        return sample.target if sample.target is not None else sample.text or ""
    emotion = f"<{sample.reply_emotion}>" if sample.reply_emotion else ""
    return emotion + (sample.reply or "")


def _with_own(sample: Sample, own: Mapping[str, Any]) -> Sample:
    """The fields that only we know."""
    if not own:
        return sample
    changes = {name: own[name] for name in (*_OWN_FIELDS, "extra") if name in own}
    if not isinstance(changes.get("extra", {}), dict):
        raise _error(
            DefectKind.BAD_FIELD, f"field extra.{_OWN}.extra: expected an object, found {own['extra']!r}"
        )
    if "speech_ids" in changes:
        changes["speech_ids"] = speech_ids_of(changes["speech_ids"])
    if "labels" in own:
        changes["labels"] = Labels(**own["labels"])
    if "questions" in own:
        turns = zip(sample.history, own["questions"], strict=True)
        changes["history"] = tuple(replace(turn, text=text) for turn, text in turns)
    return replace(sample, **changes)


def _history(rest: dict[str, Any], extra: dict[str, Any], sounds: Mapping[str, AudioRef]) -> tuple[Turn, ...]:
    numbers = sorted(int(m[1]) for m in map(_HISTORY_TEXT.fullmatch, rest) if m)
    if numbers != list(range(1, len(numbers) + 1)):
        expected = f"1..{len(numbers)} without gaps"
        raise _error(DefectKind.BAD_FIELD, f"fields txt_N: expected {expected}, found {numbers}")
    turns = []
    for n in numbers:
        ids = speech_ids_of(extra.pop(f"speech_token_{n}", None), f"speech_token_{n}")
        reply = rest.pop(f"txt_{n}")
        if not isinstance(reply, str):
            raise _error(DefectKind.BAD_FIELD, f"field txt_{n}: expected text, found {reply!r}")
        turns.append(Turn(sounds.get(f"wav_{n}"), None, reply.strip(), ids))
    return tuple(turns)


def _labels(rest: Mapping[str, Any], extra: dict[str, Any], task: Task, text: str) -> Labels:
    """What ``extra`` says, else the fields of the record, else the tags at the end of the target.

    An alias of a tag stays in ``extra``, so that the record is written as it was read.
    """
    found: dict[str, str | None] = {}
    tags = split_trailing_tags(text)[1] if task.labels else []
    if len(tags) == len(task.labels):
        found = {kind: canonical(kind, word) for kind, word in zip(task.labels, tags)}
    for kind, name in _LABEL_FIELDS:
        for fields, field in ((rest, kind), (extra, name)):
            value = fields.get(field)
            if isinstance(value, str) and value.lower() not in _UNKNOWN_LABELS:
                found[kind] = canonical(kind, value) or found.get(kind)
        value = found.get(kind)
        if value is not None and extra.get(name) == tag(kind, value):
            del extra[name]
    return Labels(**found)


def _seconds(value: object) -> float | None:
    """A number, or one in text; 0 is how writers say that they do not know."""
    try:
        return float(value) or None if not isinstance(value, int) else value or None  # type: ignore[arg-type]
    except (TypeError, ValueError):
        if value in (None, "", "none"):
            return None
        raise _error(DefectKind.BAD_FIELD, f"field duration: expected seconds, found {value!r}") from None


def _pop_text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.pop(name, None)
    if value is None or isinstance(value, str):
        return value
    raise _error(DefectKind.BAD_FIELD, f"field {name}: expected text, found {value!r}")


def _error(kind: DefectKind, reason: str) -> DataError:
    return DataError(Defect(kind, "", reason=reason))
