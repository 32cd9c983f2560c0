"""Validation of a corpus: every record parsed, every sound decoded; defects and statistics."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from echat.audio.errors import AudioError
from echat.audio.speech_tokens import CODEC_SIZE
from echat.audio.waveform import MAX_SECONDS, MIN_SECONDS
from echat.config import Config
from echat.data.audio_loading import load_audio
from echat.data.defects import DataError, Defect, DefectKind, DefectReport, defect_from, duplicate_key
from echat.data.eligibility import refuse_empty_range
from echat.data.formats.corpus import FormatOrAuto, open_corpus
from echat.data.formats.indexed_corpus import IndexedCorpus, RecordRow
from echat.data.sample import AudioRef, Sample
from echat.data.tools.executors import ExecutorName, run_jobs
from echat.data.tools.statistics import AudioLengths, CorpusStatistics
from echat.dialogue.tasks import TASKS

_SLACK_SECONDS, _SLACK = 0.1, 0.02  # a stated duration may be off by this, and by this share


class CheckConfig(Config):
    """What to look at, and what counts as wrong."""

    source: str  # any list, tar or folder that open_corpus opens
    format: FormatOrAuto = "auto"
    root: str | None = None  # where relative names of the source begin
    within: str | tuple[str, ...] | None = None  # further folders that sound may lie in; "/": all
    codec_size: int = Field(CODEC_SIZE, ge=1)  # speech ids from here up are wrong
    min_seconds: float = Field(MIN_SECONDS, ge=0)  # of each sound
    max_seconds: float = Field(MAX_SECONDS, gt=0)
    job_size: int = Field(250, ge=1)  # records looked at between two steps of the progress bar

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        refuse_empty_range(self.min_seconds, self.max_seconds)
        return self


@dataclass(slots=True)
class Findings:
    """Result of a check, or of a part of it."""

    records: int = 0  # looked at
    totals: CorpusStatistics = field(default_factory=CorpusStatistics)  # of the good ones
    defects: DefectReport = field(default_factory=DefectReport)
    bad: list[int] = field(default_factory=list)  # numbers of the records that are not good
    keys: list[np.ndarray] = field(default_factory=list)  # (good, 2): hash of the key, number of the record

    def merge(self, other: Findings) -> None:
        self.records += other.records
        self.totals.merge(other.totals)
        self.defects.merge(other.defects)
        self.bad += other.bad
        self.keys += other.keys

    def as_dict(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "bad": len(self.bad),
            "totals": self.totals.as_dict(),
            "defects": self.defects.as_dict(),
        }

    def __str__(self) -> str:
        """Everything but the defects, for people."""
        good = f", {self.totals.records:,} good" if self.bad else ", all good" if self.records else ""
        return f"records: {self.records:,}{good}\n{self.totals}"


def check(
    config: CheckConfig,
    workers: int = 1,
    strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    executor: ExecutorName = "local",
) -> Findings:
    """Check everything; ``strict`` stops at the first defect. A record counts with its first defect.

    ``progress`` is called with jobs done and jobs in all. Raises DataError where there is no such corpus.
    """
    open_checked.cache_clear()  # the source may have changed since
    corpus = open_checked(config)
    total = math.ceil(len(corpus) / config.job_size)
    found = Findings()
    for defect in corpus.defects():
        found.defects.add(defect)
        if strict:
            return found
    work = partial(check_job, config, strict)
    for done, job in enumerate(run_jobs(work, total, workers, executor), 1):
        found.merge(job)
        progress(done, total)
        if strict and found.defects:
            return found
    _find_repeated_keys(found, config)
    return found


def check_job(config: CheckConfig, strict: bool, number: int) -> Findings:
    """Look at the records of one job."""
    corpus = open_checked(config)
    found, keys = Findings(), []
    begin = number * config.job_size
    for index in range(begin, min(begin + config.job_size, len(corpus))):
        found.records += 1
        known = found.defects.total
        with found.defects.catch(config.source, f"record {index}"):
            sample, lengths = _examine(corpus, index, config)
            keys.append((_hash(sample.key), index))
            found.totals.add(sample, lengths)
        if found.defects.total > known:
            found.bad.append(index)
            if strict:
                break
    found.keys.append(np.array(keys, dtype=np.int64).reshape(-1, 2))
    return found


@lru_cache(maxsize=2)
def open_checked(config: CheckConfig) -> IndexedCorpus:
    """The corpus that a check is about, once per process."""
    return open_corpus(
        config.source, config.format, root=config.root, within=config.within, codec_size=config.codec_size
    )


def _examine(corpus: IndexedCorpus, index: int, config: CheckConfig) -> tuple[Sample, AudioLengths]:
    """Read a record and decode its sounds. Raises DataError."""
    sample = corpus[index]
    measured: dict[AudioRef, float] = {}
    for ref in sample.audios():
        try:
            measured[ref] = _decode_seconds(ref, sample, config)
        except (ValueError, OSError) as error:
            raise DataError(_audio_defect(error, ref, corpus.row(index))) from error
    lengths = AudioLengths(
        question=measured[sample.audio] if sample.audio is not None else None,
        reply=measured[sample.reply_audio] if sample.reply_audio is not None else None,
        history=sum(measured[turn.audio] for turn in sample.history if turn.audio is not None),
    )
    problem = _wrong_duration(sample, lengths)
    if problem is not None:
        raise corpus.row(index).refuse(DefectKind.DURATION, problem)
    return sample, lengths


def _decode_seconds(ref: AudioRef, sample: Sample, config: CheckConfig) -> float:
    """Seconds of a sound, all of it decoded."""
    may_be_silent = (
        sample.task is not None and TASKS[sample.task].input_modality == "text" and ref == sample.audio
    )
    bounds = {"min_seconds": config.min_seconds, "max_seconds": config.max_seconds}
    waveform, rate = load_audio(ref, None, allow_silence=may_be_silent, **bounds)
    return len(waveform) / rate


def _audio_defect(error: Exception, ref: AudioRef, row: RecordRow) -> Defect:
    """What is wrong with a sound: in its tar, or in the line that names its file."""
    if not any(ref.path == own.path for own in row.sounds.values()):
        cause = defect_from(error, ref.path)
        reason = cause.reason if isinstance(error, AudioError) else f"{ref.where}: {cause.reason}"
        return Defect(cause.kind, row.file, row.place, row.key, reason)
    return defect_from(error, ref.path, f"member {ref.member}", row.key)


def _wrong_duration(sample: Sample, lengths: AudioLengths) -> str | None:
    stated = sample.seconds
    measured = lengths.question if sample.audio is not None else lengths.reply
    if stated is None or measured is None or abs(stated - measured) <= _SLACK_SECONDS + _SLACK * stated:
        return None
    return (
        f"field duration: expected {measured:.2f} s as the sound has, found {stated:g} s; "
        "the sound is another one, or its header announces a wrong rate"
    )


def _hash(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _find_repeated_keys(found: Findings, config: CheckConfig) -> None:
    """Records whose key an earlier file has, too; those within one file were refused when they were read."""
    if not found.keys:
        return
    corpus = open_checked(config)
    for first, later in _same_hash(np.concatenate(found.keys)):
        earlier, row = corpus.row(first), corpus.row(later)
        if earlier.key != row.key:
            continue
        where = ", ".join(filter(None, (earlier.file, earlier.place)))
        found.defects.add(duplicate_key(row.file, row.place, row.key, where))
        found.totals.add(*_examine(corpus, later, config), times=-1)
        found.bad.append(later)
    found.bad.sort()


def _same_hash(keys: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, later) record numbers with the same hash, in the order of the later ones."""
    ordered = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
    repeats = np.flatnonzero(ordered[1:, 0] == ordered[:-1, 0]) + 1
    pairs = []
    for repeat in repeats.tolist():
        first = int(np.searchsorted(ordered[:, 0], ordered[repeat, 0]))
        pairs.append((int(ordered[first, 1]), int(ordered[repeat, 1])))
    return iter(sorted(pairs, key=lambda pair: pair[1]))
