"""Chunked prefill and autoregressive generation with a KV cache (steps 3 and 4 of `Engine.reply`).

Legend: L positions of the prompt, n sequences of a batch, dim width of the language model.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echat.infer.audio_input import refuse_not_finite
from echat.infer.decoding import GenerationState
from echat.infer.prompt_cache import Prompt, PromptCache, id_keys, snapshot
from echat.model.llm import KVCache
from echat.model.speech_llm import SpeechLLM

# Positions of a prefill chunk. Long enough to fill the arithmetic units of a CPU, short enough that a
# barge-in, or another reply in the same batch, need not wait for a long prompt.
PREFILL_CHUNK = 128
CACHE_HEADROOM = 256  # free positions of a new cache


@dataclass(frozen=True)
class GeneratedId:
    """One generated id."""

    id: int
    is_speech: bool


@dataclass(frozen=True)
class GenerationStep(GeneratedId):
    """A generated id, and the logits it was chosen from."""

    logits: Tensor  # (classes,) of its head, float32, before any rule


@dataclass(eq=False)
class SequenceState:
    """One sequence of the engine: prompt, progress of prefill, KV cache and generated ids."""

    prompt: Prompt
    state: GenerationState
    cancel: threading.Event | None = None
    n_prefilled: int = 0  # of the prompt's embeddings
    cache: KVCache | None = None
    hidden: Tensor | None = None  # (dim,) of the last position read
    keeps_cache: bool = False
    prompt_cache: PromptCache | None = None  # set when it is over
    turns_left_out: int = 0  # of the history, truncated

    @property
    def is_prefilled(self) -> bool:
        """Is the whole prompt in the cache?"""
        return self.n_prefilled == self.prompt.embeds.shape[1]

    @property
    def is_over(self) -> bool:
        """Is generation over? A cancelled one ends here."""
        if self.state.finish_reason is None and self.cancel is not None and self.cancel.is_set():
            self.state.finish_reason = "cancelled"
        return self.state.finish_reason is not None

    def end(self, model: SpeechLLM, cache: KVCache | None) -> None:
        """Free the cache; with `keeps_cache`, first make a prompt cache of prompt and generated ids."""
        if self.keeps_cache and cache is not None:
            position_keys = (*self.prompt.position_keys, *id_keys(self.state.ids, self.state.is_speech))
            self.prompt_cache = snapshot(model, position_keys, cache, self.prompt.encoded_audio)
        elif self.keeps_cache:
            self.prompt_cache = self.prompt.prompt_cache
        self.cache = self.hidden = None


def generate(model: SpeechLLM, sequence: SequenceState) -> Iterator[GenerationStep]:
    """Generate the ids of a sequence, one step after the other, until it is over."""
    prefill_sequence(model, sequence)
    step = None
    while not sequence.is_over:
        if step is not None:
            _feed_back(model, sequence, step)
        assert sequence.hidden is not None
        (step,) = choose_next(model, sequence.hidden[None], [sequence.state])
        yield step
    sequence.end(model, sequence.cache)


def prefill_sequence(model: SpeechLLM, sequence: SequenceState) -> None:
    """Prefill the rest of the prompt, chunk by chunk, until it is done or cancelled."""
    while not sequence.is_prefilled and not sequence.is_over:
        prefill_step(model, sequence, PREFILL_CHUNK, CACHE_HEADROOM)


@torch.inference_mode()
def _feed_back(model: SpeechLLM, sequence: SequenceState, step: GenerationStep) -> None:
    assert sequence.cache is not None
    hidden, sequence.cache = model.llm.extend(embed_id(model, step.id, step.is_speech), sequence.cache)
    sequence.hidden = hidden[0, -1]


@torch.inference_mode()
def prefill_step(model: SpeechLLM, sequence: SequenceState, chunk: int, room: int = 0) -> int:
    """Prefill up to `chunk` more positions of the prompt; how many they were. `room`: free ones after it."""
    if sequence.cache is None:
        sequence.cache = sequence.prompt.cache(model, room)
    embeds = sequence.prompt.embeds[:, sequence.n_prefilled : sequence.n_prefilled + chunk]
    hidden, sequence.cache = model.llm.extend(embeds, sequence.cache)
    sequence.n_prefilled += embeds.shape[1]
    sequence.hidden = hidden[0, -1]
    return embeds.shape[1]


@torch.inference_mode()
def prefill_with(model: SpeechLLM, prompt: Prompt, ids: Sequence[int]) -> tuple[Tensor, KVCache]:
    """Prefill a prompt and text ids after it: the last hidden state (1, dim), and a new cache."""
    table = model.llm.text_embedding.weight
    written = table[torch.tensor(ids, dtype=torch.long, device=table.device)][None]
    embeds = torch.cat([prompt.embeds, written], dim=1)
    cache = prompt.cache(model, len(ids) + CACHE_HEADROOM)
    hidden = embeds
    for part in embeds.split(PREFILL_CHUNK, dim=1):
        hidden, cache = model.llm.extend(part, cache)
    return hidden[:, -1], cache


@torch.inference_mode()
def choose_next(model: SpeechLLM, hidden: Tensor, states: Sequence[GenerationState]) -> list[GenerationStep]:
    """Choose the next id of n sequences from the hidden states (n, dim) of their last positions; each head
    runs once."""
    is_speech = [state.next_is_speech for state in states]
    steps: dict[int, GenerationStep] = {}
    for kind in sorted(set(is_speech)):
        rows = [row for row, speech in enumerate(is_speech) if speech == kind]
        logits = head_logits(model, hidden if len(rows) == len(states) else hidden[rows], kind)
        for row, scores in zip(rows, logits):
            steps[row] = GenerationStep(states[row].next_id(scores), kind, scores)
    return [steps[row] for row in range(len(states))]


def head_logits(model: SpeechLLM, hidden: Tensor, is_speech: bool) -> Tensor:
    """Logits (n, classes) in float32 on the CPU, where ids are chosen, of hidden states (n, dim)."""
    logits = model.speech_logits(hidden) if is_speech else model.text_logits(hidden)
    logits = logits.float().cpu()
    refuse_not_finite(model, logits)
    return logits


def embed_id(model: SpeechLLM, id_: int, is_speech: bool) -> Tensor:
    """Embedding (1, 1, dim) of a generated id."""
    table = model.speech_embedding.weight if is_speech else model.llm.text_embedding.weight
    return table[id_].view(1, 1, -1)


@torch.no_grad()
def generate_uncached(model: SpeechLLM, embeds: Tensor, state: GenerationState) -> Iterator[GenerationStep]:
    """The slow, obvious twin of `generate`: no cache; each step reads all of `embeds` (1, L, dim) anew.

    It is the oracle of the tests and runs transformers' own forward pass, the one of training.
    """
    while state.finish_reason is None:
        hidden, _ = model.hidden(embeds)
        (step,) = choose_next(model, hidden[0, -1:], [state])
        yield step
        embeds = torch.cat([embeds, embed_id(model, step.id, step.is_speech)], dim=1)
