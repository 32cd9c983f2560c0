"""Causal attention in bf16 on a CPU, written out (`echat.attention`), as transformers calls it.

It is written out for some queries at a time, which leaves out most of what they may not see.

Legend: B batch, H query heads, G key/value heads, L queries, T keys, d width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn

from echat.attention import pays, written_out

LONGEST = 1200  # keys; little more than half of the weights are kept
QUERIES_AT_ONCE = 128  # more see too much, fewer are too many calls
FAST_ATTENTION = "echat"  # name under which transformers knows `language_attention`


def causal_written_out(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """As `written_out`, L = T: a query sees the keys up to its own."""
    length, mixed = query.shape[2], []
    for start in range(0, length, QUERIES_AT_ONCE):
        stop = min(start + QUERIES_AT_ONCE, length)
        seen = torch.ones(stop - start, stop, dtype=torch.bool).tril(start)
        some = query[:, :, start:stop]
        mixed.append(written_out(some, key[:, :, :stop], value[:, :, :stop], seen, scale))
    return torch.cat(mixed, dim=2)


def language_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: causal and written out where that pays, else its own SDPA."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    is_training = query.shape[2] == key.shape[2] and torch.is_grad_enabled()
    if mask is not None or not is_training or not pays(value, LONGEST):
        mixed, _ = sdpa_attention_forward(module, query, key, value, mask, **settings)
        return mixed, None
    scale = settings.get("scaling") or query.shape[3] ** -0.5
    return causal_written_out(query, key, value, scale).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make `FAST_ATTENTION` known to transformers; its masks are those of SDPA."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(FAST_ATTENTION, language_attention)
    AttentionMaskInterface.register(FAST_ATTENTION, sdpa_mask)
