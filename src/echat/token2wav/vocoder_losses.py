"""What the vocoder learns from: spectra at several resolutions, the log mel, the pitch; critics are optional.

Legend: batch, samples; frames = mel frames (256 samples each).
"""

import functools
import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from echat.config import Config
from echat.token2wav.vocoder import Vocoder


class VocoderLossConfig(Config):
    """Weights of the loss terms and the resolutions of the spectral ones."""

    fft_sizes: tuple[int, ...] = Field((2048, 1024, 512, 256), description="windows; each hops by a quarter")
    spectral_weight: float = 1.0
    mel_weight: float = 5.0
    f0_weight: float = Field(0.02, description="weight of the pitch error in Hz, 0 where unvoiced")
    teacher_f0: float = Field(0.5, ge=0, le=1, description="share of steps whose source is the true pitch")
    adversarial_weight: float = Field(0.0, ge=0, description="0 = no critics")
    feature_weight: float = Field(2.0, ge=0, description="weight of the critics' feature distances")


@functools.cache
def _hann(size: int) -> Tensor:
    return torch.hann_window(size)


def magnitudes(waveform: Tensor, n_fft: int) -> Tensor:
    """`(batch, samples) -> (batch, n_fft / 2 + 1, frames)`, bounded away from zero so that logs are calm."""
    window = _hann(n_fft).to(waveform)
    spectrum = torch.stft(waveform, n_fft, n_fft // 4, window=window, return_complex=True)
    return (torch.view_as_real(spectrum).square().sum(-1) + 1e-7).sqrt()


def spectral_loss(made: Tensor, real: Tensor, fft_sizes: tuple[int, ...]) -> Tensor:
    """Spectral convergence plus log-magnitude distance, averaged over the resolutions (Yamamoto et al. 2020)."""
    total = made.new_zeros(())
    for n_fft in fft_sizes:
        made_magnitude, real_magnitude = magnitudes(made, n_fft), magnitudes(real, n_fft)
        convergence = (real_magnitude - made_magnitude).norm() / real_magnitude.norm().clamp(min=1e-3)
        total = total + convergence + F.l1_loss(made_magnitude.log(), real_magnitude.log())
    return total / len(fft_sizes)


def mel_loss(made: Tensor, real: Tensor, basis: Tensor) -> Tensor:
    """L1 distance of natural-log mels; `basis (bins, 513)` is the mel matrix of the features."""
    made_mel, real_mel = (
        torch.log((basis.to(made) @ magnitudes(x, 1024)).clamp(min=1e-5)) for x in (made, real)
    )
    return F.l1_loss(made_mel, real_mel)


def vocoder_loss(
    vocoder: Vocoder, batch: dict[str, Tensor], config: VocoderLossConfig, mel_basis: Tensor, teacher: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, its parts, and under `made` the waveform.

    `batch`: `mel (batch, 80, frames)`, `waveform (batch, 256 * frames)`, `f0 (batch, frames)` in Hz.
    `teacher`: the source follows the true pitch instead of the predicted one.
    """
    mel, real, f0 = batch["mel"], batch["waveform"], batch["f0"]
    predicted = vocoder.f0_predictor(mel).float()
    source = vocoder.m_source(f0 if teacher else predicted.detach())
    made = vocoder.decode(mel, source).float()
    parts = {
        "spectral": spectral_loss(made, real, config.fft_sizes),
        "mel": mel_loss(made, real, mel_basis),
        "f0": F.l1_loss(predicted, f0),
    }
    total = (
        config.spectral_weight * parts["spectral"]
        + config.mel_weight * parts["mel"]
        + config.f0_weight * parts["f0"]
    )
    return total, parts | {"made": made}


class PeriodCritic(nn.Module):
    """Looks at every `period`-th sample as an image of period columns (HiFi-GAN, reduced)."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        sizes = (1, width, 2 * width, 4 * width)
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, n_out, (5, 1), (3, 1), padding=(2, 0))
            for n_in, n_out in zip(sizes, sizes[1:], strict=False)
        )
        self.last = nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores and the features behind them."""
        batch, samples = waveform.shape
        x = F.pad(waveform, (0, -samples % self.period)).view(batch, 1, -1, self.period)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return self.last(x), features


class ScaleCritic(nn.Module):
    """Looks at the log spectrum at one resolution."""

    def __init__(self, n_fft: int, width: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        sizes = (1, width, width, width)
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, n_out, (5, 3), (2, 1), padding=(2, 1))
            for n_in, n_out in zip(sizes, sizes[1:], strict=False)
        )
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores and the features behind them."""
        x = magnitudes(waveform, self.n_fft).log()[:, None]
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return self.last(x), features


