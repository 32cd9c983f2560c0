"""Griffin-Lim iterations from the waveform of the vocoder: magnitudes from the mel, phases from the waveform.

Alternating projections (Griffin and Lim 1984) that begin at the vocoder's own waveform. A small vocoder
has good phases long before its mel is right, and two iterations restore the words that it blurs.

Legend: batch, bins = 80, bands = 513, time = mel frames, samples = 256 * time at 22.05 kHz.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from echat.audio.features import HOPS_PER_WINDOW, RELEASED_MEL, MelFormat, mel_filterbank, vocoder_spectrum

FRAMES_PER_ITERATION = HOPS_PER_WINDOW  # on each side that one iteration looks at
MEL_INVERSION_STEPS = 8  # multiplicative steps (Lee and Seung 2001) towards magnitudes that have this mel
MIN_MAGNITUDE = 1e-6


def griffin_lim(waveform: Tensor, mel: Tensor, iterations: int, form: MelFormat = RELEASED_MEL) -> Tensor:
    """`waveform (batch, samples)` after `iterations` projections towards `mel (batch, bins, time)`."""
    if waveform.shape[-1] <= form.edge:
        return waveform  # too short for one window
    target = mel.exp()
    for _ in range(iterations):
        spectrum = vocoder_spectrum(waveform, form)
        waveform = _istft(spectrum * _gains(spectrum.abs(), target, form), form)
    return waveform


def _gains(magnitude: Tensor, target: Tensor, form: MelFormat) -> Tensor:
    """Factor for each band of `magnitude (batch, bands, time)` after which its mel is near `target`."""
    basis, uncovered, weight = _mel_basis(magnitude.device, form)
    start = magnitude.clamp_min(MIN_MAGNITUDE)
    reached = start
    for _ in range(MEL_INVERSION_STEPS):
        ratio = target / (basis @ reached).clamp_min(MIN_MAGNITUDE)
        reached = reached * (basis.T @ ratio + uncovered) / weight
    return reached / start


def _istft(spectrum: Tensor, form: MelFormat) -> Tensor:
    """The inverse by overlapping windows, `(batch, samples)`."""
    time = spectrum.shape[2]
    window = torch.hann_window(form.window, device=spectrum.device)[:, None]
    frames = torch.fft.irfft(spectrum, n=form.window, dim=1) * window
    weight = _overlap(window.square().expand(1, -1, time), form.hop)
    return (_overlap(frames, form.hop) / weight.clamp_min(1e-3))[:, form.edge : -form.edge]


def _overlap(frames: Tensor, hop: int) -> Tensor:
    """Overlap-add of frames `(batch, window, time)`."""
    window, time = frames.shape[1:]
    length = (time - 1) * hop + window
    return F.fold(frames, (1, length), (1, window), stride=(1, hop))[:, 0, 0]


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # kept for training, too, whoever asks first
def _mel_basis(device: torch.device, form: MelFormat) -> tuple[Tensor, Tensor, Tensor]:
    """Mel matrix (bins, bands); 1 for each band that no bin covers (bands, 1); sums over bins plus that."""
    basis = mel_filterbank(form.n_mels, form.window, form.rate).float().to(device)
    coverage = basis.sum(0)[:, None]
    uncovered = (coverage <= 0).float()
    return basis, uncovered, coverage + uncovered
