"""What tokenizer, flow and vocoder share: clips of speech, drawn by number so that resuming is exact."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from echat.audio.features import SAMPLE_RATE
from echat.audio.file_decoding import seconds_of
from echat.audio.resampling import resample
from echat.audio.waveform import read
from echat.data.formats.manifest import read_manifest
from echat.data.sample import AudioRef, DataError, Sample
from echat.train.objective import Loss, SampleReport
from echat.train.recipe import DecodeConfig, Recipe

B = TypeVar("B")
CACHED_CLIPS = 10_000  # whose features stay in memory


class ClipSettings(Recipe):
    """Recipe of what learns from clips."""

    renamed: ClassVar = {**Recipe.renamed, "cached_clips": ""}

    precision: Literal["bf16", "fp32"] = "fp32"  # small matrices: bf16 is slower on a CPU
    manifests: tuple[str, ...]
    validation: tuple[str, ...] = ()
    validation_clips: int = Field(32, gt=0)
    split: str | None = None  # of `manifests`; None = all records
    validation_split: str | None = None  # of `validation`


class WholeClipSettings(ClipSettings):
    """Recipe of what learns from whole clips, batches of like length."""

    batch_seconds: float = Field(30.0, gt=0)  # speech per micro-batch
    max_seconds: float = 15.0  # longer clips are left out


class WholeClipObjective(ABC, Generic[B]):
    """The part of an objective that flow and tokenizer share: batches of whole clips, losses by row."""

    def __init__(self, recipe: WholeClipSettings, module: nn.Module) -> None:
        self.recipe = recipe
        self.module = module
        clips = self.clips(recipe.manifests, recipe.split)
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

    def clips(self, manifests: Sequence[str], split: str | None = None) -> list[Clip]:
        return self.usable(read_clips(manifests, split, max_seconds=self.recipe.max_seconds))

    def held_out(self, limit: int) -> list[list[Clip]]:
        """A fixed set of validation clips, in batches."""
        if not self.recipe.validation:
            return []
        clips = self.clips(self.recipe.validation, self.recipe.validation_split)
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
    path: str
    seconds: float
    text: str | None
    speech_ids: tuple[int, ...] | None


def read_clips(
    manifests: Sequence[str], split: str | None = None, min_seconds: float = 0.3, max_seconds: float = 15.0
) -> list[Clip]:
    """The utterances of the manifests, shortest first.

    Of a dialogue record it is the spoken reply, of any other record its audio.
    """
    clips = [
        clip
        for manifest in manifests
        for sample in read_manifest(manifest, split)
        if (clip := _clip(sample)) is not None and min_seconds <= clip.seconds <= max_seconds
    ]
    if not clips:
        raise DataError(
            f"{', '.join(manifests)}: expected utterances of {min_seconds} to {max_seconds} s, found none"
        )
    return sorted(clips, key=lambda clip: (clip.seconds, clip.key))


def _clip(sample: Sample) -> Clip | None:
    audio, text, seconds = sample.audio, sample.text, sample.seconds
    if sample.reply_audio is not None:
        audio, text, seconds = sample.reply_audio, sample.reply, None
    if audio is None:
        return None
    return Clip(sample.key, audio.path, seconds or _seconds(audio), text, sample.speech_ids)


def _seconds(audio: AudioRef) -> float:
    if not Path(audio.path).is_file():
        raise DataError(f"{audio.path}: expected an audio file named by a manifest, found nothing there")
    return seconds_of(audio.path)


def load_16k(clip: Clip) -> Tensor:
    """The clip at 16 kHz, `(samples,)`."""
    return read(clip.path, SAMPLE_RATE, allow_silence=True)[0]


def load_at(clip: Clip, rate: int) -> Tensor:
    """The clip at a rate, `(samples,)`; what was recorded below it stays without its upper band."""
    waveform, recorded = read(clip.path, allow_silence=True)
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

    def share(self, rank: int, world: int) -> None:
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
