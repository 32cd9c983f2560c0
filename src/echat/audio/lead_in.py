"""Padding of audio that begins abruptly with background noise of its own (a lead-in).

Recordings, also those of the training data, begin with a moment of silence. Of a clip that is cut at its
first word, the model misses that word and gets gender and age wrong. A lead-in mends this if it is the
background noise of that clip: with digital silence, which no microphone records, women are taken for men.

Legend: frames of 10 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echat.audio.features import HOP

LEAD_FRAMES = 16  # 0.16 s of quiet that every sound has in front
SHARE_OF_LOUDEST = 0.05  # -26 dB: what is louder is not the quiet before a word
_ABOVE_NOISE = 2.0  # 6 dB: what is no louder than this above the quietest stretch is its noise,
_NOISY = 0.3  # as long as that stretch is quieter than this share of the loudest
_FLOOR = 1e-5  # -100 dB: noise of the quietest microphone
_STRETCH = 5  # frames over which loudest and quietest are measured
_STEADY = 0.5  # noise alone varies less than that
LEAD = LEAD_FRAMES * HOP


def with_lead_in(waveform: Tensor) -> Tensor:
    """A 16 kHz waveform (samples,) with `LEAD_FRAMES` of its own quiet in front; as it is where it has them,
    or where it is as steady as noise.

    The quiet is the clip's quietest 50 ms, forwards and backwards in turn, and faint even if nothing in the
    clip is. The same waveform always gives the same result. Of 60 AN4 clips cut at their first word 31 % of
    the words were misheard and 63 % of the genders right, with quiet in front 18 % and 98 % (uncut 15, 99).
    With 0.2 s it was 16 % there, but one gender of 40 clips of another corpus was lost, with 0.24 s five.
    """
    quiet = _background_of(waveform)
    return waveform if quiet is None or quiet.samples >= LEAD else quiet.before(waveform, LEAD)


def with_background(waveform: Tensor, samples: int) -> Tensor:
    """A 16 kHz waveform with so many samples of its own quiet in front, whatever it has; steady noise as it
    is."""
    quiet = _background_of(waveform)
    return waveform if quiet is None else quiet.before(waveform, samples)


@dataclass(frozen=True)
class _Background:
    """The background noise of a clip."""

    samples: int  # of it in front
    stretch: Tensor  # (800,) of the quietest
    level: float  # root mean square that it may have

    def before(self, waveform: Tensor, samples: int) -> Tensor:
        """The clip with so much quiet in front."""
        if samples <= self.samples:
            return waveform[self.samples - samples :]
        return torch.cat([self._noise(samples - self.samples), waveform])

    def _noise(self, samples: int) -> Tensor:
        """(samples,) of the stretch there and back; it ends where the stretch begins."""
        power = float(self.stretch.double().square().mean().sqrt())
        if power < _FLOOR:
            noise = torch.randn(samples, generator=torch.Generator().manual_seed(0))
            return (self.level * noise).to(self.stretch)
        there_and_back = torch.cat([self.stretch, self.stretch.flip(0)])
        repeats = -(-samples // len(there_and_back))
        return there_and_back.repeat(repeats)[-samples:] * (self.level / power)


def _background_of(waveform: Tensor) -> _Background | None:
    """None where nothing begins: in silence, in steady noise, in less than 50 ms."""
    frames = len(waveform) // HOP
    if frames < _STRETCH:
        return None
    powers = waveform[: frames * HOP].double().view(frames, HOP).square().mean(dim=1)
    levels = powers.unfold(0, _STRETCH, 1).mean(dim=1).sqrt()  # (frames - 4,)
    loudest, start = float(levels.max()), int(levels.argmin())
    quietest = max(float(levels[start]), _FLOOR)
    if quietest > _STEADY * loudest:
        return None
    most = SHARE_OF_LOUDEST * loudest
    quiet = max(most, _ABOVE_NOISE * quietest) if quietest < _NOISY * loudest else most
    begins = torch.nonzero(powers.sqrt() > quiet)
    if not len(begins):
        return None
    stretch = waveform[HOP * start : HOP * (start + _STRETCH)]
    return _Background(HOP * int(begins[0]), stretch, min(quietest, most))
