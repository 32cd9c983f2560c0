"""Streaming vocoder: pieces of mel become pieces of waveform that continue in phase.

The input of a piece begins with the final mel before it, as far as the receptive field reaches, and the
source of that stretch. At the right it has provisional mel; the waveform of its first frames is kept, and the
next piece is cross-faded from it.

Legend: bins = 80, time = mel frames, samples = hop * time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from echat.token2wav.hift.vocoder import Vocoder
from echat.token2wav.noise import frame_noise

CROSS_FADE_FRAMES = 2  # provisional sound that is mixed with the next piece, 23 ms


@dataclass(frozen=True)
class VocoderStream:
    """State of a streaming vocoder between pieces."""

    frames: int  # mel frames that have sounded
    mel: Tensor  # (1, bins, time) the last of them
    source: Tensor  # (1, 1, samples) and their source
    phase: Tensor  # (1, harmonics, 1) where each harmonic started
    cycles: Tensor  # (1, harmonics) and how far into its cycle it is
    tail: Tensor  # (1, samples) provisional sound behind them


def start_vocoder_stream(bins: int, phase: Tensor) -> VocoderStream:
    """The state before the first piece."""
    empty = torch.zeros(1, bins, 0, device=phase.device)
    nothing = empty[:, :1]
    return VocoderStream(0, empty, nothing, phase, torch.zeros_like(phase[..., 0]).double(), nothing[:, 0])


def push_mel(
    vocoder: Vocoder, stream: VocoderStream, mel: Tensor, final_frames: int, seed: int
) -> tuple[Tensor, VocoderStream]:
    """Waveform `(samples,)` of the first `final_frames` of `mel (1, bins, time)`; the rest is provisional."""
    hop, kept = vocoder.config.samples_per_frame, stream.mel.shape[2]
    if not final_frames:
        return mel.new_zeros(0), stream
    context_mel = torch.cat([stream.mel, mel.float()], dim=2)
    f0 = vocoder.f0_predictor(context_mel)[:, kept:]
    harmonics, end = stream.phase.shape[1], stream.frames + mel.shape[2]
    noise = frame_noise(seed, "source", harmonics, stream.frames, end, hop).to(f0)
    source = vocoder.m_source(f0, stream.phase, noise, cycles=stream.cycles)
    source = torch.cat([stream.source, source], dim=2)
    waveform = vocoder.decode(context_mel, source)[:, kept * hop :]
    waveform = cross_fade(stream.tail, waveform)
    last = kept + final_frames  # frames of `context_mel` that have sounded
    keep = slice(max(0, last - vocoder.config.reach), last)
    return waveform[0, : final_frames * hop], VocoderStream(
        frames=stream.frames + final_frames,
        mel=context_mel[:, :, keep],
        source=source[:, :, keep.start * hop : keep.stop * hop],
        phase=stream.phase,
        cycles=vocoder.m_source.cycles_after(f0[:, :final_frames], stream.cycles),
        tail=waveform[:, final_frames * hop : (final_frames + CROSS_FADE_FRAMES) * hop],
    )


def cross_fade(old: Tensor, new: Tensor) -> Tensor:
    """Cross-fade from `old (..., length)` to `new` over the length of `old`; the weights add up to 1."""
    length = min(old.shape[-1], new.shape[-1])
    if not length:
        return new
    share = torch.arange(1, length + 1, device=new.device, dtype=new.dtype) / (length + 1)
    mixed = torch.lerp(old[..., :length].to(new), new[..., :length], share)
    return torch.cat([mixed, new[..., length:]], dim=-1)
