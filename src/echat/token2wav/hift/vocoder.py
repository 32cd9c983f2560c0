"""HiFT vocoder: a mel becomes a waveform (neural source filter, then an inverse Fourier transform).

Read from leaf to root: pitch predictor, harmonic source, vocoder.

Legend: batch, time = mel frames (256 samples each), samples = 256 * time, harmonics = 9,
bins = n_fft / 2 + 1.
"""

import math
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from echat.audio.features import VOCODER_N_MELS, VOCODER_RATE, MelFormat
from echat.config import Config
from echat.token2wav.hift.griffin_lim import FRAMES_PER_ITERATION, griffin_lim
from echat.token2wav.hift.snake import SnakeResBlock

MAX_LOG_MAGNITUDE = math.log(100.0)  # largest log magnitude of the spectrum


class F0PredictorConfig(Config):
    """Sizes of the convolution stack that reads the pitch from the mel."""

    in_channels: int = Field(VOCODER_N_MELS, description="mel bins")
    cond_channels: int = Field(512, description="width of the five convolutions")


class VocoderConfig(Config):
    """Sizes of HiFT; the defaults are those of the released 22.05 kHz vocoder."""

    renamed: ClassVar = {"refinement": "griffin_lim_iters"}

    in_channels: int = Field(VOCODER_N_MELS, description="mel bins")
    base_channels: int = Field(512, description="width before the first upsampling, halved by each")
    nb_harmonics: int = Field(8, description="sinusoids above the fundamental")
    sampling_rate: int = Field(VOCODER_RATE, description="samples per second")
    nsf_alpha: float = Field(0.1, description="amplitude of each sinusoid")
    nsf_sigma: float = Field(0.003, description="noise amplitude in voiced stretches")
    nsf_voiced_threshold: float = Field(10.0, description="a pitch at or below this (Hz) means unvoiced")
    random_phase: bool = Field(True, description="start every harmonic at its own random phase")
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16)
    istft_n_fft: int = Field(16, description="window of the inverse transform, in samples")
    istft_hop: int = Field(4, description="hop of the inverse transform, in samples")
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5))
    lrelu_slope: float = 0.1
    audio_limit: float = Field(0.99, description="the waveform is clamped to this")
    griffin_lim_iters: int = Field(
        0, ge=0, description="Griffin-Lim iterations towards the mel, for small vocoders"
    )
    f0_predictor: F0PredictorConfig = F0PredictorConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "VocoderConfig":
        stages = len(self.upsample_rates)
        if not stages or self.base_channels % 2**stages:
            raise ValueError(
                f"base_channels: expected a multiple of {2**stages} ({stages} halvings), "
                f"found {self.base_channels}"
            )
        if len(self.upsample_kernel_sizes) != stages or len(self.source_resblock_kernel_sizes) != stages:
            raise ValueError(
                f"expected one upsample kernel and one source block for each of {stages} upsample rates"
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError("expected one list of dilations for each of resblock_kernel_sizes")
        return self

    @property
    def samples_per_frame(self) -> int:
        """Waveform samples made from one mel frame."""
        return math.prod(self.upsample_rates) * self.istft_hop

    @property
    def mel(self) -> MelFormat:
        """The mel that it reads."""
        return MelFormat(self.sampling_rate, self.samples_per_frame, self.in_channels)

    @property
    def reach(self) -> int:
        """Mel frames on each side that the sound of one frame depends on, given the source."""
        frames, rate = 3.0, 1  # the first convolution
        for stage, (factor, kernel) in enumerate(
            zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True)
        ):
            frames += kernel / (factor * rate)
            rate *= factor
            source = _block_reach(
                self.source_resblock_kernel_sizes[stage], self.source_resblock_dilation_sizes[stage]
            )
            main = max(
                _block_reach(size, dilations)
                for size, dilations in zip(
                    self.resblock_kernel_sizes, self.resblock_dilation_sizes, strict=True
                )
            )
            frames += (main + source) / rate
        own = math.ceil(frames + (3 + 1 + self.istft_n_fft / self.istft_hop) / rate)
        return own + self.griffin_lim_iters * FRAMES_PER_ITERATION


def _block_reach(kernel: int, dilations: tuple[int, ...]) -> int:
    """Steps on each side that a residual block looks at."""
    return sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)


