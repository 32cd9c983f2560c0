"""The vocoder in pieces: the mel goes on, and the sound goes on in phase.

A piece hears again the final mel before it, as far as the vocoder reaches, with the very source that made
the sound there. To the right it hears provisional mel; what it makes of the first of those frames is kept,
and the next piece is faded in from it.

Legend: bins = 80, time = mel frames, samples = 256 * time at 22.05 kHz.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from echat.token2wav.noise import frame_noise
from echat.token2wav.vocoder import Vocoder

FADE_FRAMES = 2  # provisional sound that is mixed with the next piece, 23 ms


@dataclass(frozen=True)
class SoundStream:
    """What the vocoder keeps between pieces."""

    frames: int  # mel frames that have sounded
    mel: Tensor  # (1, bins, time) the last of them
    source: Tensor  # (1, 1, samples) and their source
    phase: Tensor  # (1, harmonics, 1) where each harmonic started
    cycles: Tensor  # (1, harmonics) and how far into its cycle it is
    tail: Tensor  # (1, samples) provisional sound behind them


def begin_sound(bins: int, phase: Tensor) -> SoundStream:
    """Silence, at the start phases."""
    empty = torch.zeros(1, bins, 0, device=phase.device)
    nothing = empty[:, :1]
    return SoundStream(0, empty, nothing, phase, torch.zeros_like(phase[..., 0]).double(), nothing[:, 0])


def go_on(
    vocoder: Vocoder, sound: SoundStream, mel: Tensor, now: int, seed: int
) -> tuple[Tensor, SoundStream]:
    """Waveform `(samples,)` of the first `now` frames of `mel (1, bins, time)`; the rest is provisional."""
    hop, kept = vocoder.config.samples_per_frame, sound.mel.shape[2]
    if not now:
        return mel.new_zeros(0), sound
    heard = torch.cat([sound.mel, mel.float()], dim=2)
    f0 = vocoder.f0_predictor(heard)[:, kept:]
    harmonics, end = sound.phase.shape[1], sound.frames + mel.shape[2]
    noise = frame_noise(seed, "source", harmonics, sound.frames, end, hop).to(f0)
    source = vocoder.m_source(f0, sound.phase, noise, cycles=sound.cycles)
    source = torch.cat([sound.source, source], dim=2)
    waveform = vocoder.decode(heard, source)[:, kept * hop :]
    waveform = fade(sound.tail, waveform)
    last = kept + now  # frames of `heard` that have sounded
    keep = slice(max(0, last - vocoder.config.reach), last)
    return waveform[0, : now * hop], SoundStream(
        frames=sound.frames + now,
        mel=heard[:, :, keep],
        source=source[:, :, keep.start * hop : keep.stop * hop],
        phase=sound.phase,
        cycles=vocoder.m_source.cycles_after(f0[:, :now], sound.cycles),
        tail=waveform[:, now * hop : (now + FADE_FRAMES) * hop],
    )


def fade(old: Tensor, new: Tensor) -> Tensor:
    """`new`, its beginning mixed with `old (..., length)`: from old to new, the weights add up to 1."""
    length = min(old.shape[-1], new.shape[-1])
    if not length:
        return new
    share = torch.arange(1, length + 1, device=new.device, dtype=new.dtype) / (length + 1)
    mixed = torch.lerp(old[..., :length].to(new), new[..., :length], share)
    return torch.cat([mixed, new[..., length:]], dim=-1)
