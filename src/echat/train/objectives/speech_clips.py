"""Clips of speech for tokenizer, flow and vocoder: sources, bucketing by length, resumable sampling."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from echat.audio.features import SAMPLE_RATE
from echat.audio.resampling import resample
from echat.config import Config
from echat.data.audio_loading import load_audio, stored_seconds
from echat.data.defects import DataError
from echat.data.sample import AudioRef, Sample
from echat.data.sources import SourceConfig, present_sources, read_source
from echat.train.objective import Loss, SampleReport
from echat.train.recipe import DecodeConfig, Recipe

B = TypeVar("B")
CACHED_CLIPS = 10_000  # whose features stay in memory

_LOG = logging.getLogger(__name__)
_OLD_KEYS = {"manifests": "sources", "validation": "validation"}  # key of the recipe -> key of `data`
_OLD_SETTINGS = ("split", "validation_split", "max_seconds")
_OLD_BOUNDS = {"min_seconds": 0.3, "max_seconds": 15.0}  # of recipes with the old keys
_NO_MEANING = ("tasks", "weight", "every_turn", "pseudo_audio")  # keys of a source that clips have no use for


class ClipDataConfig(Config):
    """Which clips: of a dialogue record the spoken reply, of any other record its audio.

    The bounds in seconds of a source are those of its clips.
    """

    sources: tuple[SourceConfig, ...]
    validation: tuple[SourceConfig, ...] = ()

    @model_validator(mode="after")
    def _refuse_keys_without_meaning(self) -> ClipDataConfig:
        for source in (*self.sources, *self.validation):
            for key in _NO_MEANING:
                if getattr(source, key) != SourceConfig.model_fields[key].default:
                    raise ValueError(
                        f"source {source.path}, {key}: expected none, as clips are drawn by length"
                    )
        return self


class ClipSettings(Recipe):
    """Recipe of what learns from clips."""

    renamed: ClassVar = {**Recipe.renamed, "cached_clips": ""}

    precision: Literal["bf16", "fp32"] = "fp32"  # small matrices: bf16 is slower on a CPU
    data: ClipDataConfig
    validation_clips: int = Field(32, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _read_old_keys(cls, values: Any) -> Any:
        """``manifests`` and ``validation`` replace the paths in ``data``; the others change its sources."""
        if not isinstance(values, Mapping) or not {*_OLD_KEYS, *_OLD_SETTINGS} & values.keys():
            return values
        changed = dict(values)
        data = dict(changed.pop("data", None) or {})
        longest = {"max_seconds": changed.pop("max_seconds")} if "max_seconds" in changed else {}
        for old, new in _OLD_KEYS.items():
            split_key = "split" if old == "manifests" else "validation_split"
            more = longest | ({"split": changed.pop(split_key)} if split_key in changed else {})
            sources = [dict(source) for source in data.get(new) or ()]
            if old in changed:
                _LOG.warning("key %s is now data.%s, a list of sources {path: ...}", old, new)
                like = sources[0] if sources else _OLD_BOUNDS
                sources = [{**like, "path": path} for path in changed.pop(old)]
            data[new] = [source | more for source in sources]
        return {**changed, "data": data}


class WholeClipSettings(ClipSettings):
    """Recipe of what learns from whole clips, batches of like length."""

    batch_seconds: float = Field(30.0, gt=0)  # speech per micro-batch


class WholeClipObjective(ABC, Generic[B]):
    """The part of an objective that flow and tokenizer share: batches of whole clips, losses by row."""

    def __init__(self, recipe: WholeClipSettings, module: nn.Module) -> None:
        self.recipe = recipe
        self.module = module
        clips = self.usable(read_clips(recipe.data.sources))
        self.batches: RandomBatches[B] = RandomBatches(
            lambda generator: self.batch(draw_bucket(clips, recipe.batch_seconds, generator)), recipe.seed
        )

    @abstractmethod
    def usable(self, clips: Sequence[Clip]) -> list[Clip]:
        """Those that can teach."""

    @abstractmethod
    def batch(self, clips: Sequence[Clip]) -> B:
        """Clips of like length, ready for the module."""

    @abstractmethod
    def rows(self, batch: B) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of each clip (batch,), and of its parts."""

    def held_out(self, limit: int) -> list[list[Clip]]:
        """A fixed set of validation clips, in batches."""
        if not self.recipe.data.validation:
            return []
        clips = self.usable(read_clips(self.recipe.data.validation))
        return bucket_clips(clips, self.recipe.batch_seconds, limit)

    def validation(self) -> list[B]:
        return [self.batch(clips) for clips in self.held_out(self.recipe.validation_clips)]

    def loss(self, batch: B) -> Loss:
        rows, parts = self.rows(batch)
        count = len(rows)
        return Loss(rows.sum(), count, {name: (part.detach().sum(), count) for name, part in parts.items()})

    def decode(self, config: DecodeConfig) -> SampleReport:
        return SampleReport()


