"""Waveforms at another rate."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from echat.audio.errors import AudioError

_LOWPASS_WIDTH = 6  # zero crossings on each side of the resampling kernel
_ROLLOFF = 0.99
_MAX_KERNEL_VALUES = 4_000_000  # rates without a common divisor would need gigabytes; soxr takes over there


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Windowed-sinc resampling of ``(..., samples)``; gives ``ceil(samples * to / from)`` samples."""
    if from_rate <= 0 or to_rate <= 0:
        raise AudioError(f"expected positive sample rates, found {from_rate} Hz to {to_rate} Hz")
    if from_rate == to_rate:
        return waveform
    divisor = math.gcd(from_rate, to_rate)
    old, new = from_rate // divisor, to_rate // divisor
    samples = waveform.shape[-1]
    length = -(-new * samples // old)
    if new * (old + 2 * _kernel_width(old, new)) > _MAX_KERNEL_VALUES:
        return _resample_soxr(waveform, from_rate, to_rate, length)
    width, kernel = _resampling_kernel(old, new)
    flat = pad(waveform.reshape(-1, 1, samples), (width, width + old))
    phases = conv1d(flat, kernel.to(waveform), stride=old)  # (rows, new, steps)
    return phases.transpose(1, 2).reshape(*waveform.shape[:-1], -1)[..., :length]


def _kernel_width(old: int, new: int) -> int:
    return math.ceil(_LOWPASS_WIDTH * old / (_ROLLOFF * min(old, new)))


@lru_cache(maxsize=16)
def _resampling_kernel(old: int, new: int) -> tuple[int, Tensor]:
    base = _ROLLOFF * min(old, new)
    width = _kernel_width(old, new)
    taps = torch.arange(-width, width + old, dtype=torch.float64) / old
    phases = -torch.arange(new, dtype=torch.float64) / new
    time = ((phases[:, None] + taps) * base).clamp(-_LOWPASS_WIDTH, _LOWPASS_WIDTH)
    window = torch.cos(math.pi * time / (2 * _LOWPASS_WIDTH)).square()
    kernel = torch.sinc(time) * window * base / old
    return width, kernel.float()[:, None]  # (new, 1, taps)


def _resample_soxr(waveform: Tensor, from_rate: int, to_rate: int, length: int) -> Tensor:
    import soxr

    rows = waveform.reshape(-1, waveform.shape[-1]).cpu().numpy()
    out = torch.stack([torch.from_numpy(soxr.resample(row, from_rate, to_rate)) for row in rows])
    out = pad(out, (0, max(0, length - out.shape[-1])))[:, :length]
    return out.reshape(*waveform.shape[:-1], length).to(waveform)
