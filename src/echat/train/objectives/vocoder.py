"""Training of the vocoder: from the mel to the waveform, on random cuts; a GAN if discriminators are on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from echat.audio.features import mel_filterbank, vocoder_mel
from echat.checkpoint import write_tensors
from echat.config import save_config
from echat.model_files import CONFIG_FILE, VOCODER_FILE
from echat.token2wav.hift.losses import (
    FEATURE_WEIGHT,
    TEACHER_F0,
    Cut,
    Discriminators,
    VocoderLossConfig,
    cut,
    pitch_track,
    vocoder_loss,
)
from echat.token2wav.hift.vocoder import Vocoder, VocoderConfig
from echat.train.objective import Loss, SampleOutput, SampleReport
from echat.train.objectives.speech_clips import (
    Clip,
    ClipSettings,
    RandomBatches,
    load_at,
    read_clips,
    to_device,
)
from echat.train.recipe import DecodeConfig
from echat.train.weights.init_weights import init_from

CACHED_CLIPS = 3_000  # in memory, about 0.2 MB each


class Settings(ClipSettings):
    """Recipe of the vocoder."""

    objective: Literal["vocoder"] = "vocoder"
    vocoder: VocoderConfig = VocoderConfig()
    losses: VocoderLossConfig = VocoderLossConfig()
    validation_clips: int = Field(16, gt=0)
    segment_frames: int = Field(32, gt=8)  # mel frames of one cut
    batch_size: int = Field(8, gt=0)  # cuts per micro-batch


@dataclass(frozen=True)
class VocoderBatch:
    """Cuts of equal length."""

    keys: tuple[str, ...]
    mel: Tensor  # (batch, 80, frames)
    waveform: Tensor  # (batch, 256 * frames)
    f0: Tensor  # (batch, frames) Hz, 0 = unvoiced
    teacher: bool  # teacher forcing: the source follows the true pitch

    padding = 0.0  # all cut to one length

    def to(self, device: torch.device) -> VocoderBatch:
        return to_device(self, device)


class VocoderObjective:
    """Objective of :mod:`echat.train.objective` for the vocoder."""

    def __init__(self, recipe: Settings) -> None:
        self.recipe = recipe
        self.vocoder = Vocoder(recipe.vocoder)
        init_from(self.vocoder, recipe.init_from)
        self.discriminators = Discriminators() if recipe.losses.adversarial_weight else None
        self.module: nn.Module = self.vocoder
        if self.discriminators is not None:
            self.module = nn.ModuleDict({"vocoder": self.vocoder, "critics": self.discriminators})
        form = recipe.vocoder.mel
        self._basis = mel_filterbank(form.n_mels, form.window, form.rate)
        self._sounds = lru_cache(maxsize=CACHED_CLIPS)(self._make)
        self._clips = read_clips(recipe.data.sources)
        self._weights = torch.tensor([clip.seconds for clip in self._clips])
        self.batches = RandomBatches(self._sample_batch, recipe.seed)

    def _make(self, clip: Clip) -> Cut:
        form = self.recipe.vocoder.mel
        waveform = load_at(clip, form.rate)
        mel = vocoder_mel(waveform, form).T.contiguous()
        f0 = pitch_track(waveform, form.rate, form.hop)
        return Cut(mel, waveform[: mel.shape[1] * form.hop], f0[: mel.shape[1]])

    def _sample_batch(self, generator: torch.Generator) -> VocoderBatch:
        """Clips in proportion to their length, one random cut of each."""
        picked = torch.multinomial(self._weights, self.recipe.batch_size, True, generator=generator)
        teacher = bool(torch.rand(1, generator=generator) < TEACHER_F0)
        return self._batch([self._clips[i] for i in picked.tolist()], teacher, generator)

    def _batch(self, clips: Sequence[Clip], teacher: bool, generator: torch.Generator) -> VocoderBatch:
        frames = self.recipe.segment_frames
        cuts = [cut(self._sounds(clip), frames, self.recipe.vocoder.mel.hop, generator) for clip in clips]
        return VocoderBatch(
            tuple(clip.key for clip in clips),
            torch.stack([c.mel for c in cuts]),
            torch.stack([c.waveform for c in cuts]),
            torch.stack([c.f0 for c in cuts]),
            teacher,
        )

    def validation(self) -> list[VocoderBatch]:
        if not self.recipe.data.validation:
            return []
        generator = torch.Generator().manual_seed(self.recipe.seed)
        clips = read_clips(self.recipe.data.validation)
        chosen = clips[:: max(1, len(clips) // self.recipe.validation_clips)][: self.recipe.validation_clips]
        return [self._batch(chosen, False, generator)]

    def loss(self, batch: VocoderBatch) -> Loss:
        losses = self.recipe.losses
        cuts = Cut(batch.mel, batch.waveform, batch.f0)
        total, parts, made = vocoder_loss(self.vocoder, cuts, losses, self._basis, batch.teacher)
        if self.discriminators is not None:
            adversarial, features = self.discriminators.generator_loss(made, batch.waveform)
            discriminators = self.discriminators.discriminator_loss(made, batch.waveform)
            total = (
                total + losses.adversarial_weight * adversarial + FEATURE_WEIGHT * features + discriminators
            )
            parts |= {"adversarial": adversarial, "features": features, "critics": discriminators}
        count = len(batch.keys)
        shown = {name: (part.detach() * count, count) for name, part in parts.items()}
        return Loss(total * count, count, shown)

    def decode(self, config: DecodeConfig) -> SampleReport:
        """Held-out recordings resynthesized from their mels."""
        if not self.recipe.data.validation or not config.samples:
            return SampleReport()
        clips = read_clips(self.recipe.data.validation)
        device, form = next(self.vocoder.parameters()).device, self.recipe.vocoder.mel
        samples = []
        for clip in clips[:: max(1, len(clips) // config.samples)][: config.samples]:
            made, _ = self.vocoder(vocoder_mel(load_at(clip, form.rate), form).T[None].to(device))
            words = clip.text or ""
            samples.append(
                SampleOutput(
                    clip.key, "vocoder", words, words, clip.audio.path, made[0].float().cpu(), form.rate
                )
            )
        return SampleReport({}, samples)

    def export(self, folder: Path) -> None:
        """`config.yaml` (of the vocoder) and `hift.safetensors`."""
        save_config(self.recipe.vocoder, folder / CONFIG_FILE)
        write_tensors(folder / VOCODER_FILE, self.vocoder.state_dict(), torch.float16)


build = VocoderObjective
