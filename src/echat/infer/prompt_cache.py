"""The prompt cache (prefix cache) and the prompt of a reply (step 2 of `Engine.reply`).

A reply leaves a cache of its keys and values, and the next one starts from the longest prefix that it shares:
only new audio is encoded, only new positions are embedded. A position key identifies the content of one
position, so that prefixes can be compared without a model: a text id as it is, a speech id as its complement
(below zero), a frame of audio as (fingerprint of the audio, number of the frame).

Legend: L positions to prefill, D frames of audio, dim width of the language model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from echat.dialogue.rendering import AudioSegment, Segment, SpeechSegment
from echat.dialogue.tasks import Task
from echat.dialogue.turns import Conversation, Turn, UserTurn
from echat.dialogue.vocabulary import AUDIO, SPEECH, TEXT
from echat.infer.audio_input import encode_audio, fingerprint, longest_seconds, split_recordings, to_mel
from echat.model.llm import KVCache
from echat.model.speech_llm import SpeechLLM

PositionKey = int | tuple[bytes, int]


@dataclass(frozen=True)
class PromptCache:
    """The KV cache of positions that a model has read, and the audio that it has encoded.

    `PromptCache()` is empty, for a new conversation. A prompt cache is never modified, so any number of
    replies may start from the same one, at the same time.
    """

    position_keys: tuple[PositionKey, ...] = ()
    cache: KVCache | None = None  # of one row; its length is that of `position_keys`
    encoded_audio: Mapping[bytes, Tensor] = field(default_factory=dict)  # fingerprint -> frames (D, dim)
    model: SpeechLLM | None = field(default=None, repr=False)  # whose keys and values these are

    @property
    def n_bytes(self) -> int:
        """Size of keys, values and frames."""
        stored = [self.cache.keys, self.cache.values] if self.cache is not None else []
        return sum(tensor.nbytes for tensor in (*stored, *self.encoded_audio.values()))


def position_keys_of(
    segments: Sequence[Segment], fingerprints: Sequence[bytes], lens: Sequence[int]
) -> list[PositionKey]:
    """One key per position; fingerprint and number of frames of each `AudioSegment`, in their order."""
    encoded_audio = iter(zip(fingerprints, lens, strict=True))
    position_keys: list[PositionKey] = []
    for segment in segments:
        if isinstance(segment, AudioSegment):
            fingerprint, length = next(encoded_audio)
            position_keys += [(fingerprint, frame) for frame in range(length)]
        else:
            position_keys += id_keys(segment.ids, [isinstance(segment, SpeechSegment)] * len(segment.ids))
    return position_keys


def id_keys(ids: Sequence[int], is_speech: Sequence[bool]) -> list[PositionKey]:
    """Keys of ids of either space."""
    return [~id_ if speech else id_ for id_, speech in zip(ids, is_speech)]


def shared_prefix_length(position_keys: Sequence[PositionKey], others: Sequence[PositionKey]) -> int:
    """Length of the common prefix of two sequences."""
    shortest = min(len(position_keys), len(others))
    return next((n for n in range(shortest) if position_keys[n] != others[n]), shortest)


def copy_cache(cache: KVCache, length: int, capacity: int) -> KVCache:
    """A copy of the first `length` positions of a cache, in new storage for `capacity`."""
    layers, batch, heads, _, dim = cache.keys.shape
    copies = []
    for old in (cache.keys, cache.values):
        new = old.new_zeros(layers, batch, heads, max(length, capacity), dim)
        new[..., :length, :] = old[..., :length, :]
        copies.append(new)
    return KVCache(copies[0], copies[1], length)


@torch.inference_mode()
def snapshot(
    model: SpeechLLM,
    position_keys: Sequence[PositionKey],
    cache: KVCache,
    encoded_audio: Mapping[bytes, Tensor],
) -> PromptCache:
    """A prompt cache with the content of `cache`; `position_keys` may be longer."""
    return PromptCache(
        tuple(position_keys[: cache.length]), copy_cache(cache, cache.length, 0), dict(encoded_audio), model
    )


# --- Segments -> embeddings of the positions that are not cached


@dataclass(frozen=True)
class Prompt:
    """The keys of a whole prompt, and the embeddings of its positions that are not cached."""

    embeds: Tensor  # (1, L, dim) of the last L positions
    position_keys: tuple[PositionKey, ...] = ()
    prompt_cache: PromptCache = field(
        default_factory=PromptCache
    )  # has the positions before these as a prefix
    # Of this prompt: fingerprint -> frames (D, dim).
    encoded_audio: Mapping[bytes, Tensor] = field(default_factory=dict)
    mel_frames_encoded: int = 0

    @property
    def n_cached(self) -> int:
        """Positions found in the prompt cache."""
        return len(self.position_keys) - self.embeds.shape[1] if self.position_keys else 0

    @property
    def last_audio(self) -> Tensor | None:
        """Frames (D, dim) of the last audio; None if it is in several pieces."""
        runs = [
            [*run] for _, run in groupby(self.position_keys, lambda position: isinstance(position, tuple))
        ]
        last = next((run for run in reversed(runs) if isinstance(run[0], tuple)), [])
        pieces = {position[0] for position in last if isinstance(position, tuple)}
        return self.encoded_audio[pieces.pop()] if len(pieces) == 1 else None

    def cache(self, model: SpeechLLM, room: int) -> KVCache:
        """A new KV cache with the reused positions, and capacity for the others and `room` more."""
        capacity = self.n_cached + self.embeds.shape[1] + room
        if self.prompt_cache.cache is None or not self.n_cached:
            return model.llm.new_cache(capacity=capacity)
        return copy_cache(self.prompt_cache.cache, self.n_cached, capacity)


@torch.inference_mode()
def prepare_prompts(
    model: SpeechLLM,
    prompts: Sequence[Sequence[Segment]],
    prompt_caches: Sequence[Sequence[PromptCache]] | None = None,
    lead_in: bool = True,
) -> list[Prompt]:
    """Prompts, each with the prompt cache that shares the longest prefix; new audio is encoded in one batch.

    `prompt_caches`: candidates for each prompt. `lead_in`: pad audio that begins abruptly.
    """
    prompts = [list(split_recordings(segments)) for segments in prompts]
    prompt_caches = [()] * len(prompts) if prompt_caches is None else prompt_caches
    for prompt_cache in (prompt_cache for row in prompt_caches for prompt_cache in row):
        if prompt_cache.model is not None and prompt_cache.model is not model:
            raise ValueError(
                "prompt cache: expected one that this model made, found one of another model; "
                "begin with PromptCache()"
            )
    clips = [
        [(fingerprint(s.audio, lead_in), s.audio) for s in row if isinstance(s, AudioSegment)]
        for row in prompts
    ]
    known = {
        key: frames
        for row in prompt_caches
        for prompt_cache in row
        for key, frames in prompt_cache.encoded_audio.items()
    }
    new = {key: audio for row in clips for key, audio in row if key not in known}
    n_mels, most_seconds = model.config.encoder.n_mels, longest_seconds(model)
    mels = {key: to_mel(audio, n_mels, lead_in, most_seconds) for key, audio in new.items()}
    known |= zip(mels, encode_audio(model, list(mels.values())))
    ready = []
    for segments, row_clips, candidates in zip(prompts, clips, prompt_caches, strict=True):
        keys = [key for key, _ in row_clips]
        encoded = sum(len(mels.pop(key)) for key in dict.fromkeys(keys) if key in mels)
        ready.append(_make_prompt(model, segments, keys, known, candidates, encoded))
    return ready


def _make_prompt(
    model: SpeechLLM,
    segments: Sequence[Segment],
    keys: Sequence[bytes],
    known: Mapping[bytes, Tensor],
    candidates: Sequence[PromptCache],
    encoded: int,
) -> Prompt:
    frames = [known[key] for key in keys]
    position_keys = tuple(position_keys_of(segments, keys, [len(rows) for rows in frames]))
    lengths = [shared_prefix_length(position_keys, prompt_cache.position_keys) for prompt_cache in candidates]
    best = max(range(len(lengths)), key=lengths.__getitem__, default=None)
    # The last position is always prefilled: its hidden state gives the first id.
    n_cached = 0 if best is None else min(lengths[best], len(position_keys) - 1)
    embeds = embed_prompt(model, segments, frames, n_cached)
    prompt_cache = candidates[best] if best is not None and n_cached else PromptCache()
    return Prompt(embeds, position_keys, prompt_cache, dict(zip(keys, frames)), encoded)


def embed_prompt(
    model: SpeechLLM, segments: Sequence[Segment], frames: Sequence[Tensor], start: int = 0
) -> Tensor:
    """Segments and, in order, the encoded frames (D, dim) of each `AudioSegment` -> embeds (1, L, dim) from
    position `start` on."""
    kinds: list[int] = []
    ids: list[int] = []
    clips = iter(frames)
    n_frames = 0
    for segment in segments:
        if isinstance(segment, AudioSegment):
            length = next(clips).shape[0]
            kinds += [AUDIO] * length
            ids += range(n_frames, n_frames + length)
            n_frames += length
        else:
            kinds += [SPEECH if isinstance(segment, SpeechSegment) else TEXT] * len(segment.ids)
            ids += segment.ids
    device = model.speech_embedding.weight.device
    audio_frames = torch.cat(list(frames)) if frames else None
    return model.assemble(
        torch.tensor([kinds[start:]], device=device), torch.tensor([ids[start:]], device=device), audio_frames
    )


def shared_prefix(segments: Sequence[Segment], others: Sequence[Segment]) -> list[Segment]:
    """The common prefix of two prompts; audio is compared by identity."""
    shared: list[Segment] = []
    for segment, other in zip(segments, others):
        if isinstance(segment, AudioSegment) and isinstance(other, AudioSegment):
            if segment.audio is not other.audio:
                break
            shared.append(segment)
            continue
        if isinstance(segment, AudioSegment) or isinstance(other, AudioSegment):
            break
        if type(segment) is not type(other):
            break
        length = shared_prefix_length(segment.ids, other.ids)
        shared.append(replace(segment, ids=segment.ids[:length], is_target=False))
        if length < max(len(segment.ids), len(other.ids)):
            break
    return shared


def known_prefix(
    turns: Sequence[Turn], task: Task, render: Callable[[Conversation], list[Segment]]
) -> list[Segment]:
    """The part of a prompt that can be prefilled before the question is complete: up to the end of the last
    audio where `turns` end with a spoken question, else what does not depend on the next question. A typed
    question is left to its reply."""
    question = turns[-1] if turns and isinstance(turns[-1], UserTurn) else None
    if question is not None and question.audio is not None:
        segments = render(Conversation(turns))
        last = max(position for position, segment in enumerate(segments) if isinstance(segment, AudioSegment))
        return segments[: last + 1]
    finished = turns[:-1] if question else turns
    examples = [
        UserTurn(text=word) if task.input_modality == "text" else UserTurn(audio=object()) for word in "12"
    ]
    return shared_prefix(*(render(Conversation([*finished, example])) for example in examples))