@dataclass(frozen=True)
class Clip:
    """One utterance on disk."""

    key: str
    audio: AudioRef
    seconds: float
    text: str | None
    speech_ids: tuple[int, ...] | None


def read_clips(sources: Sequence[SourceConfig]) -> list[Clip]:
    """The utterances of the sources, shortest first. Raises DataError where there is none."""
    clips = [
        Clip(sample.key, sample.audio, sample.seconds or 0.0, sample.text, sample.speech_ids)
        for source in present_sources(sources)
        for sample in read_source(source, _utterance)
        if sample.audio is not None
    ]
    if not clips:
        raise DataError(f"{', '.join(source.path for source in sources)}: expected utterances, found none")
    return sorted(clips, key=lambda clip: (clip.seconds, clip.key))


def _utterance(sample: Sample) -> Sample:
    """The record of the utterance alone; its length as stated, or as the header of the sound says."""
    if sample.reply_audio is not None:
        sample = replace(sample, audio=sample.reply_audio, text=sample.reply, seconds=None)
    if sample.audio is None or sample.seconds:
        return sample
    return replace(sample, seconds=stored_seconds(sample.audio))


def load_16k(clip: Clip) -> Tensor:
    """The clip at 16 kHz, `(samples,)`."""
    return load_audio(clip.audio, SAMPLE_RATE, allow_silence=True)[0]


def load_at(clip: Clip, rate: int) -> Tensor:
    """The clip at a rate, `(samples,)`; what was recorded below it stays without its upper band."""
    waveform, recorded = load_audio(clip.audio, None, allow_silence=True)
    return resample(waveform, recorded, rate)


class RandomBatches(Generic[B]):
    """Batch number k is made by a generator seeded with (seed, k): the whole state is k."""

    size = None  # clips are drawn, and cut, at random: there is no epoch

    def __init__(self, draw: Callable[[torch.Generator], B], seed: int) -> None:
        self._draw, self._seed, self._number = draw, seed, 0
        self._rank, self._world = 0, 1

    def next(self) -> B:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._number)
        self._number += self._world
        return self._draw(generator)

    def shard(self, rank: int, world: int) -> None:
        self._number += rank
        self._rank, self._world = rank, world

    def state_dict(self) -> dict[str, Any]:
        return {"number": self._number}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._number = int(state["number"])

    def fast_forward(self, states: Sequence[Mapping[str, Any]]) -> None:
        self._number = max(int(state["number"]) for state in states) + self._rank

    def close(self) -> str:
        return ""


def draw_bucket(clips: Sequence[Clip], seconds: float, generator: torch.Generator) -> list[Clip]:
    """Clips of like length from a list sorted by it, `seconds` together: little padding, little lost."""
    start = int(torch.randint(len(clips), (1,), generator=generator))
    count = max(1, int(seconds / clips[start].seconds))
    start = max(0, min(start, len(clips) - count))
    return list(clips[start : start + count])


def bucket_clips(clips: Sequence[Clip], seconds: float, limit: int) -> list[list[Clip]]:
    """A fixed set of at most `limit` clips spread over all lengths, in batches of about `seconds`."""
    chosen = list(clips[:: max(1, len(clips) // limit)])[:limit]
    batches: list[list[Clip]] = [[]]
    for clip in chosen:
        if batches[-1] and (len(batches[-1]) + 1) * clip.seconds > seconds:
            batches.append([])
        batches[-1].append(clip)
    return batches


def to_device(batch: B, device: torch.device) -> B:
    """A dataclass of tensors on another device."""
    if device.type == "cpu":
        return batch
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}  # type: ignore[arg-type]
    return type(batch)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})
