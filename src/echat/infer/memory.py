"""What is already read of a conversation: a value that one reply leaves and the next one starts from.

A place says what stands at one position of the language model, so that two sequences can be compared without
a model: a text id as it is, a speech id as its complement (below zero), a frame of a sound as (fingerprint of
the sound, number of the frame).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echat.dialogue.rendering import Audio, Segment, Speech
from echat.model.llm import KVCache
from echat.model.speech_llm import SpeechLLM

Place = int | tuple[bytes, int]


@dataclass(frozen=True)
class Memory:
    """Positions that were read, with their keys and values, and the sounds that were heard.

    `Memory()` is the beginning of every conversation. A memory is never written to, so any number of replies
    may start from the same one, at the same time.
    """

    places: tuple[Place, ...] = ()
    cache: KVCache | None = None  # of one row; its length is that of `places`
    sounds: Mapping[bytes, Tensor] = field(default_factory=dict)  # fingerprint -> frames (D, dim)
    model: SpeechLLM | None = field(default=None, repr=False)  # whose keys and values these are

    @property
    def n_bytes(self) -> int:
        """Room taken by keys, values and frames."""
        stored = [self.cache.keys, self.cache.values] if self.cache is not None else []
        return sum(tensor.nbytes for tensor in (*stored, *self.sounds.values()))


def places_of(segments: Sequence[Segment], fingerprints: Sequence[bytes], lens: Sequence[int]) -> list[Place]:
    """One place per position; fingerprint and number of frames of each `Audio`, in their order."""
    sounds = iter(zip(fingerprints, lens, strict=True))
    places: list[Place] = []
    for segment in segments:
        if isinstance(segment, Audio):
            fingerprint, length = next(sounds)
            places += [(fingerprint, frame) for frame in range(length)]
        else:
            places += written_places(segment.ids, [isinstance(segment, Speech)] * len(segment.ids))
    return places


def written_places(ids: Sequence[int], is_speech: Sequence[bool]) -> list[Place]:
    """Places of ids of either space."""
    return [~id_ if speech else id_ for id_, speech in zip(ids, is_speech)]


def shared_length(places: Sequence[Place], others: Sequence[Place]) -> int:
    """How many positions two sequences have in common at their beginning."""
    shortest = min(len(places), len(others))
    return next((n for n in range(shortest) if places[n] != others[n]), shortest)


def copy_of(cache: KVCache, length: int, capacity: int) -> KVCache:
    """The first `length` positions of a cache, in storage of its own with room for `capacity`."""
    layers, batch, heads, _, dim = cache.keys.shape
    copies = []
    for old in (cache.keys, cache.values):
        new = old.new_zeros(layers, batch, heads, max(length, capacity), dim)
        new[..., :length, :] = old[..., :length, :]
        copies.append(new)
    return KVCache(copies[0], copies[1], length)


@torch.inference_mode()
def remember(
    model: SpeechLLM, places: Sequence[Place], cache: KVCache, sounds: Mapping[bytes, Tensor]
) -> Memory:
    """The memory of what `cache` holds; `places` may go on beyond it."""
    return Memory(tuple(places[: cache.length]), copy_of(cache, cache.length, 0), dict(sounds), model)
