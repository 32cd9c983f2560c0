"""Many replies in one pass: prompts are padded on the left, rows leave the batch as they finish.

Legend: B rows still being written, L longest prompt, S positions read so far, dim width of the language
model.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from echat.infer.decoding import Plan, Writing
from echat.infer.generation import embed_id, write_next
from echat.model.llm import KVCache
from echat.model.speech_llm import SpeechLLM


@torch.inference_mode()
def generate_batch(
    model: SpeechLLM,
    prompts: Sequence[Tensor],
    plans: Sequence[Plan],
    generators: Sequence[torch.Generator | None],
) -> list[Writing]:
    """Prompts (1, L_i, dim) -> finished replies, row by row what `generate` writes for the prompt alone."""
    writings = [Writing(plan, generator) for plan, generator in zip(plans, generators, strict=True)]
    if not writings:
        return []
    embeds, mask = _pad_left(prompts)
    positions = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
    cache = model.llm.new_cache(len(writings), capacity=embeds.shape[1] + 256)
    hidden, cache = model.llm.extend(embeds, cache, None if bool(mask.all()) else mask, positions)
    rows = list(writings)
    while True:
        steps = [write_next(model, hidden[row, -1], writing) for row, writing in enumerate(rows)]
        alive = [row for row, writing in enumerate(rows) if writing.finish_reason is None]
        if not alive:
            return writings
        embeds = torch.cat([embed_id(model, steps[row].id, steps[row].is_speech) for row in alive])
        positions = positions[:, -1:] + 1  # (B, 1)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        if len(alive) < len(rows):
            kept = torch.tensor(alive, device=mask.device)
            cache, mask, positions = _select(cache, kept), mask[kept], positions[kept]
            rows = [rows[row] for row in alive]
        hidden, cache = model.llm.extend(embeds, cache, None if bool(mask.all()) else mask, positions)


def _pad_left(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(1, L_i, dim) each -> embeds (B, L, dim) and mask (B, L), True = keep; the last positions stand in
    line."""
    longest = max(prompt.shape[1] for prompt in prompts)
    embeds = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[2])
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=embeds.device)
    for row, prompt in enumerate(prompts):
        embeds[row, longest - prompt.shape[1] :] = prompt[0]
        mask[row, longest - prompt.shape[1] :] = True
    return embeds, mask


def _select(cache: KVCache, rows: Tensor) -> KVCache:
    return replace(cache, keys=cache.keys[:, rows], values=cache.values[:, rows])
