"""Prompt segments to embeddings, and the loop that writes one reply with a cache.

Legend: L positions of the prompt, dim width of the language model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echat.dialogue.rendering import Audio, Segment, Speech
from echat.infer.decoding import Plan, Writing
from echat.model.llm import KVCache
from echat.model.speech_llm import AUDIO, SPEECH, TEXT, SpeechLLM


@dataclass(frozen=True)
class Step:
    """One generated id and what it was chosen from."""

    id: int
    is_speech: bool
    logits: Tensor  # (classes,) of the head that spoke, float32, before any rule


def embed_prompt(model: SpeechLLM, segments: Sequence[Segment], frames: Sequence[Tensor]) -> Tensor:
    """Segments and, in their order, the encoded frames (D, dim) of each `Audio` -> embeds (1, L, dim)."""
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
        torch.tensor([kinds], device=device), torch.tensor([ids], device=device), audio_frames
    )


def embed_id(model: SpeechLLM, id_: int, is_speech: bool) -> Tensor:
    """Embedding (1, 1, dim) of an id that was just written."""
    table = model.speech_embedding.weight if is_speech else model.llm.text_embedding.weight
    return table[id_].view(1, 1, -1)


def head_logits(model: SpeechLLM, hidden: Tensor, is_speech: bool) -> Tensor:
    """Scores (classes,) in float32 on the CPU, where ids are chosen, from the hidden state (dim,)."""
    logits = model.speech_logits(hidden) if is_speech else model.text_logits(hidden)
    return logits.float().cpu()


@torch.inference_mode()
def prefill(model: SpeechLLM, embeds: Tensor, cache: KVCache | None = None) -> tuple[Tensor, KVCache]:
    """Read a prompt (1, L, dim) -> hidden state of its last position (dim,), cache."""
    cache = cache or model.llm.new_cache(capacity=embeds.shape[1] + 256)
    hidden, cache = model.llm.extend(embeds, cache)
    return hidden[0, -1], cache


def generate(
    model: SpeechLLM, embeds: Tensor, plan: Plan, generator: torch.Generator | None = None
) -> Iterator[tuple[Step, Writing]]:
    """Write a reply to the prompt `embeds` (1, L, dim): one step at a time, and the reply as far as it is
    written."""
    yield from write(model, embeds, Writing(plan, generator))


def write(model: SpeechLLM, embeds: Tensor, writing: Writing) -> Iterator[tuple[Step, Writing]]:
    """`generate` into a reply that has its own way of choosing."""
    hidden, cache = prefill(model, embeds)
    while True:
        step = write_next(model, hidden, writing)
        yield step, writing
        if writing.finish_reason is not None:
            return
        with torch.inference_mode():
            output, cache = model.llm.extend(embed_id(model, step.id, step.is_speech), cache)
        hidden = output[0, -1]


def write_next(model: SpeechLLM, hidden: Tensor, writing: Writing) -> Step:
    """Choose the next id of a reply from the hidden state (dim,) of its last position."""
    with torch.inference_mode():
        is_speech = writing.next_is_speech
        logits = head_logits(model, hidden, is_speech)
        return Step(writing.next_id(logits), is_speech, logits)
