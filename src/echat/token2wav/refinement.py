"""A waveform is drawn towards its mel: loudness of every band from the mel, phases from the waveform.

Alternating projections (Griffin and Lim 1984) that begin at the vocoder's own waveform. A small vocoder
learns phases long before it learns to keep to its mel, and two rounds bring back the words it blurs.

Legend: batch, bins = 80, bands = 513, time = mel frames, samples = 256 * time at 22.05 kHz.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from echat.audio.features import (
    VOCODER_EDGE,
    VOCODER_HOP,
    VOCODER_N_MELS,
    VOCODER_RATE,
    VOCODER_WINDOW,
    mel_filterbank,
    vocoder_spectrum,
)

FRAMES_PER_ROUND = VOCODER_WINDOW // VOCODER_HOP  # on each side that one round looks at
UPDATES = 8  # multiplicative steps (Lee and Seung 2001) towards magnitudes that have this mel
QUIET = 1e-6


def refine(waveform: Tensor, mel: Tensor, rounds: int) -> Tensor:
    """`waveform (batch, samples)` after `rounds` projections towards `mel (batch, bins, time)`."""
    if waveform.shape[-1] <= VOCODER_EDGE:
        return waveform  # too short for one window
    wanted = mel.exp()
    for _ in range(rounds):
        spectrum = vocoder_spectrum(waveform)
        waveform = _waveform(spectrum * _gains(spectrum.abs(), wanted))
    return waveform


def _gains(magnitude: Tensor, wanted: Tensor) -> Tensor:
    """Factor for each band of `magnitude (batch, bands, time)` after which its mel is near `wanted`."""
    bank, idle, weight = _bank(magnitude.device)
    start = magnitude.clamp_min(QUIET)
    reached = start
    for _ in range(UPDATES):
        ratio = wanted / (bank @ reached).clamp_min(QUIET)
        reached = reached * (bank.T @ ratio + idle) / weight
    return reached / start


def _waveform(spectrum: Tensor) -> Tensor:
    """The inverse by overlapping windows, `(batch, samples)`."""
    time = spectrum.shape[2]
    window = torch.hann_window(VOCODER_WINDOW, device=spectrum.device)[:, None]
    frames = torch.fft.irfft(spectrum, n=VOCODER_WINDOW, dim=1) * window
    weight = _overlap(window.square().expand(1, -1, time))
    return (_overlap(frames) / weight.clamp_min(1e-3))[:, VOCODER_EDGE:-VOCODER_EDGE]


def _overlap(frames: Tensor) -> Tensor:
    """Add frames `(batch, window, time)` at their places."""
    length = (frames.shape[2] - 1) * VOCODER_HOP + VOCODER_WINDOW
    return F.fold(frames, (1, length), (1, VOCODER_WINDOW), stride=(1, VOCODER_HOP))[:, 0, 0]


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # kept for training, too, whoever asks first
def _bank(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The mel matrix (bins, bands); 1 for each band no bin hears (bands, 1); its sums over bins plus that."""
    bank = mel_filterbank(VOCODER_N_MELS, VOCODER_WINDOW, VOCODER_RATE).float().to(device)
    heard = bank.sum(0)[:, None]
    idle = (heard <= 0).float()
    return bank, idle, heard + idle
