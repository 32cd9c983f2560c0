"""The slow, obvious twin of the engine's loop: no cache, no batch; every id reads the whole sequence anew.

It is the oracle of the tests and runs transformers' own forward pass, the one that trains.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from echat.infer.decoding import Plan, Writing
from echat.infer.generation import Step, embed_id, write_next
from echat.model.speech_llm import SpeechLLM


@torch.no_grad()
def generate(
    model: SpeechLLM, embeds: Tensor, plan: Plan, generator: torch.Generator | None = None
) -> Iterator[tuple[Step, Writing]]:
    """The same contract as `generation.generate`."""
    writing = Writing(plan, generator)
    while writing.finish_reason is None:
        hidden, _ = model.hidden(embeds)
        (step,) = write_next(model, hidden[0, -1:], [writing])
        yield step, writing
        embeds = torch.cat([embeds, embed_id(model, step.id, step.is_speech)], dim=1)
