"""A moment of quiet before a sound that begins at once.

Recordings begin with a moment of silence, and so do those a model learns from. Of a clip that is cut at its
first word, the model misses that word and mistakes gender and age. Quiet in front mends it, if it is the
quiet of that clip: with digital silence, which no microphone gives, women are taken for men.

Legend: frames of 10 ms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echat.audio.features import HOP

LEAD_FRAMES = 20  # 0.2 s of quiet that every sound has in front
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
    clip is. The same waveform always gives the same result. Of 80 AN4 clips cut at their first word 32 % of
    the words were misheard and 62 % of the genders heard, with quiet in front 15 % and 98 % (uncut: 15, 99).
    """
    frames = len(waveform) // HOP
    if frames < _STRETCH:
        return waveform
    powers = waveform[: frames * HOP].double().view(frames, HOP).square().mean(dim=1)
    levels = powers.unfold(0, _STRETCH, 1).mean(dim=1).sqrt()  # (frames - 4,)
    loudest, place = float(levels.max()), int(levels.argmin())
    quietest = max(float(levels[place]), _FLOOR)
    if quietest > _STEADY * loudest:
        return waveform
    quiet = SHARE_OF_LOUDEST * loudest
    if quietest < _NOISY * loudest:
        quiet = max(quiet, _ABOVE_NOISE * quietest)
    begins = torch.nonzero(powers.sqrt() > quiet)
    lacking = LEAD - HOP * int(begins[0]) if len(begins) else 0
    if lacking <= 0:
        return waveform
    stretch = waveform[HOP * place : HOP * (place + _STRETCH)]
    return torch.cat([_noise_like(stretch, lacking, min(quietest, SHARE_OF_LOUDEST * loudest)), waveform])


def _noise_like(stretch: Tensor, samples: int, level: float) -> Tensor:
    """(samples,) of a stretch there and back, as loud as `level`; it ends where the stretch begins."""
    power = float(stretch.double().square().mean().sqrt())
    if power < _FLOOR:
        noise = torch.randn(samples, generator=torch.Generator().manual_seed(0))
        return (level * noise).to(stretch)
    there_and_back = torch.cat([stretch, stretch.flip(0)])
    repeats = -(-samples // len(there_and_back))
    return there_and_back.repeat(repeats)[-samples:] * (level / power)
