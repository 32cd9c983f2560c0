"""Conversion of a corpus from any format to any other: parallel, resumable, reproducible to the byte.

The source is cut into jobs of so many records. A job writes its files, then their checksums, then a
``.finished`` marker that holds its report; a job without marker is done again, one with it is left alone.
The lists that name all files come last.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pydantic import Field

from echat.audio.speech_tokens import CODEC_SIZE
from echat.checkpoint import atomic_path
from echat.config import Config
from echat.data.defects import DataError, Defect, DefectKind, DefectReport
from echat.data.formats.audio_encoding import AudioStorage
from echat.data.formats.audio_folder import save_roots
from echat.data.formats.corpus import Format, FormatOrAuto, open_corpus
from echat.data.formats.indexed_corpus import IndexedCorpus, LineCorpus
from echat.data.formats.osum_text import normalise
from echat.data.formats.tar_corpora import ShardCorpus
from echat.data.sample import Sample
from echat.data.tools.executors import ExecutorName, run_jobs
from echat.data.tools.output_files import files_of, refuse_folder, remove_temporaries
from echat.data.tools.writers import CombineWriter, CorpusWriter, ListWriter, MetadataWriter, ShardWriter
from echat.dialogue.rendering import target_text
from echat.dialogue.tasks import Task, get_task
from echat.dialogue.turns import AssistantTurn, UserTurn

PLAN, REPORT = "conversion.json", "report.json"
Change = Callable[[Iterable[Sample], DefectReport], Iterator[Sample]]


class ConversionConfig(Config):
    """What to convert, to what, and where."""

    source: str  # any list, tar or folder that open_corpus opens
    out: str  # folder of the result
    to: Format
    format: FormatOrAuto = "auto"  # of the source
    root: str | None = None  # where relative names of the source begin
    within: str | tuple[str, ...] | None = None  # further folders that sound may lie in; "/": all
    shard_size: int = Field(1000, ge=1)  # records per shard, and per job
    audio: AudioStorage = "keep"  # as it is, or encoded anew
    copy_audio: bool = False  # to lists: also copy sound that lies in files of its own
    task: str | None = None  # of records that name none
    codec_size: int = Field(CODEC_SIZE, ge=1)  # speech ids from here up are refused


@dataclass(slots=True)
class JobReport:
    """What a job did."""

    records: int = 0
    defects: DefectReport = field(default_factory=DefectReport)

    def as_dict(self) -> dict[str, Any]:
        return {"records": self.records, "defects": self.defects.as_dict()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> JobReport:
        return cls(fields["records"], DefectReport.from_dict(fields["defects"]))


def convert(
    config: ConversionConfig,
    workers: int = 1,
    strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    executor: ExecutorName = "local",
    change: Change | None = None,
) -> JobReport:
    """Convert everything; what a killed run has finished is kept. Records that cannot be are counted.

    ``progress`` is called with jobs done and jobs in all. ``strict`` stops at the first defect with a
    DataError. ``change`` is done to the samples of each job on their way; it travels to other processes, and
    what it depends on belongs into the configuration, so that another run does not go on with other results.
    """
    _corpus.cache_clear()  # the source may have changed since
    total = write_plan(config)
    report = JobReport(defects=DefectReport(strict))
    report.defects.extend(_corpus(config).defects())
    work = partial(run_job, config, strict=strict, change=change)
    for done, job in enumerate(run_jobs(work, total, workers, executor), 1):
        report.records += job.records
        report.defects.merge(job.defects)
        progress(done, total)
    finish(config, total)
    with atomic_path(Path(config.out) / REPORT) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), ensure_ascii=False, indent=1) + "\n", "utf-8")
    return report


def write_plan(config: ConversionConfig) -> int:
    """Save the plan in the folder of the result; returns the number of jobs. Raises DataError."""
    if config.task is not None:
        get_task(config.task)
    corpus = _corpus(config)
    refuse_folder(config.out, files_of(corpus))
    ends = _cuts(config, corpus)
    plan = {**config.model_dump(mode="json", exclude={"out"}), "records": len(corpus), "jobs": len(ends)}
    plan["source"] = os.path.abspath(config.source) if os.path.exists(config.source) else config.source
    path = Path(config.out) / PLAN
    if path.is_file():
        found = _read_json(path, "the settings of a conversion")
        changed = [name for name in plan if plan[name] != found.get(name)]
        if changed:
            name = changed[0]
            raise DataError(
                f"{path}: expected to go on with {name} = {found.get(name)!r}, found {plan.get(name)!r}; "
                "give the settings and the source it began with, or another folder"
            )
    else:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(plan, ensure_ascii=False, indent=1) + "\n", "utf-8")
    remove_temporaries(Path(config.out))
    return len(ends)


def run_job(
    config: ConversionConfig, number: int, strict: bool = False, change: Change | None = None
) -> JobReport:
    """Do one job unless it is finished. Any process may do any job; the bytes are the same."""
    writer = _writer(config)
    marker = writer.marker(number)
    if marker.is_file():
        return _finished(marker)
    report = JobReport(defects=DefectReport(strict))
    ends = _cuts(config, _corpus(config))
    samples = _samples(config, ends[number - 1] if number else 0, ends[number], report.defects)
    changed = change(samples, report.defects) if change is not None else samples
    report.records = writer.write(number, changed, report.defects)
    with atomic_path(marker) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), ensure_ascii=False), "utf-8")
    return report


def finish(config: ConversionConfig, jobs: int) -> None:
    """Write the lists that name everything, once all jobs are finished."""
    writer = _writer(config)
    counts = [_finished(writer.marker(number)).records for number in range(jobs)]
    corpus = _corpus(config)
    if isinstance(writer, ListWriter):
        save_roots(config.out, corpus.folder.roots if isinstance(corpus, LineCorpus) else ())
    writer.finish([number for number, count in enumerate(counts) if count])


def _finished(marker: Path) -> JobReport:
    """The report of a finished job. Raises DataError where its marker is damaged."""
    try:
        return JobReport.from_dict(_read_json(marker, "the report of a finished job"))
    except (TypeError, LookupError) as error:
        raise DataError(_damaged(marker, "the report of a finished job", error)) from error


def _read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a file that a conversion keeps for itself. Raises DataError where it is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(_damaged(path, what, error)) from error
    if not isinstance(found, dict):
        raise DataError(_damaged(path, what, TypeError(type(found).__name__)))
    return found


def _damaged(path: Path, what: str, error: Exception) -> str:
    return f"{path}: expected {what} as JSON, found a damaged file ({error}); remove it, and run this again"


def _samples(config: ConversionConfig, begin: int, end: int, defects: DefectReport) -> Iterator[Sample]:
    corpus = _corpus(config)
    for index in range(begin, end):
        sample = None
        with defects.catch(config.source, f"record {index}"):
            sample = assign(corpus[index], config.task) if config.task else corpus[index]
        if sample is not None:
            yield sample


@lru_cache(maxsize=4)
def _corpus(config: ConversionConfig) -> IndexedCorpus:
    return open_corpus(
        config.source,
        config.format,
        root=config.root,
        within=config.within,
        codec_size=config.codec_size,
    )


def _reuses_tars(config: ConversionConfig, corpus: IndexedCorpus) -> bool:
    """Metadata can be put beside tars that lie in one folder; their sound need not be written again."""
    if config.to != "combine" or config.audio != "keep" or not isinstance(corpus, ShardCorpus):
        return False
    tars = [part.files[0] for part in corpus.parts.parts]
    return len({os.path.dirname(tar) for tar in tars}) == 1 and len(
        {os.path.basename(t) for t in tars}
    ) == len(tars)


def _cuts(config: ConversionConfig, corpus: IndexedCorpus) -> list[int]:
    """Where each job ends."""
    if _reuses_tars(config, corpus) and isinstance(corpus, ShardCorpus):
        return list(corpus.parts.ends)
    jobs = math.ceil(len(corpus) / config.shard_size)
    return [min((number + 1) * config.shard_size, len(corpus)) for number in range(jobs)]


def _writer(config: ConversionConfig) -> CorpusWriter:
    out = Path(config.out)
    corpus = _corpus(config)
    if _reuses_tars(config, corpus) and isinstance(corpus, ShardCorpus):
        return MetadataWriter(out, [part.files[0] for part in corpus.parts.parts])
    if config.to == "shard":
        return ShardWriter(out, config.audio)
    if config.to == "combine":
        return CombineWriter(out, config.audio)
    return ListWriter(out, config.audio, config.to, config.copy_audio)


# --- A task for records that leave it to the recipe: published formats name one for each record.


def assign(sample: Sample, task: str | Task) -> Sample:
    """The sample as a record of ``task``; one that names its own stays as it is. Raises DataError.

    An understanding task gets its finished target, made from words and labels.
    """
    row = get_task(task)
    if sample.task is not None:
        return sample
    if row.input_modality == "audio" and sample.audio is None:
        raise _lacks(DefectKind.MISSING_AUDIO, sample, row, "sound")
    if not row.understands:
        if not sample.reply and not (row.reads_aloud and sample.text):
            raise _lacks(DefectKind.MISSING_FIELD, sample, row, "a reply")
        return replace(sample, task=row.name)
    if sample.target is None and row.transcribes and not sample.text:
        raise _lacks(DefectKind.MISSING_FIELD, sample, row, "words")
    if sample.target is None and row.labels and all(getattr(sample.labels, k) is None for k in row.labels):
        raise _lacks(DefectKind.MISSING_FIELD, sample, row, f"a known label of {', '.join(row.labels)}")
    return _with_target(replace(sample, task=row.name), row)


def _with_target(sample: Sample, task: Task) -> Sample:
    """The sample as a published record of the task would be read."""
    if not task.writes_label_target:
        return sample
    turn = UserTurn(sample.text, labels=sample.labels)
    written = target_text(turn, AssistantTurn(sample.target), task)
    target = normalise(written, task)
    words = target.split("<", 1)[0] or None if task.transcribes else sample.text
    extra = sample.extra if written == target else {**sample.extra, "txt": written}
    return replace(sample, target=target, text=words, extra=extra)


def _lacks(kind: DefectKind, sample: Sample, task: Task, what: str) -> DataError:
    return DataError(
        Defect(kind, "", key=sample.key, reason=f"task {task.name}: expected {what}, found none")
    )
