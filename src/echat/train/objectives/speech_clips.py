"""What tokenizer, flow and vocoder learn from: clips of speech, drawn by number so that resuming is exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from echat.audio.features import SAMPLE_RATE, VOCODER_RATE
from echat.audio.resampling import resample
from echat.audio.waveform import read
from echat.data.manifest import read_manifest
from echat.data.sample import AudioRef, DataError, Sample

B = TypeVar("B")


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
    import soundfile

    if not Path(audio.path).is_file():
        raise DataError(f"{audio.path}: expected an audio file named by a manifest, found nothing there")
    return float(soundfile.info(audio.path).duration)


def heard(clip: Clip) -> Tensor:
    """The clip at 16 kHz, `(samples,)`."""
    return read(clip.path, SAMPLE_RATE, allow_silence=True)[0]


def spoken(clip: Clip) -> Tensor:
    """The clip at 22.05 kHz, `(samples,)`; what was recorded below that rate stays without its upper band."""
    waveform, rate = read(clip.path, allow_silence=True)
    return resample(waveform, rate, VOCODER_RATE)


class DrawnBatches(Generic[B]):
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

    def go_behind(self, states: Sequence[Mapping[str, Any]]) -> None:
        self._number = max(int(state["number"]) for state in states) + self._rank

    def close(self) -> str:
        return ""


def neighbours(clips: Sequence[Clip], seconds: float, generator: torch.Generator) -> list[Clip]:
    """Clips of like length from a list sorted by it, `seconds` together: little padding, little lost."""
    start = int(torch.randint(len(clips), (1,), generator=generator))
    count = max(1, int(seconds / clips[start].seconds))
    start = max(0, min(start, len(clips) - count))
    return list(clips[start : start + count])


def in_order(clips: Sequence[Clip], seconds: float, limit: int) -> list[list[Clip]]:
    """A fixed set of at most `limit` clips spread over all lengths, in batches of about `seconds`."""
    chosen = list(clips[:: max(1, len(clips) // limit)])[:limit]
    batches: list[list[Clip]] = [[]]
    for clip in chosen:
        if batches[-1] and (len(batches[-1]) + 1) * clip.seconds > seconds:
            batches.append([])
        batches[-1].append(clip)
    return batches


def moved(batch: B, device: torch.device) -> B:
    """A dataclass of tensors on another device."""
    if device.type == "cpu":
        return batch
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}  # type: ignore[arg-type]
    return type(batch)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})
