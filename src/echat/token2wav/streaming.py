"""Streaming synthesis: `push` speech ids as they are generated, get the waveform that is final by then.

The ids are cut into pieces inside, at fixed positions, so the sound does not depend on how a caller
slices them. For each piece the flow reads the voice prompt, some ids from before it and the ids of the
piece; its mel of the last few ids is provisional until the next piece has seen what follows them:

    ids      ... said before | context | ------ new ids ------ | lookahead |
    mel          final       |  made again, dropped  | fade | new | provisional
    sound        emitted                          | new: as far as the mel is final

Every frame starts from noise of its own (:mod:`echat.token2wav.noise`), so that what is made twice is nearly
the same; where it differs, old and new are mixed with weights that add up to 1. The vocoder goes on with the
source of the last piece in phase. The cost of a piece does not grow with what was said before it.

Legend: bins = 80, time = mel frames, samples = 256 * time at 22.05 kHz.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field, model_validator
from torch import Tensor

from echat.config import Config
from echat.token2wav.hift.vocoder_stream import VocoderStream, cross_fade, push_mel, start_vocoder_stream
from echat.token2wav.noise import block_generator, frame_noise
from echat.token2wav.token2wav import Token2Wav
from echat.token2wav.token_encoder import stretch, stretch_at
from echat.token2wav.voice import VoicePrompt


class StreamConfig(Config):
    """How the ids are cut into pieces."""

    pieces: tuple[int, ...] = Field(
        (15, 25, 50, 100), description="ids of the pieces, the first sounds soonest; the last repeats"
    )
    context: int = Field(50, description="ids before a piece that the flow gets again")
    lookahead: int = Field(4, ge=0, description="ids at the end of a piece that wait for the next one")

    @model_validator(mode="after")
    def _pieces_are_longer(self) -> "StreamConfig":
        if not self.pieces or min(self.pieces) <= self.lookahead:
            raise ValueError(
                f"pieces: expected at least one, each longer than lookahead {self.lookahead}, "
                f"found {self.pieces}"
            )
        if self.context < self.lookahead:
            raise ValueError(f"context: expected at least lookahead {self.lookahead}, found {self.context}")
        return self


@dataclass(frozen=True)
class SynthesisStream:
    """One utterance between two pieces. A value: the same stream pushed twice gives the same sound twice."""

    config: StreamConfig
    voice: VoicePrompt
    seed: int
    ids: tuple[int, ...]  # context of the next piece, then ids that wait for it
    first: int  # position of `ids[0]` in the utterance
    seen: int  # ids that the flow has seen
    pieces: int  # pieces made
    provisional: Tensor  # (1, bins, time) provisional mel behind the final one
    vocoder: VocoderStream  # what the vocoder goes on from
    is_finished: bool = False

    @property
    def waiting(self) -> int:
        """Ids that the flow has not seen yet."""
        return self.first + len(self.ids) - self.seen

    @property
    def next_piece(self) -> int:
        """Ids that the next piece takes."""
        return self.config.pieces[min(self.pieces, len(self.config.pieces) - 1)]


def begin(
    model: Token2Wav,
    voice: VoicePrompt | str | None = None,
    seed: int | None = 0,
    config: StreamConfig | None = None,
) -> SynthesisStream:
    """An utterance of which nothing was said yet.

    `voice` may be a name of `model.voices`; None is the default voice. `seed=None` chooses one.
    """
    if seed is None:
        seed = int(torch.randint(2**62, ()).item())
    phase = model.vocoder.m_source.sample_phase(1, block_generator(seed, "phase"))
    bins = model.config.flow.output_size
    return SynthesisStream(
        config=config or StreamConfig(),
        voice=model.voice(voice),
        seed=seed,
        ids=(),
        first=0,
        seen=0,
        pieces=0,
        provisional=torch.zeros(1, bins, 0, device=model.device),
        vocoder=start_vocoder_stream(bins, phase.to(model.device)),
    )


@torch.inference_mode()
def push(
    model: Token2Wav, stream: SynthesisStream, speech_ids: Sequence[int] | Tensor, final: bool = False
) -> tuple[Tensor, SynthesisStream]:
    """Add ids; the waveform `(samples,)` on the CPU that is certain now, maybe empty, and the next state.

    `final` says that no more ids will come and gives the rest of the sound; the state is then finished.
    """
    if stream.is_finished:
        raise ValueError("speech stream: expected no ids after the final push; begin a new stream")
    ids = tuple(model.check_ids(speech_ids).tolist())
    stream = replace(stream, ids=stream.ids + ids)
    sounds = []
    while stream.waiting >= stream.next_piece:
        sound, stream = _piece(model, stream, stream.next_piece, is_last=False)
        sounds.append(sound)
    if final:
        sound, stream = _piece(model, stream, stream.waiting, is_last=True)
        sounds.append(sound)
        stream = replace(stream, is_finished=True)
    return torch.cat(sounds).float().cpu() if sounds else torch.zeros(0), stream


def speak_stream(
    model: Token2Wav,
    ids: Iterable[Sequence[int]],
    voice: VoicePrompt | str | None = None,
    seed: int | None = 0,
    config: StreamConfig | None = None,
) -> Iterator[Tensor]:
    """Waveforms `(samples,)`, none of them empty, while the ids come in slices of any size."""
    stream = begin(model, voice, seed, config)
    for slice_ids in ids:
        sound, stream = push(model, stream, slice_ids)
        if len(sound):
            yield sound
    sound, stream = push(model, stream, (), final=True)
    if len(sound):
        yield sound


def _piece(
    model: Token2Wav, stream: SynthesisStream, count: int, is_last: bool
) -> tuple[Tensor, SynthesisStream]:
    """Sound of the next `count` ids, and the state without what is not needed any more."""
    end = stream.seen + count
    mel = stream.provisional
    if count:
        mel = cross_fade(stream.provisional, piece_mel(model, stream, end))
    done = model.config.flow.mel_frames(end if is_last else end - stream.config.lookahead)
    final_frames = done - stream.vocoder.frames
    waveform, vocoder = push_mel(model.vocoder, stream.vocoder, mel, final_frames, stream.seed)
    first = max(stream.first, end - stream.config.context)
    return waveform, replace(
        stream,
        ids=stream.ids[first - stream.first :],
        first=first,
        seen=end,
        pieces=stream.pieces + 1,
        provisional=mel[:, :, final_frames:],
        vocoder=vocoder,
    )


def piece_mel(model: Token2Wav, stream: SynthesisStream, end: int) -> Tensor:
    """Mel `(1, bins, time)` from the first frame that has not sounded to the last one of id `end - 1`."""
    flow = model.flow
    prompt_ids, prompt_mel, embedding = model.voice_tensors(stream.voice)
    ids = model.check_ids(stream.ids[: end - stream.first])[None]
    start = first_frame(model, stream.first)
    stop = flow.config.mel_frames(end)
    h = flow.encode(torch.cat([prompt_ids, ids], dim=1))
    prompt, reply = h[:, : prompt_ids.shape[1]], h[:, prompt_ids.shape[1] :]
    frames = torch.arange(start, stop, device=h.device, dtype=torch.float64)
    positions = (frames + 0.5) * flow.config.ids_per_frame - 0.5 - stream.first
    stretched = torch.cat([stretch(prompt, prompt_mel.shape[1]), stretch_at(reply, positions)], dim=1)
    mu = flow.length_regulator(stretched.transpose(1, 2))
    z = torch.cat(
        [
            frame_noise(stream.seed, "flow", mu.shape[1], -prompt_mel.shape[1], 0),
            frame_noise(stream.seed, "flow", mu.shape[1], start, stop),
        ],
        dim=2,
    )
    mel = flow.mel_from(mu, prompt_mel, embedding, z.to(mu) * flow.config.temperature)
    return mel[:, :, stream.vocoder.frames - start :]


def first_frame(model: Token2Wav, first: int) -> int:
    """The frame at which a piece starts whose ids start at `first`.

    The estimator pairs frames when it halves time; a piece must pair the same ones as every other.
    """
    step = 2 ** (len(model.config.flow.estimator.channels) - 1)
    return model.config.flow.mel_frames(first) // step * step
