"""The loop that writes one reply with a cache: read the prompt in chunks, then one id after the other.

Legend: L positions of the prompt, n replies written side by side, dim width of the language model.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echat.infer.decoding import Plan, Writing
from echat.infer.hearing import refuse_not_finite
from echat.infer.memory import Memory, remember, written_places
from echat.infer.prompting import Prompt
from echat.model.llm import KVCache
from echat.model.speech_llm import SpeechLLM

# Positions read at once. Long enough to fill the arithmetic units of a CPU, short enough that a listener who
# interrupts, or another reply in the same batch, need not wait for a long prompt.
READ_CHUNK = 128
ROOM = 256  # positions by which storage outgrows the need of the moment


@dataclass(frozen=True)
class Written:
    """One generated id."""

    id: int
    is_speech: bool


@dataclass(frozen=True)
class Step(Written):
    """And what it was chosen from."""

    logits: Tensor  # (classes,) of the head that spoke, float32, before any rule


@dataclass(eq=False)
class Strand:
    """One reply under way: how far its prompt is read and what is written. Local to its conversation."""

    prompt: Prompt
    writing: Writing
    cancel: threading.Event | None = None
    n_read: int = 0  # of the prompt's embeddings
    cache: KVCache | None = None
    hidden: Tensor | None = None  # (dim,) of the last position read
    remembers: bool = False
    memory: Memory | None = None  # what is left when it is over
    turns_left_out: int = 0  # of the history: more than the model learned or has positions for

    @property
    def is_read(self) -> bool:
        """Is the whole prompt read?"""
        return self.n_read == self.prompt.embeds.shape[1]

    @property
    def is_over(self) -> bool:
        """Has the reply come to an end? A cancelled one ends here."""
        if self.writing.finish_reason is None and self.cancel is not None and self.cancel.is_set():
            self.writing.finish_reason = "cancelled"
        return self.writing.finish_reason is not None

    def end(self, model: SpeechLLM, cache: KVCache | None) -> None:
        """Let go of everything; with `remembers`, keep what `cache` holds of what was read and written."""
        if self.remembers and cache is not None:
            places = (*self.prompt.places, *written_places(self.writing.ids, self.writing.is_speech))
            self.memory = remember(model, places, cache, self.prompt.sounds)
        elif self.remembers:
            self.memory = self.prompt.memory
        self.cache = self.hidden = None


def generate(
    model: SpeechLLM, embeds: Tensor, plan: Plan, generator: torch.Generator | None = None
) -> Iterator[tuple[Step, Writing]]:
    """Write a reply to the prompt `embeds` (1, L, dim): one step at a time, and the reply as far as it is
    written."""
    yield from write(model, embeds, Writing(plan, generator))


def write(model: SpeechLLM, embeds: Tensor, writing: Writing) -> Iterator[tuple[Step, Writing]]:
    """`generate` into a reply that has its own way of choosing."""
    for step in run(model, Strand(Prompt(embeds), writing)):
        yield step, writing


def run(model: SpeechLLM, strand: Strand) -> Iterator[Step]:
    """Write the reply of a strand, step by step, until it is over."""
    read_prompt(model, strand)
    step = None
    while not strand.is_over:
        if step is not None:
            _read_back(model, strand, step)
        assert strand.hidden is not None
        (step,) = write_next(model, strand.hidden[None], [strand.writing])
        yield step
    strand.end(model, strand.cache)


def read_prompt(model: SpeechLLM, strand: Strand) -> None:
    """Read what is left of the prompt, chunk by chunk, unless it is cancelled meanwhile."""
    while not strand.is_read and not strand.is_over:
        read(model, strand, READ_CHUNK, ROOM)


@torch.inference_mode()
def _read_back(model: SpeechLLM, strand: Strand, step: Step) -> None:
    assert strand.cache is not None
    hidden, strand.cache = model.llm.extend(embed_id(model, step.id, step.is_speech), strand.cache)
    strand.hidden = hidden[0, -1]


@torch.inference_mode()
def read(model: SpeechLLM, strand: Strand, chunk: int, room: int = 0) -> int:
    """Read up to `chunk` more positions of the prompt; how many they were. `room` is for what is written
    after it."""
    if strand.cache is None:
        strand.cache = strand.prompt.cache(model, room)
    embeds = strand.prompt.embeds[:, strand.n_read : strand.n_read + chunk]
    hidden, strand.cache = model.llm.extend(embeds, strand.cache)
    strand.n_read += embeds.shape[1]
    strand.hidden = hidden[0, -1]
    return embeds.shape[1]


@torch.inference_mode()
def read_with(model: SpeechLLM, prompt: Prompt, ids: Sequence[int]) -> tuple[Tensor, KVCache]:
    """Read a prompt and text ids written after it: the last hidden state (1, dim), and a cache of its own."""
    table = model.llm.text_embedding.weight
    written = table[torch.tensor(ids, dtype=torch.long, device=table.device)][None]
    embeds = torch.cat([prompt.embeds, written], dim=1)
    cache = prompt.cache(model, len(ids) + ROOM)
    hidden = embeds
    for part in embeds.split(READ_CHUNK, dim=1):
        hidden, cache = model.llm.extend(part, cache)
    return hidden[:, -1], cache


@torch.inference_mode()
def write_next(model: SpeechLLM, hidden: Tensor, writings: Sequence[Writing]) -> list[Step]:
    """Choose the next id of n replies from the hidden states (n, dim) of their last positions; each head
    speaks once."""
    is_speech = [writing.next_is_speech for writing in writings]
    steps: dict[int, Step] = {}
    for kind in sorted(set(is_speech)):
        rows = [row for row, speech in enumerate(is_speech) if speech == kind]
        logits = head_logits(model, hidden if len(rows) == len(writings) else hidden[rows], kind)
        for row, scores in zip(rows, logits):
            steps[row] = Step(writings[row].next_id(scores), kind, scores)
    return [steps[row] for row in range(len(writings))]


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
