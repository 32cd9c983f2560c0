"""Texts of published records: normalisation, and the training option that hides transcripts."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from echat.data.sample import Sample
from echat.dialogue.label_kinds import LABEL_KINDS
from echat.dialogue.labels import LabelKind, canonical, split_trailing_tags, tag
from echat.dialogue.tasks import TASKS, Task

_AROUND_IDEOGRAPH = re.compile(r"\s*([\u4e00-\u9fff])\s*")
_AROUND_TAG = re.compile(r"\s*([<>])\s*")
_TAG_WORD = re.compile(r"<([^<>]*)>")
_LABEL_ALONE = {  # task of words and one label -> task of that label
    both.name: alone.name
    for both in TASKS.values()
    for alone in TASKS.values()
    if both.transcribes and not alone.transcribes and len(both.labels) == 1 and both.labels == alone.labels
}


def normalise(text: str, task: Task) -> str:
    """Line feeds, blanks, ages and styles as the published training text has them; bare transcripts lower."""
    text = _AROUND_IDEOGRAPH.sub(r"\1", text.replace("\n", " ").strip())
    text = _AROUND_TAG.sub(r"\1", text)
    for kind in task.labels:
        if LABEL_KINDS[kind].osum_respelled:
            text = _TAG_WORD.sub(partial(_canonical_tag, kind), text)
    return text.lower() if task.writes_bare_words else text


def _canonical_tag(kind: LabelKind, found: re.Match[str]) -> str:
    """``<MIDDLE_AGE>`` is ``<ADULT>``, ``<小说>`` is ``<有声书>``."""
    label = canonical(kind, found[1])
    return found[0] if label is None else tag(kind, label)


def without_transcript(sample: Sample) -> Sample:
    """Words and one label become the label alone, words and a reply the reply alone; others stay as they are.

    This is the published training option that keeps a model from leaning on the transcript.
    """
    if sample.task is not None and TASKS[sample.task].target == "answered":
        return replace(sample, task="s2t")
    if sample.task not in _LABEL_ALONE or not sample.target:
        return sample
    _, tags = split_trailing_tags(sample.target)
    if not tags:
        return sample
    extra = {name: value for name, value in sample.extra.items() if name not in ("txt", "task")}
    return replace(sample, task=_LABEL_ALONE[sample.task], target=f"<{tags[0]}>", extra=extra)
