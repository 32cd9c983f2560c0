"""Attention in bf16 on a CPU, written out.

torch's fused kernel on CPUs saves memory, but computes products of bf16 in float32, and its backward pass
takes three times the forward pass: it was 40 % of a training step of echat-tiny. Written out, all products
are bf16 and the same step takes 0.7 of the time; 600 frames of the released estimator take half of it. The
weights are in memory: only short sequences go this way.

Legend: B batch, H query heads, G key/value heads, L queries, T keys, d width of a head.
"""

import torch
from torch import Tensor

LONGEST = 600  # keys, beyond which the memory of the weights outweighs what they save
HIDDEN = -1e4  # score of what is not to be seen; softmax makes it 0


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
