"""Segments -> what the language model has yet to read: only new sounds are encoded, only new positions
embedded.

Legend: L positions still to be read, D frames of a sound, dim width of the language model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from echat.dialogue.rendering import Audio, Segment, Speech, Text
from echat.dialogue.tasks import Task
from echat.dialogue.turns import Conversation, Turn, UserTurn
from echat.infer.hearing import fingerprint, in_pieces, listen, longest_seconds, to_mel
from echat.infer.memory import Memory, Place, copy_of, places_of, shared_length
from echat.model.llm import KVCache
from echat.model.speech_llm import AUDIO, SPEECH, TEXT, SpeechLLM


@dataclass(frozen=True)
class Prompt:
    """What a reply answers: the places of the whole prompt, and the embeddings of what is not yet read."""

    embeds: Tensor  # (1, L, dim) of the last L places
    places: tuple[Place, ...] = ()
    memory: Memory = field(default_factory=Memory)  # begins with the places before these
    # Of this prompt: fingerprint -> frames (D, dim).
    sounds: Mapping[bytes, Tensor] = field(default_factory=dict)
    mel_frames_encoded: int = 0

    @property
    def reused(self) -> int:
        """Positions that need not be read again."""
        return len(self.places) - self.embeds.shape[1] if self.places else 0

    @property
    def last_sound(self) -> Tensor | None:
        """Frames (D, dim) of the last sound, if it was heard in one piece."""
        runs = [[*run] for _, run in groupby(self.places, lambda place: isinstance(place, tuple))]
        last = next((run for run in reversed(runs) if isinstance(run[0], tuple)), [])
        pieces = {place[0] for place in last if isinstance(place, tuple)}
        return self.sounds[pieces.pop()] if len(pieces) == 1 else None

    def cache(self, model: SpeechLLM, room: int) -> KVCache:
        """A cache of its own that holds the reused positions, with room for the others and `room` more."""
        capacity = self.reused + self.embeds.shape[1] + room
        if self.memory.cache is None or not self.reused:
            return model.llm.new_cache(capacity=capacity)
        return copy_of(self.memory.cache, self.reused, capacity)


@torch.inference_mode()
def prepare(
    model: SpeechLLM,
    prompts: Sequence[Sequence[Segment]],
    memories: Sequence[Sequence[Memory]] | None = None,
    lead_in: bool = True,
) -> list[Prompt]:
    """Prompts that start from the memory which holds most of them; all new sounds are encoded in one batch.

    `memories`: candidates for each prompt. `lead_in`: quiet before sounds that begin at once.
    """
    prompts = [list(in_pieces(segments)) for segments in prompts]
    memories = [()] * len(prompts) if memories is None else memories
    for memory in (memory for row in memories for memory in row):
        if memory.model is not None and memory.model is not model:
            raise ValueError(
                "memory: expected one that this model made, found one of another model; begin with Memory()"
            )
    heard = [
        [(fingerprint(s.audio, lead_in), s.audio) for s in row if isinstance(s, Audio)] for row in prompts
    ]
    known = {key: frames for row in memories for memory in row for key, frames in memory.sounds.items()}
    new = {key: audio for row in heard for key, audio in row if key not in known}
    n_mels, most_seconds = model.config.encoder.n_mels, longest_seconds(model)
    mels = {key: to_mel(audio, n_mels, lead_in, most_seconds) for key, audio in new.items()}
    known |= zip(mels, listen(model, list(mels.values())))
    ready = []
    for segments, sounds, candidates in zip(prompts, heard, memories, strict=True):
        keys = [key for key, _ in sounds]
        encoded = sum(len(mels.pop(key)) for key in dict.fromkeys(keys) if key in mels)
        ready.append(_start(model, segments, keys, known, candidates, encoded))
    return ready


def _start(
    model: SpeechLLM,
    segments: Sequence[Segment],
    keys: Sequence[bytes],
    known: Mapping[bytes, Tensor],
    candidates: Sequence[Memory],
    encoded: int,
) -> Prompt:
    frames = [known[key] for key in keys]
    places = tuple(places_of(segments, keys, [len(rows) for rows in frames]))
    lengths = [shared_length(places, memory.places) for memory in candidates]
    best = max(range(len(lengths)), key=lengths.__getitem__, default=None)
    # The last place is always read: the first id is chosen from what the model makes of it.
    reused = 0 if best is None else min(lengths[best], len(places) - 1)
    embeds = embed_prompt(model, segments, frames, reused)
    memory = candidates[best] if best is not None and reused else Memory()
    return Prompt(embeds, places, memory, dict(zip(keys, frames)), encoded)


def embed_prompt(
    model: SpeechLLM, segments: Sequence[Segment], frames: Sequence[Tensor], start: int = 0
) -> Tensor:
    """Segments and, in their order, the encoded frames (D, dim) of each `Audio` -> embeds (1, L, dim) from
    position `start` on."""
    kinds: list[int] = []
    ids: list[int] = []
    heard = iter(frames)
    n_frames = 0
    for segment in segments:
        if isinstance(segment, Audio):
            length = next(heard).shape[0]
            kinds += [AUDIO] * length
            ids += range(n_frames, n_frames + length)
            n_frames += length
        else:
            kinds += [SPEECH if isinstance(segment, Speech) else TEXT] * len(segment.ids)
            ids += segment.ids
    device = model.speech_embedding.weight.device
    audio_frames = torch.cat(list(frames)) if frames else None
    return model.assemble(
        torch.tensor([kinds[start:]], device=device), torch.tensor([ids[start:]], device=device), audio_frames
    )


def shared_segments(segments: Sequence[Segment], others: Sequence[Segment]) -> list[Segment]:
    """What two prompts have in common at their beginning; a sound is itself and no other."""
    shared: list[Segment] = []
    for segment, other in zip(segments, others):
        if isinstance(segment, Audio) or isinstance(other, Audio):
            if not (isinstance(segment, Audio) and isinstance(other, Audio) and segment.audio is other.audio):
                break
            shared.append(segment)
            continue
        if type(segment) is not type(other):
            break
        length = shared_length(segment.ids, other.ids)
        shared.append((Speech if isinstance(segment, Speech) else Text)(segment.ids[:length]))
        if length < max(len(segment.ids), len(other.ids)):
            break
    return shared


def known_ahead(
    turns: Sequence[Turn], task: Task, render: Callable[[Conversation], list[Segment]]
) -> list[Segment]:
    """What can be read of a prompt before it is whole: to the end of the last sound where `turns` end with a
    spoken question, else what does not depend on the next question. A typed question is read by its reply."""
    question = turns[-1] if turns and isinstance(turns[-1], UserTurn) else None
    if question is not None and question.audio is not None:
        segments = render(Conversation(turns))
        last = max(place for place, segment in enumerate(segments) if isinstance(segment, Audio))
        return segments[: last + 1]
    finished = turns[:-1] if question else turns
    guesses = [UserTurn(text=word) if task.hears == "text" else UserTurn(audio=object()) for word in "12"]
    return shared_segments(*(render(Conversation([*finished, guess])) for guess in guesses))
