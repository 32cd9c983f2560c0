"""Eager (unfused) attention in bf16 on a CPU.

torch's fused kernel on CPUs saves memory, but computes products of bf16 in float32, and its backward pass
takes three times the forward pass: it was 40 % of a training step of echat-tiny. Unfused, all products
are bf16 and the same step takes 0.7 of the time; 600 frames of the released estimator take half of it. The
weights are in memory: only short sequences go this way.

Legend: B batch, H query heads, G key/value heads, L queries, T keys, d width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn

MAX_KEYS = 600  # keys, beyond which the memory of the weights outweighs what they save
MASKED = -1e4  # score of a masked key; softmax makes it 0


def prefers_eager(value: Tensor, max_keys: int = MAX_KEYS) -> bool:
    """Whether eager attention over value (B, G, T, d) is the faster one."""
    return value.dtype == torch.bfloat16 and value.device.type == "cpu" and value.shape[2] <= max_keys


def eager_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """query (B, H, L, d), key and value (B, G, T, d), mask (broadcast to B, G, H / G, L, T; True = keep) or
    None -> (B, H, L, d). Neighbouring query heads share a key/value head; none is copied."""
    batch, heads, length, width = query.shape
    groups, keys = key.shape[1:3]
    with torch.autocast(query.device.type, enabled=False):  # it would take softmax to float32 and back
        query, key = query.to(value.dtype), key.to(value.dtype)
        grouped = (query * scale).reshape(batch, groups, -1, width)  # (B, G, H / G * L, d)
        scores = (grouped @ key.transpose(2, 3)).view(batch, groups, heads // groups, length, keys)
        if mask is not None:
            scores = scores + torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, MASKED)
        weights = scores.softmax(dim=-1).view(batch, groups, -1, keys)
        return (weights @ value).view(batch, heads, length, width)


# --- Causal attention in blocks of queries, which leaves out most of what is masked; for transformers.

LONG_MAX_KEYS = 1200  # keys, where the weights weigh less: causal ones (half of them), or no gradient
QUERY_BLOCK = 128  # more see too much, fewer are too many calls
EAGER_ATTENTION = "echat"  # name under which transformers knows `transformers_attention`


def causal_eager_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """As `eager_attention`, L = T: a query sees the keys up to its own."""
    length, mixed = query.shape[2], []
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        visible = torch.ones(stop - start, stop, dtype=torch.bool).tril(start)
        block = query[:, :, start:stop]
        mixed.append(eager_attention(block, key[:, :, :stop], value[:, :, :stop], visible, scale))
    return torch.cat(mixed, dim=2)


def transformers_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: causal and eager where that pays, else its own SDPA."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    is_training = query.shape[2] == key.shape[2] and torch.is_grad_enabled()
    if mask is not None or not is_training or not prefers_eager(value, LONG_MAX_KEYS):
        mixed, _ = sdpa_attention_forward(module, query, key, value, mask, **settings)
        return mixed, None
    scale = settings.get("scaling") or query.shape[3] ** -0.5
    return causal_eager_attention(query, key, value, scale).transpose(1, 2).contiguous(), None


def register_attention() -> None:
    """Make `EAGER_ATTENTION` known to transformers; its masks are those of SDPA."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(EAGER_ATTENTION, transformers_attention)
    AttentionMaskInterface.register(EAGER_ATTENTION, sdpa_mask)