class Critics(nn.Module):
    """A few small period and scale critics, least-squares losses."""

    def __init__(
        self, periods: tuple[int, ...] = (2, 3, 5), fft_sizes: tuple[int, ...] = (512,), width: int = 16
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList([PeriodCritic(p, width) for p in periods])
        self.members.extend(ScaleCritic(n, width) for n in fft_sizes)

    def critic_loss(self, made: Tensor, real: Tensor) -> Tensor:
        """Teaches the critics: real speech is 1, made speech 0."""
        total = made.new_zeros(())
        for member in self.members:
            total = (
                total + (member(real)[0] - 1).square().mean() + member(made.detach())[0].square().mean()
            )
        return total / len(self.members)

    def vocoder_loss(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Teaches the vocoder: (adversarial, feature distance)."""
        adversarial, distance = made.new_zeros(()), made.new_zeros(())
        for member in self.members:
            score, features = member(made)
            with torch.no_grad():
                _, targets = member(real)
            adversarial = adversarial + (score - 1).square().mean()
            distance = distance + sum(
                F.l1_loss(a, b) for a, b in zip(features, targets, strict=True)
            ) / len(features)
        return adversarial / len(self.members), distance / len(self.members)


def pitch_track(waveform: Tensor, rate: int, hop: int) -> Tensor:
    """Pitch in Hz `(floor(samples / hop),)`, 0 where unvoiced, at the centres of the mel frames (WORLD's DIO)."""
    import pyworld  # training only

    signal = waveform.double().numpy()
    period = 1000 * hop / rate / 2  # twice per frame, since a mel frame is centred half a hop after its start
    coarse, times = pyworld.dio(signal, rate, frame_period=period)
    fine = torch.from_numpy(pyworld.stonemask(signal, coarse, times, rate)).float()
    frames = waveform.shape[0] // hop
    return F.pad(fine[1::2], (0, frames))[:frames]


def random_segments(
    clips: list[dict[str, Tensor]], frames: int, batch: int, generator: torch.Generator, hop: int
) -> dict[str, Tensor]:
    """Random cuts of `frames` mel frames: each clip is drawn in proportion to its length.

    A clip holds `mel (80, time)`, `waveform (>= hop * time,)`, `f0 (time,)`. Short clips are padded with
    their last frame and silence.
    """
    weights = torch.tensor([float(clip["mel"].shape[1]) for clip in clips])
    picked = torch.multinomial(weights, batch, replacement=True, generator=generator)
    rows = []
    for index in picked.tolist():
        clip = clips[index]
        spare = max(clip["mel"].shape[1] - frames, 0)
        start = int(torch.randint(spare + 1, (1,), generator=generator))
        mel = clip["mel"][:, start : start + frames]
        missing = frames - mel.shape[1]
        waveform = clip["waveform"][start * hop : (start + frames) * hop]
        rows.append(
            {
                "mel": F.pad(mel[None], (0, missing), mode="replicate")[0] if missing else mel,
                "waveform": F.pad(waveform, (0, frames * hop - waveform.shape[0])),
                "f0": F.pad(clip["f0"][start : start + frames], (0, missing)),
            }
        )
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def cosine_rate(step: int, steps: int, warmup: int = 100) -> float:
    """Learning-rate factor: a short ramp, then half a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
