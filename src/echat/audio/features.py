"""Audio features (log-mel spectrograms of encoder and vocoder, Kaldi filter bank) and all constants of time.

Legend: samples, frames, n_mels, bins = n_fft // 2 + 1. All functions take one mono waveform ``(samples,)`` in
[-1, 1] and return ``(frames, n_mels)`` float32 on the waveform's device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

# Input of the speech encoder: everything below is derived from these.
SAMPLE_RATE = 16_000  # Hz
HOP = 160  # samples between mel frames
WINDOW = 400  # samples under one mel window, 25 ms
N_MELS = 80  # of the released encoder; others: see `EncoderConfig.n_mels`
SPEECH_TOKENIZER_N_MELS = 128  # of the speech tokenizers

MEL_RATE = SAMPLE_RATE // HOP  # 100 mel frames per second

# Output of the vocoder.
VOCODER_RATE = 22_050  # Hz, of the released synthesis
VOCODER_HOP = 256  # samples per vocoder mel frame, about 86 frames per second
VOCODER_N_MELS = 80
HOPS_PER_WINDOW = 4  # of every vocoder mel
MEL_TOP_HZ = 8_000.0  # upper edge of every mel bank here

_LOG_FLOOR = 1e-10
_VOCODER_FLOOR = 1e-5
_DYNAMIC_RANGE = 8.0  # decades below the loudest bin that are kept
_KALDI_BINS = 80
_KALDI_FFT = 512
_KALDI_LOW_HZ = 20.0
_KALDI_PREEMPHASIS = 0.97
_KALDI_FLOOR = 1.1920928955078125e-07  # float32 epsilon


@dataclass(frozen=True)
class MelFormat:
    """The mel spectrogram that a flow makes and a vocoder reads; the default is that of the release."""

    rate: int = VOCODER_RATE  # Hz of the waveform
    hop: int = VOCODER_HOP  # samples per frame
    n_mels: int = VOCODER_N_MELS

    @property
    def window(self) -> int:
        """Samples under one window, 1024 in the release."""
        return HOPS_PER_WINDOW * self.hop

    @property
    def edge(self) -> int:
        """Samples by which frames reach over each end."""
        return (self.window - self.hop) // 2

    def __str__(self) -> str:
        return f"{self.n_mels} mel bins of {self.hop} samples at {self.rate} Hz"


RELEASED_MEL = MelFormat()


class EncoderInput(Protocol):
    """What preparing sound needs to know of a speech encoder; `EncoderConfig` of the model is one."""

    @property
    def n_mels(self) -> int:
        """Mel bins of its input."""
        ...

    def llm_frames(self, mel_frames: int, /) -> int:
        """Positions of the language model for so many mel frames."""
        ...


def mel_frames(samples: int) -> int:
    """Frames of :func:`log_mel` for a 16 kHz waveform of ``samples``."""
    return samples // HOP


def log_mel(waveform: Tensor, n_mels: int) -> Tensor:
    """Normalised log10 mel of a 16 kHz waveform, ``(samples // 160, n_mels)``.

    The floor lies 8 decades below the loudest bin *of this waveform*, so features of a cut differ from a cut
    of the features. Needs more than 200 samples, because the edges are reflected.
    """
    _refuse_shorter_than(waveform, WINDOW // 2 + 1, "log_mel")
    padded = pad(waveform.float()[None], (WINDOW // 2, WINDOW // 2), mode="reflect")[0]
    frames = padded.unfold(0, WINDOW, HOP)[:-1] * _hann(WINDOW, waveform.device)  # the last is half reflected
    parts = torch.view_as_real(torch.fft.rfft(frames)).square()  # (frames, bins, 2): abs() would cost more
    mel = (parts[..., 0] + parts[..., 1]) @ mel_filterbank(n_mels, WINDOW, SAMPLE_RATE).to(waveform.device).T
    mel = mel.clamp_min(_LOG_FLOOR).log10()
    mel = torch.maximum(mel, mel.max() - _DYNAMIC_RANGE)
    return (mel + 4.0) / 4.0


def vocoder_mel(waveform: Tensor, mel: MelFormat = RELEASED_MEL) -> Tensor:
    """Natural-log magnitude mel of a waveform at ``mel.rate``, made by a flow: ``(frames, n_mels)``."""
    _refuse_shorter_than(waveform, mel.edge + 1, "vocoder_mel")
    spectrum = vocoder_spectrum(waveform.float()[None], mel)[0]
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()  # (513, frames)
    bank = mel_filterbank(mel.n_mels, mel.window, mel.rate).to(waveform.device)
    return (bank @ magnitude).clamp_min(_VOCODER_FLOOR).log().T.contiguous()


def vocoder_spectrum(waveforms: Tensor, mel: MelFormat = RELEASED_MEL) -> Tensor:
    """The complex spectrum behind `vocoder_mel`: ``(batch, samples) -> (batch, bins, frames)``."""
    padded = pad(waveforms, (mel.edge, mel.edge), mode="reflect")
    window = _hann(mel.window, waveforms.device)
    return torch.stft(padded, mel.window, mel.hop, window=window, center=False, return_complex=True)


def kaldi_fbank(waveform: Tensor, subtract_mean: bool = False) -> Tensor:
    """Kaldi-style log filter bank of a 16 kHz waveform in [-1, 1], whole frames only: ``(frames, 80)``.

    ``subtract_mean`` removes the mean of each bin over time, as the speaker network expects.
    """
    _refuse_shorter_than(waveform, WINDOW, "kaldi_fbank")
    frames = waveform.float().unfold(0, WINDOW, HOP)  # (frames, 400)
    frames = frames - frames.mean(dim=1, keepdim=True)
    previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    frames = (frames - _KALDI_PREEMPHASIS * previous) * _povey(waveform.device)
    power = torch.fft.rfft(frames, n=_KALDI_FFT).abs().square()  # (frames, 257)
    fbank = (power @ _kaldi_filterbank().to(waveform.device).T).clamp_min(_KALDI_FLOOR).log()
    return fbank - fbank.mean(dim=0, keepdim=True) if subtract_mean else fbank


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for training, too, whoever asks first
def mel_filterbank(n_mels: int, n_fft: int, rate: int, top_hz: float = MEL_TOP_HZ) -> Tensor:
    """Slaney mel filters with Slaney area normalisation, ``(n_mels, n_fft // 2 + 1)``. Cached."""
    edges = _mel_to_hz(torch.linspace(0.0, _hz_to_mel(top_hz), n_mels + 2, dtype=torch.float64))
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * rate / n_fft
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(rising, falling).clamp_min(0.0)
    area = 2.0 / (edges[2:] - edges[:-2])
    return (triangles * area[:, None]).float()


# Slaney's mel scale: linear below 1 kHz (3 mel per 200 Hz), logarithmic above (27 mel per factor 6.4).
_LINEAR_MEL_PER_HZ = 3.0 / 200.0
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ * _LINEAR_MEL_PER_HZ
_LOG_STEP = math.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz * _LINEAR_MEL_PER_HZ
    return _KNEE_MEL + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    linear = mel / _LINEAR_MEL_PER_HZ
    logarithmic = _KNEE_HZ * torch.exp(_LOG_STEP * (mel - _KNEE_MEL))
    return torch.where(mel < _KNEE_MEL, linear, logarithmic)


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # kept for training, too, whoever asks first
def _kaldi_filterbank() -> Tensor:
    """Triangles equally spaced on 1127 ln(1 + f / 700), in the mel domain; the Nyquist bin weighs 0."""

    def mel(hz: float) -> float:
        return 1127.0 * math.log(1.0 + hz / 700.0)

    low, high = mel(_KALDI_LOW_HZ), mel(SAMPLE_RATE / 2)
    step = (high - low) / (_KALDI_BINS + 1)
    left = low + step * torch.arange(_KALDI_BINS, dtype=torch.float32)[:, None]
    hz = torch.arange(_KALDI_FFT // 2, dtype=torch.float32) * (SAMPLE_RATE / _KALDI_FFT)
    bins = 1127.0 * torch.log(1.0 + hz / 700.0)  # float32 throughout, as the speaker network was trained
    triangles = torch.minimum((bins - left) / step, (left + 2 * step - bins) / step).clamp_min(0.0)
    return pad(triangles, (0, 1))


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # kept for training, too, whoever asks first
def _hann(length: int, device: torch.device) -> Tensor:
    return torch.hann_window(length, device=device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # kept for training, too, whoever asks first
def _povey(device: torch.device) -> Tensor:
    return torch.hann_window(WINDOW, periodic=False, device=device).pow(0.85)


def _refuse_shorter_than(waveform: Tensor, samples: int, feature: str) -> None:
    if waveform.dim() != 1:
        raise ValueError(
            f"{feature}: expected one mono waveform of shape (samples,), found {tuple(waveform.shape)}; "
            "average the channels and pass one waveform at a time"
        )
    if len(waveform) < samples:
        raise ValueError(
            f"{feature}: expected at least {samples} samples, found {len(waveform)}; pass a longer waveform"
        )
