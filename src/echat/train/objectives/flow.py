"""Training of the flow: from speech ids and a voice to the mel, by flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from echat.audio.features import SPEECH_TOKEN_RATE, VOCODER_RATE, mel_22k
from echat.checkpoint import write_tensors
from echat.config import save_config
from echat.data.sample import DataError
from echat.token2wav.flow import Flow, FlowConfig
from echat.token2wav.speaker import MelStatistics
from echat.train.objective import Loss
from echat.train.objectives.speech_clips import (
    Clip,
    DrawnBatches,
    heard,
    in_order,
    moved,
    neighbours,
    read_clips,
    spoken,
)
from echat.train.recipe import Recipe
from echat.train.start import init_from


class Settings(Recipe):
    """Recipe of the flow; its manifests carry speech ids (`speech_ids.jsonl` beside them)."""

    objective: Literal["flow"] = "flow"
    precision: Literal["bf16", "fp32"] = "fp32"  # small matrices: bf16 is slower on a CPU
    flow: FlowConfig = FlowConfig()
    manifests: tuple[str, ...]
    validation: tuple[str, ...] = ()
    validation_clips: int = 32
    split: str | None = None  # of `manifests`; None = all records
    validation_split: str | None = None  # of `validation`
    batch_seconds: float = Field(30.0, gt=0)  # speech per micro-batch
    max_seconds: float = 12.0  # longer clips are left out
    cached_clips: int = 10_000  # mels kept in memory


@dataclass(frozen=True)
class FlowBatch:
    """Clips cut to the shortest of them, so that nothing is padded."""

    keys: tuple[str, ...]
    speech_ids: Tensor  # (batch, n)
    lens: Tensor  # (batch,)
    mel: Tensor  # (batch, time, bins)
    mel_lens: Tensor  # (batch,)
    embedding: Tensor  # (batch, 192)

    padding = 0.0  # all cut to one length

    def to(self, device: torch.device) -> FlowBatch:
        return moved(self, device)


class FlowObjective:
    """Objective of :mod:`echat.train.objective` for the flow."""

    def __init__(self, recipe: Settings) -> None:
        self.recipe = recipe
        self.module = Flow(recipe.flow)
        init_from(self.module, recipe.init_from)
        self._speaker = MelStatistics()
        self._voiced = lru_cache(maxsize=recipe.cached_clips)(self._make)
        clips = self._clips(recipe.manifests, recipe.split)
        self.batches = DrawnBatches(
            lambda generator: self._batch(neighbours(clips, recipe.batch_seconds, generator)), recipe.seed
        )

    def _clips(self, manifests: Sequence[str], split: str | None = None) -> list[Clip]:
        clips = read_clips(manifests, split, max_seconds=self.recipe.max_seconds)
        with_ids = [clip for clip in clips if clip.speech_ids]
        if not with_ids:
            raise DataError(
                f"{', '.join(manifests)}: expected records with speech ids, found none of {len(clips)}; "
                "write them first: python -m echat.train.speech_ids TOKENIZER MANIFEST"
            )
        return with_ids

    def _make(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Mel in half precision and speaker embedding; one more id of silence behind, as ids round up."""
        waveform = spoken(clip)
        mel = mel_22k(F.pad(waveform, (0, VOCODER_RATE // SPEECH_TOKEN_RATE)))
        return mel.half(), self._speaker(waveform, heard(clip))

    def _batch(self, clips: Sequence[Clip]) -> FlowBatch:
        voiced = [self._voiced(clip) for clip in clips]
        n = min(len(clip.speech_ids or ()) for clip in clips)
        while self.recipe.flow.mel_frames(n) > min(len(mel) for mel, _ in voiced):
            n -= 1
        frames, count = self.recipe.flow.mel_frames(n), len(clips)
        return FlowBatch(
            tuple(clip.key for clip in clips),
            torch.tensor([(clip.speech_ids or ())[:n] for clip in clips]),
            torch.full((count,), n),
            torch.stack([mel[:frames].float() for mel, _ in voiced]),
            torch.full((count,), frames),
            torch.stack([embedding for _, embedding in voiced]),
        )

    def validation(self) -> list[FlowBatch]:
        if not self.recipe.validation:
            return []
        clips = self._clips(self.recipe.validation, self.recipe.validation_split)
        chosen = in_order(clips, self.recipe.batch_seconds, self.recipe.validation_clips)
        return [self._batch(batch) for batch in chosen]

    def loss(self, batch: FlowBatch) -> Loss:
        rows, parts = self.module.loss(
            batch.speech_ids, batch.lens, batch.mel, batch.mel_lens, batch.embedding
        )
        count = len(rows)
        return Loss(rows.sum(), count, {name: (part.detach().sum(), count) for name, part in parts.items()})

    def export(self, folder: Path) -> None:
        """`config.yaml` (of the flow) and `flow.safetensors`."""
        save_config(self.recipe.flow, folder / "config.yaml")
        write_tensors(folder / "flow.safetensors", self.module.state_dict(), torch.float16)


def build(recipe: Settings) -> FlowObjective:
    return FlowObjective(recipe)
