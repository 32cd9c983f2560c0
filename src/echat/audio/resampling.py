"""Resampling of waveforms, whole (windowed sinc) and streaming."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from echat.audio.errors import AudioError

_LOWPASS_WIDTH = 6  # zero crossings on each side of the resampling kernel
_STREAM_WIDTH = 24  # steeper, for output to people: 36 dB instead of 10 at 5 % above the band
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


class Resampler:
    """Streaming `resample`, in numpy and with a steeper filter; the result does not depend on the chunks.

    Its latency is what the kernel needs of the future and no more: 1.6 ms from 24 to 16 kHz. (Streams of soxr
    work in blocks: 21 ms there, 64 ms from 8 to 16 kHz.)
    """

    def __init__(self, from_rate: int, to_rate: int, width: int = _STREAM_WIDTH) -> None:
        assert from_rate != to_rate
        divisor = math.gcd(from_rate, to_rate)
        self._old, self._new = from_rate // divisor, to_rate // divisor
        margin, kernel = _resampling_kernel(self._old, self._new, width)
        # In float64, so that the order of summation, which changes with the cut, does not show.
        self._kernel = kernel[:, 0].numpy().astype(np.float64).T  # (taps, new)
        self._held = np.zeros(margin)  # samples still needed, (fewer than taps + old,)
        self._end = np.zeros(margin + self._old)  # silence behind the last sample
        self._received = self._given = 0

    def push(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """The next samples (n,) float64; with `last` all that is left, and nothing may follow."""
        self._received += len(samples)
        sound = np.concatenate([self._held, samples, self._end if last else self._end[:0]])
        taps = len(self._kernel)
        steps = max(0, (len(sound) - taps) // self._old + 1)
        self._held = sound[steps * self._old :].copy()
        if not steps:
            return np.zeros(0)
        windows = np.lib.stride_tricks.sliding_window_view(sound, taps)[:: self._old]
        out = (windows @ self._kernel).reshape(-1)  # (steps, taps) @ (taps, new)
        if last:
            out = out[: -(-self._received * self._new // self._old) - self._given]
        self._given += len(out)
        return out


def _kernel_width(old: int, new: int, width: int = _LOWPASS_WIDTH) -> int:
    return math.ceil(width * old / (_ROLLOFF * min(old, new)))


@lru_cache(maxsize=16)
def _resampling_kernel(old: int, new: int, width: int = _LOWPASS_WIDTH) -> tuple[int, Tensor]:
    base = _ROLLOFF * min(old, new)
    margin = _kernel_width(old, new, width)
    taps = torch.arange(-margin, margin + old, dtype=torch.float64) / old
    phases = -torch.arange(new, dtype=torch.float64) / new
    time = ((phases[:, None] + taps) * base).clamp(-width, width)
    window = torch.cos(math.pi * time / (2 * width)).square()
    kernel = torch.sinc(time) * window * base / old
    return margin, kernel.float()[:, None]  # (new, 1, taps)


def _resample_soxr(waveform: Tensor, from_rate: int, to_rate: int, length: int) -> Tensor:
    import soxr

    rows = waveform.reshape(-1, waveform.shape[-1]).cpu().numpy()
    out = torch.stack([torch.from_numpy(soxr.resample(row, from_rate, to_rate)) for row in rows])
    out = pad(out, (0, max(0, length - out.shape[-1])))[:, :length]
    return out.reshape(*waveform.shape[:-1], length).to(waveform)
