"""The loop that writes one reply with a cache: read the prompt in chunks, then one id after the other.

Legend: L positions of the prompt, n replies written side by side, dim width of the language model.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echat.infer.audio_input import refuse_not_finite
from echat.infer.decoding import DecodingRules, GenerationState
from echat.infer.prompt_cache import Prompt, PromptCache, id_keys, snapshot
from echat.model.llm import KVCache
from echat.model.speech_llm import SpeechLLM

# Positions read at once. Long enough to fill the arithmetic units of a CPU, short enough that a listener who
# interrupts, or another reply in the same batch, need not wait for a long prompt.
PREFILL_CHUNK = 128
CACHE_HEADROOM = 256  # positions by which storage outgrows the need of the moment


@dataclass(frozen=True)
class GeneratedId:
    """One generated id."""

    id: int
    is_speech: bool


@dataclass(frozen=True)
class GenerationStep(GeneratedId):
    """And what it was chosen from."""

    logits: Tensor  # (classes,) of the head that spoke, float32, before any rule


@dataclass(eq=False)
class SequenceState:
    """One reply under way: how far its prompt is read and what is written. Local to its conversation."""

    prompt: Prompt
    state: GenerationState
    cancel: threading.Event | None = None
    n_prefilled: int = 0  # of the prompt's embeddings
    cache: KVCache | None = None
    hidden: Tensor | None = None  # (dim,) of the last position read
    keeps_cache: bool = False
    prompt_cache: PromptCache | None = None  # what is left when it is over
    turns_left_out: int = 0  # of the history: more than the model learned or has positions for

    @property
    def is_prefilled(self) -> bool:
        """Is the whole prompt read?"""
        return self.n_prefilled == self.prompt.embeds.shape[1]

    @property
    def is_over(self) -> bool:
        """Has the reply come to an end? A cancelled one ends here."""
        if self.state.finish_reason is None and self.cancel is not None and self.cancel.is_set():
            self.state.finish_reason = "cancelled"
        return self.state.finish_reason is not None

    def end(self, model: SpeechLLM, cache: KVCache | None) -> None:
        """Let go of everything; with `keeps_cache`, keep what `cache` holds of what was read and written."""
        if self.keeps_cache and cache is not None:
            position_keys = (*self.prompt.position_keys, *id_keys(self.state.ids, self.state.is_speech))
            self.prompt_cache = snapshot(model, position_keys, cache, self.prompt.encoded_audio)
        elif self.keeps_cache:
            self.prompt_cache = self.prompt.prompt_cache
        self.cache = self.hidden = None


def generate(
    model: SpeechLLM, embeds: Tensor, rules: DecodingRules, generator: torch.Generator | None = None
) -> Iterator[tuple[GenerationStep, GenerationState]]:
    """Write a reply to the prompt `embeds` (1, L, dim): one step at a time, and the reply as far as it is
    written."""
    yield from generate_into(model, embeds, GenerationState(rules, generator))


def generate_into(
    model: SpeechLLM, embeds: Tensor, state: GenerationState
) -> Iterator[tuple[GenerationStep, GenerationState]]:
    """`generate` into a reply that has its own way of choosing."""
    for step in generate_sequence(model, SequenceState(Prompt(embeds), state)):
        yield step, state


def generate_sequence(model: SpeechLLM, sequence: SequenceState) -> Iterator[GenerationStep]:
    """Write the reply of a sequence, step by step, until it is over."""
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
    """Read what is left of the prompt, chunk by chunk, unless it is cancelled meanwhile."""
    while not sequence.is_prefilled and not sequence.is_over:
        prefill_step(model, sequence, PREFILL_CHUNK, CACHE_HEADROOM)


@torch.inference_mode()
def _feed_back(model: SpeechLLM, sequence: SequenceState, step: GenerationStep) -> None:
    assert sequence.cache is not None
    hidden, sequence.cache = model.llm.extend(embed_id(model, step.id, step.is_speech), sequence.cache)
    sequence.hidden = hidden[0, -1]


@torch.inference_mode()
def prefill_step(model: SpeechLLM, sequence: SequenceState, chunk: int, room: int = 0) -> int:
    """Read up to `chunk` more positions of the prompt; how many they were. `room` is for what is written
    after it."""
    if sequence.cache is None:
        sequence.cache = sequence.prompt.cache(model, room)
    embeds = sequence.prompt.embeds[:, sequence.n_prefilled : sequence.n_prefilled + chunk]
    hidden, sequence.cache = model.llm.extend(embeds, sequence.cache)
    sequence.n_prefilled += embeds.shape[1]
    sequence.hidden = hidden[0, -1]
    return embeds.shape[1]


@torch.inference_mode()
def prefill_with(model: SpeechLLM, prompt: Prompt, ids: Sequence[int]) -> tuple[Tensor, KVCache]:
    """Read a prompt and text ids written after it: the last hidden state (1, dim), and a cache of its own."""
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
    """Choose the next id of n replies from the hidden states (n, dim) of their last positions; each head
    speaks once."""
    is_speech = [state.next_is_speech for state in states]
    steps: dict[int, GenerationStep] = {}
    for kind in sorted(set(is_speech)):
        rows = [row for row, speech in enumerate(is_speech) if speech == kind]
        logits = head_logits(model, hidden if len(rows) == len(states) else hidden[rows], kind)
        for row, scores in zip(rows, logits):
            steps[row] = GenerationStep(states[row].next_id(scores), kind, scores)
    return [steps[row] for row in range(len(states))]


def head_logits(model: SpeechLLM, hidden: Tensor, is_speech: bool) -> Tensor:
    """Scores (n, classes) in float32 on the CPU, where ids are chosen, from hidden states (n, dim)."""
    logits = model.speech_logits(hidden) if is_speech else model.text_logits(hidden)
    logits = logits.float().cpu()
    refuse_not_finite(model, logits)
    return logits


def embed_id(model: SpeechLLM, id_: int, is_speech: bool) -> Tensor:
    """Embedding (1, 1, dim) of an id that was just written."""
    table = model.speech_embedding.weight if is_speech else model.llm.text_embedding.weight
    return table[id_].view(1, 1, -1)


# --- The slow, obvious twin of the engine's loop: no cache, no batch; every id reads the whole sequence anew.


@torch.no_grad()
def generate_uncached(
    model: SpeechLLM, embeds: Tensor, rules: DecodingRules, generator: torch.Generator | None = None
) -> Iterator[tuple[GenerationStep, GenerationState]]:
    """The slow, obvious twin of `generate`: no cache; every id reads the whole sequence anew.

    It is the oracle of the tests and runs transformers' own forward pass, the one that trains.
    """
    state = GenerationState(rules, generator)
    while state.finish_reason is None:
        hidden, _ = model.hidden(embeds)
        (step,) = choose_next(model, hidden[0, -1:], [state])
        yield step, state
        embeds = torch.cat([embeds, embed_id(model, step.id, step.is_speech)], dim=1)