class F0Predictor(nn.Module):
    """Pitch in Hz for each mel frame; at or below the voiced threshold means unvoiced."""

    def __init__(self, config: F0PredictorConfig) -> None:
        super().__init__()
        widths = [config.in_channels] + [config.cond_channels] * 5
        self.condnet = nn.Sequential()
        for n_in, n_out in pairwise(widths):
            self.condnet.append(nn.Conv1d(n_in, n_out, 3, padding=1)).append(nn.ELU())
        self.classifier = nn.Linear(config.cond_channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """`mel (batch, bins, time) -> f0 (batch, time)`."""
        return self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1).abs()


class HarmonicSource(nn.Module):
    """Sinusoids at the pitch and its harmonics, noise where there is no voice, mixed to one channel."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.l_linear = nn.Linear(config.nb_harmonics + 1, 1)

    def forward(
        self,
        f0: Tensor,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        cycles: Tensor | None = None,
    ) -> Tensor:
        """`f0 (batch, time) -> (batch, 1, samples)`; phase and noise are random where not given.

        `phase (batch, harmonics, 1)` is the start phase (the fundamental always starts at 0), `noise
        (batch, harmonics, samples)` standard normal; `cycles` is what `cycles_after` said of earlier frames.
        """
        config = self.config
        samples = f0.shape[1] * config.samples_per_frame
        shape = (f0.shape[0], config.nb_harmonics + 1, samples)
        if phase is None:
            phase = self.sample_phase(shape[0], generator)
        phase = phase.to(f0).index_fill(1, torch.zeros(1, dtype=torch.long, device=f0.device), 0.0)
        if noise is None:
            noise = torch.randn(shape, generator=generator).to(f0)
        sines = config.nsf_alpha * torch.sin(2 * math.pi * self._cycles(f0, cycles) + phase)
        voiced = (f0 > config.nsf_voiced_threshold).to(f0.dtype)
        voiced = voiced.repeat_interleave(config.samples_per_frame, dim=1)[:, None]  # (batch, 1, samples)
        gain = voiced * config.nsf_sigma + (1 - voiced) * (config.nsf_alpha / 3)
        excitation = sines * voiced + gain * noise  # (batch, harmonics, samples)
        return torch.tanh(self.l_linear(excitation.transpose(1, 2))).transpose(1, 2)

    def sample_phase(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Start phases `(batch, harmonics, 1)`; one is sampled for the fundamental too, which starts
        at 0.
        """
        shape = (batch, self.config.nb_harmonics + 1, 1)
        if not self.config.random_phase:
            return torch.zeros(shape)
        return torch.rand(shape, generator=generator) * 2 * math.pi - math.pi

    def cycles_after(self, f0: Tensor, cycles: Tensor | None = None) -> Tensor:
        """Fraction of the cycle in which each harmonic ends, `(batch, harmonics)`: the next `cycles`."""
        total = self._per_sample(f0).sum(-1) * self.config.samples_per_frame
        return (total if cycles is None else total + cycles) % 1

    def _per_sample(self, f0: Tensor) -> Tensor:
        """Cycles that each harmonic runs through in one sample, `(batch, harmonics, time)`."""
        harmonic = torch.arange(1, self.config.nb_harmonics + 2, device=f0.device, dtype=f0.dtype)
        return (f0[:, None] * harmonic[:, None] / self.config.sampling_rate).double()

    def _cycles(self, f0: Tensor, before: Tensor | None = None) -> Tensor:
        """Fraction of the cycle each harmonic has run through, `(batch, harmonics, samples)`.

        The sum reaches thousands of cycles, so it is kept in double precision, frame by frame.
        """
        hop = self.config.samples_per_frame
        per_sample = self._per_sample(f0)
        start = (per_sample.cumsum(-1) - per_sample) * hop  # (batch, harmonics, time)
        if before is not None:
            start = start + before[..., None]
        steps = torch.arange(1, hop + 1, device=f0.device, dtype=torch.float64)
        return ((start[..., None] % 1 + per_sample[..., None] * steps) % 1).flatten(2).to(f0.dtype)


