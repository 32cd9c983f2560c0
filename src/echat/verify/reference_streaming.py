"""Streaming synthesis exactly as the released code does it, for comparison with it.

Its cross-fades are 8 % too loud (the halves of a Hamming window add up to 1.08) and its flow cache is
misaligned at 25 ids a second; both are kept here because the purpose is parity. The state is passed in and
out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echat.token2wav.noise import seeded_generator
from echat.token2wav.token2wav import Token2Wav
from echat.token2wav.voice import VoicePrompt

TOKEN_HOP = 50  # ids that each piece adds
TOKEN_OVERLAP = 20  # ids that two pieces share
FLOW_CACHE_FRAMES = 34  # 20 ids at 50 a second: right for the older model, kept for this one
MEL_CACHE_FRAMES = 20  # frames that are input to the vocoder again


@dataclass(frozen=True)
class StreamState:
    """What one piece passes to the next."""

    z: Tensor  # (1, bins, prompt + 34) start noise
    mu: Tensor  # (1, bins, prompt + 34) regulated ids
    mel_overlap: Tensor  # (1, bins, 68) end of the last mel, not yet synthesized
    mel: Tensor  # (1, bins, 20) end of the synthesized mel
    source: Tensor  # (1, 1, 5120) and its source
    speech: Tensor  # (1, 5120) and its audio, not yet emitted


@torch.inference_mode()
def synthesize_piece(
    model: Token2Wav,
    speech_ids: Sequence[int] | Tensor,
    voice: VoicePrompt,
    state: StreamState | None,
    final: bool,
    z: Tensor | None = None,
    phase: Tensor | None = None,
    generator: torch.Generator | None = None,
    quiet_source: bool = False,
) -> tuple[Tensor, StreamState | None]:
    """Audio `(samples,)` of one piece, and the state for the next (None after the final one).

    `z`, `phase` and `quiet_source` (no noise in the source) replace random values.
    """
    mel, z, mu = flow_piece(model, speech_ids, voice, state, z, generator)
    overlap = model.config.flow.mel_frames(TOKEN_OVERLAP)
    if state is not None:
        mel = cross_fade(mel, state.mel_overlap, overlap)
    mel_overlap = mel[:, :, -overlap:]
    if not final:
        mel = mel[:, :, :-overlap]
    if state is not None:
        mel = torch.cat([state.mel, mel], dim=2)
    config = model.config.vocoder
    noise = None
    if quiet_source:
        noise = mel.new_zeros(1, config.nb_harmonics + 1, mel.shape[2] * config.samples_per_frame)
    cache = None if state is None else state.source
    speech, source = model.vocoder(mel, cache, phase, noise, generator)
    samples = MEL_CACHE_FRAMES * config.samples_per_frame
    if state is not None:
        speech = cross_fade(speech, state.speech, samples)
    if final:
        return speech[0], None
    rest = StreamState(
        z, mu, mel_overlap, mel[:, :, -MEL_CACHE_FRAMES:], source[:, :, -samples:], speech[:, -samples:]
    )
    return speech[0, :-samples], rest


def flow_piece(
    model: Token2Wav,
    speech_ids: Sequence[int] | Tensor,
    voice: VoicePrompt,
    state: StreamState | None,
    z: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mel of a piece, and the caches of noise and condition it leaves behind."""
    prompt_ids, prompt_mel, embedding = model.voice_tensors(voice)
    prompt_frames = prompt_mel.shape[1]
    mu = model.flow.regulate(model.check_ids(speech_ids)[None], prompt_ids, prompt_frames)
    if z is None:
        z = torch.randn(mu.shape, generator=generator).to(mu) * model.config.flow.temperature
    if state is not None:
        z, mu = (
            torch.cat([old, new[:, :, old.shape[2] :]], dim=2) for old, new in ((state.z, z), (state.mu, mu))
        )
    kept_z, kept_mu = (
        torch.cat([x[:, :, :prompt_frames], x[:, :, -FLOW_CACHE_FRAMES:]], dim=2) for x in (z, mu)
    )
    return model.flow.mel_from(mu, prompt_mel, embedding, z), kept_z, kept_mu


def cross_fade(new: Tensor, old: Tensor, length: int) -> Tensor:
    """`new`, its first `length` values mixed with the last ones of `old` under halves of a Hamming window."""
    window = torch.hamming_window(2 * length, periodic=False, dtype=torch.float64, device=new.device)
    mixed = new[..., :length] * window[:length] + old[..., -length:] * window[length:]
    return torch.cat([mixed.to(new.dtype), new[..., length:]], dim=-1)


def stream_reference(
    model: Token2Wav,
    speech_ids: Sequence[int],
    voice: VoicePrompt,
    seed: int | None = 0,
    hop: int = TOKEN_HOP,
) -> Iterator[Tensor]:
    """Audio of the ids, piece by piece, cut like the released code does."""
    generator, state, start = seeded_generator(seed), None, 0
    while len(speech_ids) - start >= hop + TOKEN_OVERLAP:
        piece = speech_ids[start : start + hop + TOKEN_OVERLAP]
        sound, state = synthesize_piece(model, piece, voice, state, final=False, generator=generator)
        yield sound
        start += hop
    if start < len(speech_ids):
        yield synthesize_piece(model, speech_ids[start:], voice, state, final=True, generator=generator)[0]
