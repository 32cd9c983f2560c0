"""Training losses of the vocoder: multi-resolution STFT, log mel, pitch, and discriminators (optional).

Legend: batch, samples; frames = mel frames (256 samples each).
"""

import functools
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from echat.config import Config
from echat.token2wav.hift.vocoder import Vocoder

F0_WEIGHT = 0.02  # of the pitch error in Hz, 0 where unvoiced
FEATURE_WEIGHT = 2.0  # of the feature matching loss of the discriminators
TEACHER_F0 = 0.5  # share of training steps whose source is the true pitch


class VocoderLossConfig(Config):
    """Weights of the loss terms and the resolutions of the spectral ones."""

    renamed: ClassVar = dict.fromkeys(("spectral_weight", "f0_weight", "feature_weight", "teacher_f0"), "")

    fft_sizes: tuple[int, ...] = Field((2048, 1024, 512, 256), description="windows; each hops by a quarter")
    mel_weight: float = 5.0
    adversarial_weight: float = Field(0.0, ge=0, description="0 = no discriminators")


@functools.cache
def _hann(size: int) -> Tensor:
    return torch.hann_window(size)


def magnitudes(waveform: Tensor, n_fft: int) -> Tensor:
    """`(batch, samples) -> (batch, n_fft / 2 + 1, frames)`, bounded away from zero so that logs are calm."""
    window = _hann(n_fft).to(waveform)
    spectrum = torch.stft(waveform, n_fft, n_fft // 4, window=window, return_complex=True)
    return (torch.view_as_real(spectrum).square().sum(-1) + 1e-7).sqrt()


def spectral_loss(generated: Tensor, real: Tensor, fft_sizes: tuple[int, ...]) -> Tensor:
    """Spectral convergence plus log-magnitude distance, mean over the resolutions (Yamamoto et al. 2020)."""
    total = generated.new_zeros(())
    for n_fft in fft_sizes:
        generated_magnitude, real_magnitude = magnitudes(generated, n_fft), magnitudes(real, n_fft)
        convergence = (real_magnitude - generated_magnitude).norm() / real_magnitude.norm().clamp(min=1e-3)
        total = total + convergence + F.l1_loss(generated_magnitude.log(), real_magnitude.log())
    return total / len(fft_sizes)


def mel_loss(generated: Tensor, real: Tensor, basis: Tensor) -> Tensor:
    """L1 distance of natural-log mels; `basis (bins, window / 2 + 1)` is the mel matrix of the features."""
    window = 2 * (basis.shape[1] - 1)
    generated_mel, real_mel = (
        torch.log((basis.to(generated) @ magnitudes(x, window)).clamp(min=1e-5)) for x in (generated, real)
    )
    return F.l1_loss(generated_mel, real_mel)


@dataclass(frozen=True)
class Cut:
    """A stretch of speech, alone or (with a leading batch axis) many of equal length."""

    mel: Tensor  # (80, frames)
    waveform: Tensor  # (256 * frames,)
    f0: Tensor  # (frames,) Hz, 0 = unvoiced


def vocoder_loss(
    vocoder: Vocoder, batch: Cut, config: VocoderLossConfig, mel_basis: Tensor, teacher: bool
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss, its parts, and the waveform that was made.

    `teacher`: the source follows the true pitch instead of the predicted one.
    """
    predicted = vocoder.f0_predictor(batch.mel).float()
    source = vocoder.m_source(batch.f0 if teacher else predicted.detach())
    generated = vocoder.decode(batch.mel, source).float()
    parts = {
        "spectral": spectral_loss(generated, batch.waveform, config.fft_sizes),
        "mel": mel_loss(generated, batch.waveform, mel_basis),
        "f0": F.l1_loss(predicted, batch.f0),
    }
    total = parts["spectral"] + config.mel_weight * parts["mel"] + F0_WEIGHT * parts["f0"]
    return total, parts, generated


class Discriminator(nn.Module):
    """Convolutions over a waveform seen as an image."""

    convs: nn.ModuleList
    last: nn.Conv2d

    def image(self, waveform: Tensor) -> Tensor:
        """`(batch, samples) -> (batch, 1, height, width)`."""
        raise NotImplementedError

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores and the features behind them."""
        x, features = self.image(waveform), []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return self.last(x), features


class PeriodDiscriminator(Discriminator):
    """Samples as an image of `period` columns (multi-period discriminator of HiFi-GAN, reduced)."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        sizes = (1, width, 2 * width, 4 * width)
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, n_out, (5, 1), (3, 1), padding=(2, 0)) for n_in, n_out in pairwise(sizes)
        )
        self.last = nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0))

    def image(self, waveform: Tensor) -> Tensor:
        batch, samples = waveform.shape
        return F.pad(waveform, (0, -samples % self.period)).view(batch, 1, -1, self.period)


class ResolutionDiscriminator(Discriminator):
    """The log spectrum at one resolution as an image."""

    def __init__(self, n_fft: int, width: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, width, (5, 3), (2, 1), padding=(2, 1)) for n_in in (1, width, width)
        )
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def image(self, waveform: Tensor) -> Tensor:
        return magnitudes(waveform, self.n_fft).log()[:, None]


class Discriminators(nn.Module):
    """Small period and resolution discriminators with least-squares GAN losses."""

    def __init__(
        self, periods: tuple[int, ...] = (2, 3, 5), fft_sizes: tuple[int, ...] = (512,), width: int = 16
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList([PeriodDiscriminator(p, width) for p in periods])
        self.members.extend(ResolutionDiscriminator(n, width) for n in fft_sizes)

    def discriminator_loss(self, generated: Tensor, real: Tensor) -> Tensor:
        """Loss of the discriminators: real speech is 1, generated speech 0."""
        total = generated.new_zeros(())
        for member in self.members:
            total = (
                total + (member(real)[0] - 1).square().mean() + member(generated.detach())[0].square().mean()
            )
        return total / len(self.members)

    def generator_loss(self, generated: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the vocoder: (adversarial, feature matching); the discriminators get no gradient."""
        adversarial, distance = generated.new_zeros(()), generated.new_zeros(())
        for member in self.members:
            fixed = {name: p.detach() for name, p in member.named_parameters()}
            score, features = torch.func.functional_call(member, fixed, (generated,))
            with torch.no_grad():
                _, targets = member(real)
            adversarial = adversarial + (score - 1).square().mean()
            apart = [F.l1_loss(a, b) for a, b in zip(features, targets, strict=True)]
            distance = distance + torch.stack(apart).mean()
        return adversarial / len(self.members), distance / len(self.members)


def pitch_track(waveform: Tensor, rate: int, hop: int) -> Tensor:
    """Pitch in Hz `(floor(samples / hop),)`, 0 where unvoiced, at the centres of the mel frames (DIO)."""
    import pyworld  # training only

    signal = waveform.double().numpy()
    period = 1000 * hop / rate / 2  # twice per frame, since a mel frame is centred half a hop after its start
    coarse, times = pyworld.dio(signal, rate, frame_period=period)
    fine = torch.from_numpy(pyworld.stonemask(signal, coarse, times, rate)).float()
    frames = waveform.shape[0] // hop
    return F.pad(fine[1::2], (0, frames))[:frames]


def cut(clip: Cut, frames: int, hop: int, generator: torch.Generator) -> Cut:
    """A random stretch of `frames` mel frames; a short clip is padded by its last frame and silence."""
    start = int(torch.randint(max(clip.mel.shape[1] - frames, 0) + 1, (1,), generator=generator))
    mel = clip.mel[:, start : start + frames]
    missing = frames - mel.shape[1]
    waveform = clip.waveform[start * hop : (start + frames) * hop]
    return Cut(
        F.pad(mel[None], (0, missing), mode="replicate")[0],
        F.pad(waveform, (0, frames * hop - len(waveform))),
        F.pad(clip.f0[start : start + frames], (0, missing)),
    )
