"""Data sources of a recipe: corpora, the tasks each serves, and their mixture weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from pydantic import Field, model_validator

from echat.config import Config
from echat.data.defects import DataError, Defect, DefectKind, DefectReport
from echat.data.eligibility import (
    LONGEST_SECONDS,
    SHORTEST_SECONDS,
    can_serve,
    refusal,
    refuse_empty_range,
)
from echat.data.formats.corpus import FormatOrAuto, Records, open_corpus
from echat.data.mixture import MixtureComponent, MixtureStream, earlier_turns
from echat.data.sample import Sample
from echat.data.speech_examples import normalize_text
from echat.data.storage import exists
from echat.dialogue.tasks import get_task

_LOG = logging.getLogger(__name__)

SHARD_BLOCK = 1000  # records: the published size of a shard


class SourceConfig(Config):
    """One corpus in the mixture."""

    renamed: ClassVar = {"as_text": "pseudo_audio", "near": "shuffle_block"}

    path: str  # manifest.jsonl of ours, or a list of the published formats; local or an object store's URL
    format: FormatOrAuto = "manifest"
    root: str | None = None  # where relative names in a list begin; None: found out
    tar_root: str | None = None  # folder of the tars of combine lists that name none
    within: tuple[str, ...] | None = None  # folders or URLs that sound must lie in; None: any local folder
    tasks: dict[str, float] = {}  # task -> weight inside the source; empty: each record's own task
    weight: float = Field(1.0, gt=0)  # share of the source in the mixture
    split: str | None = None  # keep the records of this split only
    languages: tuple[str, ...] = ()  # keep these languages only (records that name none stay)
    spoken_form: bool = False  # texts to lower case without punctuation
    min_seconds: float = SHORTEST_SECONDS  # records of another stated duration are left out
    max_seconds: float = LONGEST_SECONDS
    pseudo_audio: bool = False  # labels and words as text instead of the question's sound
    every_turn: bool = False  # each earlier turn of a dialogue is a sample, too
    optional: bool = False  # the mixture goes on without the source when its file is not there
    scan: bool | None = None  # read all records at the start, to know which serve; None: unless in shards
    shuffle_block: int | None = Field(None, ge=0)  # records, few blocks at a time; 0: all; None: shards

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        refuse_empty_range(self.min_seconds, self.max_seconds)
        return self

    @property
    def scans(self) -> bool:
        """Shards are not read before their records are sampled, so start-up does not grow with the corpus."""
        return self.format in ("manifest", "raw") if self.scan is None else self.scan

    @property
    def block(self) -> int:
        """Records of a shuffled block, needed at about the same time, so that few shards are open at once."""
        if self.shuffle_block is not None:
            return self.shuffle_block
        return 0 if self.scans else SHARD_BLOCK


@dataclass(frozen=True)
class SelectedRecords:
    """The records of a corpus that a source and a purpose select; any other one raises DataError."""

    records: Records
    config: SourceConfig
    is_eligible: Callable[[Sample], bool]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self.records[index]
        if not _is_selected(sample, self.config):
            raise refusal(
                sample, DefectKind.UNWANTED, "expected the split, language and duration of the source"
            )
        if not self.is_eligible(sample):
            raise refusal(sample, DefectKind.UNWANTED, "expected the input and target of the task")
        return _normalized(sample, self.config)


def read_source(
    config: SourceConfig, change: Callable[[Sample], Sample] = lambda sample: sample
) -> list[Sample]:
    """All selected records of a source, loaded; ``change`` is applied to each before selection."""
    records = open_source(config)
    readable = _readable(records, config, change)
    kept = [_normalized(sample, config) for sample in readable if _is_selected(sample, config)]
    if not kept:
        raise DataError(
            f"source {config.path}: expected records within its limits, found 0 of {len(records)}"
        )
    if len(kept) < len(records):
        _LOG.info("source %s: %d of %d records", config.path, len(kept), len(records))
    return kept


def open_source(config: SourceConfig) -> Records:
    """The corpus of a source, nothing left out. Its audio may lie in any local folder, unless ``within``."""
    return open_corpus(
        config.path,
        config.format,
        root=config.root,
        tar_root=config.tar_root,
        within="/" if config.within is None else config.within,
    )


def _readable(records: Records, config: SourceConfig, change: Callable[[Sample], Sample]) -> list[Sample]:
    """All records that can be read; the first ten defects of each kind are named."""
    found: list[Sample] = []
    report = DefectReport()
    for index in range(len(records)):
        with report.catch(config.path, f"record {index}"):
            found.append(change(records[index]))
    if report:
        _LOG.warning("left out:\n%s", report)
    return found


def _is_selected(sample: Sample, config: SourceConfig) -> bool:
    if config.split is not None and sample.split != config.split:
        return False
    if config.languages and sample.language is not None and sample.language not in config.languages:
        return False
    return sample.seconds is None or config.min_seconds <= sample.seconds <= config.max_seconds


def _normalized(sample: Sample, config: SourceConfig) -> Sample:
    return replace(sample, text=normalize_text(sample.text)) if config.spoken_form and sample.text else sample


def mixture_components(
    configs: Sequence[SourceConfig], seed: int, temperature: float | None = None
) -> list[MixtureComponent]:
    """(source, task) pairs with the samples that serve the task; ``temperature`` as in :func:`mixture`."""
    return [
        component
        for config, records, weight in _weighted_sources(configs, temperature)
        for component in _task_components(config, records, weight, seed)
    ]


def source_components(
    configs: Sequence[SourceConfig], purpose: str, is_eligible: Callable[[Sample], bool], seed: int
) -> list[MixtureComponent]:
    """One pair for each source: the samples ``is_eligible`` to serve a purpose that is no dialogue task."""
    return [
        _component(config, purpose, records, is_eligible, weight, seed)
        for config, records, weight in _weighted_sources(configs)
    ]


def mixture(
    configs: Sequence[SourceConfig], seed: int, temperature: float | None = None, epochs: int | None = None
) -> MixtureStream:
    """The mixture of all sources; endless, or so many epochs of each.

    With ``temperature`` T the weight of a source is multiplied by its size to the power of 1 / T: with 1
    every record counts the same, with large T every source.
    """
    return MixtureStream(mixture_components(configs, seed, temperature), epochs)


def present_sources(configs: Sequence[SourceConfig]) -> list[SourceConfig]:
    """The sources without those that are optional and not there."""
    return [config for config in configs if not config.optional or exists(config.path)]


def _weighted_sources(
    configs: Sequence[SourceConfig], temperature: float | None = None
) -> list[tuple[SourceConfig, Records, float]]:
    """The sources that are there, opened, with their weights."""
    there = present_sources(configs)
    opened = [(config, read_source(config) if config.scans else open_source(config)) for config in there]
    power = 0.0 if temperature is None else 1.0 / temperature
    return [(config, records, config.weight * len(records) ** power) for config, records in opened]


def _task_components(
    config: SourceConfig, records: Records, weight: float, seed: int
) -> list[MixtureComponent]:
    tasks = dict[str | None, float](config.tasks.items()) or _own_tasks(config, records)
    total = sum(tasks.values())
    return [
        _component(config, name, records, _eligibility(config, name), weight * share / total, seed)
        for name, share in tasks.items()
    ]


def _component(
    config: SourceConfig,
    name: str | None,
    records: Records,
    is_eligible: Callable[[Sample], bool],
    weight: float,
    seed: int,
) -> MixtureComponent:
    if isinstance(records, list):
        chosen: Records = [sample for sample in records if is_eligible(sample)]
    else:
        chosen = SelectedRecords(records, config, is_eligible)
    return MixtureComponent(
        config.path, name, chosen, weight, seed, config.pseudo_audio, config.every_turn, config.block
    )


def _eligibility(config: SourceConfig, name: str | None) -> Callable[[Sample], bool]:
    """Can a sample serve the task (None: its own)?"""

    def is_eligible(sample: Sample) -> bool:
        if config.every_turn and any(map(is_turn_eligible, earlier_turns(sample))):
            return True
        return is_turn_eligible(sample)

    def is_turn_eligible(sample: Sample) -> bool:
        if name is not None and sample.task not in (None, name):
            return False
        own = name or sample.task
        return own is not None and can_serve(sample, get_task(own), config.pseudo_audio)

    return is_eligible


def _own_tasks(config: SourceConfig, records: Records) -> dict[str | None, float]:
    """Tasks the records name themselves, weighted by how many do; unscanned: whichever each names."""
    if not isinstance(records, list):
        return {None: 1.0}
    counts: dict[str | None, float] = {}
    for sample in records:
        if sample.task is not None:
            counts[sample.task] = counts.get(sample.task, 0.0) + 1.0
    if not counts:
        raise DataError(
            Defect(
                DefectKind.MISSING_FIELD,
                config.path,
                reason="expected `tasks:` in the recipe, as the records name none of their own",
            )
        )
    return counts
