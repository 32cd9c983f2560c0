"""Where a recipe's data come from: manifests, the tasks each serves, and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from echat.config import Config
from echat.data.corpus import read_raw
from echat.data.examples import serves, spoken_form
from echat.data.manifest import read_manifest
from echat.data.sample import DataError, Sample
from echat.data.stream import MixtureStream, Pair
from echat.dialogue.tasks import get_task


class SourceConfig(Config):
    """One corpus in the mixture."""

    path: str  # manifest.jsonl of ours, or a raw list of the published format (``format: raw``)
    format: str = Field("manifest", pattern="^(manifest|raw)$")
    tasks: dict[str, float] = {}  # task -> weight inside the source; empty: each record's own task
    weight: float = Field(1.0, gt=0)  # share of the source in the mixture
    split: str | None = None  # keep the records of this split only
    languages: tuple[str, ...] = ()  # keep these languages only (records that name none stay)
    spoken_form: bool = False  # texts to lower case without punctuation
    min_seconds: float = 0.1  # records outside these bounds are left out (where the duration is stated)
    max_seconds: float = 30.0
    as_text: bool = False  # words and cues as text in the place of the question's sound
    optional: bool = False  # the mixture goes on without the source when its file is not there


def read_source(config: SourceConfig) -> list[Sample]:
    """The records the source contributes."""
    samples = read_raw(config.path) if config.format == "raw" else read_manifest(config.path, config.split)
    kept = [sample for sample in samples if _wanted(sample, config)]
    if not kept:
        raise DataError(
            f"source {config.path}: expected records within its limits, found 0 of {len(samples)}"
        )
    if config.spoken_form:
        kept = [
            replace(sample, text=spoken_form(sample.text) if sample.text else sample.text) for sample in kept
        ]
    return kept


def _wanted(sample: Sample, config: SourceConfig) -> bool:
    if config.languages and sample.language is not None and sample.language not in config.languages:
        return False
    return sample.seconds is None or config.min_seconds <= sample.seconds <= config.max_seconds


def mixture_pairs(configs: Sequence[SourceConfig], seed: int) -> list[Pair]:
    """(source, task) pairs with the samples that can serve the task."""
    return [pair for config in configs for pair in _source_pairs(config, seed)]


def _source_pairs(config: SourceConfig, seed: int) -> list[Pair]:
    from pathlib import Path

    if config.optional and not Path(config.path).is_file():
        return []
    samples = read_source(config)
    tasks = config.tasks or _own_tasks(samples)
    total = sum(tasks.values())
    pairs = []
    for name, weight in tasks.items():
        task = get_task(name)
        able = [s for s in samples if s.task in (None, name) and serves(s, task, config.as_text)]
        pairs.append(Pair(config.path, name, able, config.weight * weight / total, seed, config.as_text))
    return pairs


def _own_tasks(samples: Sequence[Sample]) -> dict[str, float]:
    """Tasks the records name themselves, weighted by how many do."""
    counts: dict[str, float] = {}
    for sample in samples:
        if sample.task is not None:
            counts[sample.task] = counts.get(sample.task, 0.0) + 1.0
    if not counts:
        raise DataError("source: expected `tasks:` in the recipe, as the records name none of their own")
    return counts


def mixture(configs: Sequence[SourceConfig], seed: int) -> MixtureStream:
    """The endless mixture of all sources."""
    return MixtureStream(mixture_pairs(configs, seed))
