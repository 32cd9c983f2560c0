"""Attention in bf16 on a CPU, written out.

torch's fused kernel on CPUs saves memory, but computes products of bf16 in float32, and its backward pass
takes three times the forward pass: it was 40 % of a training step of echat-tiny. Written out, all products
are bf16 and the same step takes 0.7 of the time. The weights are in memory: only short sequences go this way.
Causal attention is written out for some queries at a time, which leaves out most of what they may not see.

Legend: B batch, H query heads, G key/value heads, L queries, T keys, d width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn

LONGEST = 600  # keys, beyond which the memory of the weights outweighs what they save
HIDDEN = -1e4  # score of what is not to be seen; softmax makes it 0
LONGEST_CAUSAL = 1200  # of causal attention, which keeps little more than half of the weights
QUERIES_AT_ONCE = 128  # of causal attention; more see too much, fewer are too many calls
FAST_ATTENTION = "echat"  # name under which transformers knows `language_attention`


def pays(value: Tensor, longest: int = LONGEST) -> bool:
    """Whether attention over value (B, G, T, d) is better written out."""
    return value.dtype == torch.bfloat16 and value.device.type == "cpu" and value.shape[2] <= longest


def written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """query (B, H, L, d), key and value (B, G, T, d), mask (broadcast to B, G, H / G, L, T; True = keep) or
    None -> (B, H, L, d). Neighbouring query heads share a key/value head; none is copied."""
    batch, heads, length, width = query.shape
    groups, keys = key.shape[1:3]
    with torch.autocast(query.device.type, enabled=False):  # it would take softmax to float32 and back
        query, key = query.to(value.dtype), key.to(value.dtype)
        grouped = (query * scale).reshape(batch, groups, -1, width)  # (B, G, H / G * L, d)
        scores = (grouped @ key.transpose(2, 3)).view(batch, groups, heads // groups, length, keys)
        if mask is not None:
            scores = scores + torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, HIDDEN)
        weights = scores.softmax(dim=-1).view(batch, groups, -1, keys)
        return (weights @ value).view(batch, heads, length, width)


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
    if mask is not None or not is_training or not pays(value, LONGEST_CAUSAL):
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