class Vocoder(nn.Module):
    """`mel (batch, 80, time) -> waveform (batch, 256 * time)` at 22.05 kHz."""

    window: Tensor

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = [config.base_channels // 2**i for i in range(len(config.upsample_rates) + 1)]
        bins2 = config.istft_n_fft + 2  # real and imaginary parts, or magnitudes and phases
        self.f0_predictor = F0Predictor(config.f0_predictor)
        self.m_source = HarmonicSource(config)
        self.conv_pre = nn.Conv1d(config.in_channels, channels[0], 7, padding=3)
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for stage, (rate, kernel) in enumerate(
            zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        ):
            width = channels[stage + 1]
            self.ups.append(
                nn.ConvTranspose1d(channels[stage], width, kernel, rate, padding=(kernel - rate) // 2)
            )
            later = math.prod(config.upsample_rates[stage + 1 :])
            self.source_downs.append(_source_down(bins2, width, later))
            self.source_resblocks.append(
                SnakeResBlock(
                    width,
                    config.source_resblock_kernel_sizes[stage],
                    config.source_resblock_dilation_sizes[stage],
                )
            )
            for size, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            ):
                self.resblocks.append(SnakeResBlock(width, size, dilations))
        self.conv_post = nn.Conv1d(channels[-1], bins2, 7, padding=3)
        self.register_buffer("window", torch.hann_window(config.istft_n_fft), persistent=False)
        self._init_quiet()

    def _init_quiet(self) -> None:
        """An untrained network must not hit the output limiter, where there is no gradient."""
        with torch.no_grad():
            self.conv_post.weight.mul_(0.1)
            assert self.conv_post.bias is not None
            self.conv_post.bias[: self.config.istft_n_fft // 2 + 1] -= 3.0

    def forward(
        self,
        mel: Tensor,
        cache_source: Tensor | None = None,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Waveform `(batch, samples)` and the source `(batch, 1, samples)` it was made from.

        `cache_source` overwrites the first part of the source, so that a stream continues in phase.
        """
        source = self.m_source(self.f0_predictor(mel), phase, noise, generator)
        if cache_source is not None and cache_source.shape[2]:
            source = torch.cat([cache_source, source[:, :, cache_source.shape[2] :]], dim=2)
        return self.decode(mel, source), source

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """Waveform `(batch, samples)` of a mel and the source of the same length.

        While learning, the two limits keep a slope: behind a flat one a network that once became too loud
        gets no gradient back and stays there.
        """
        y = self.spectrum(mel, source).float()
        bins = self.config.istft_n_fft // 2 + 1
        loudness = y[:, :bins].clamp(max=MAX_LOG_MAGNITUDE)  # before exp: the gradient of an overflow is nan
        if self.training:
            loudness = loudness + 0.1 * (y[:, :bins] - MAX_LOG_MAGNITUDE).clamp_min(0)
        magnitude = loudness.exp()
        angle = torch.sin(y[:, bins:])  # yes: the sine of the network's output is the phase angle
        spectrum = torch.complex(magnitude * torch.cos(angle), magnitude * torch.sin(angle))
        waveform = torch.istft(spectrum, self.config.istft_n_fft, self.config.istft_hop, window=self.window)
        if self.training:
            return waveform
        waveform = griffin_lim(waveform, mel.float(), self.config.griffin_lim_iters, self.config.mel)
        return waveform.clamp(-self.config.audio_limit, self.config.audio_limit)

    def source_spectrum(self, source: Tensor) -> Tensor:
        """Real and imaginary parts of the source, `(batch, 2 * bins, 64 * time + 1)`."""
        n_fft, hop = self.config.istft_n_fft, self.config.istft_hop
        spectrum = torch.stft(source.squeeze(1), n_fft, hop, window=self.window, return_complex=True)
        return torch.cat([spectrum.real, spectrum.imag], dim=1)

    def spectrum(self, mel: Tensor, source: Tensor) -> Tensor:
        """Log magnitudes and raw phases, `(batch, 2 * bins, 64 * time + 1)`."""
        source_bins = self.source_spectrum(source)
        blocks = len(self.config.resblock_kernel_sizes)
        x = self.conv_pre(mel)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, self.config.lrelu_slope))
            if stage == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[stage](self.source_downs[stage](source_bins))
            x = sum(self.resblocks[stage * blocks + i](x) for i in range(blocks)) / blocks
        return self.conv_post(F.leaky_relu(x))  # the slope here is 0.01, not the configured one


def _source_down(bins2: int, width: int, rate: int) -> nn.Conv1d:
    """Brings the source spectrum to the rate of a stage that is upsampled by `rate` later."""
    if rate == 1:
        return nn.Conv1d(bins2, width, 1)
    return nn.Conv1d(bins2, width, 2 * rate, rate, padding=rate // 2)
