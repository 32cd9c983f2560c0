"""Cross-entropy of what must be predicted, and of nothing else: logits at these positions, a few at a time.

A text head of 151,936 classes makes 0.6 MB of float32 logits per position, four times that with their
gradients. So logits are made for a piece of the targets, used, dropped, and made again for the backward pass:
the largest tensor is that of one piece, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 1 << 26  # 256 MB in float32

Head = Callable[[Tensor], Tensor]  # hidden states (n, dim) -> logits (n, classes)


def target_losses(
    hidden: Tensor, labels: Tensor, head: Head, classes: int, logits_at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """hidden (n, dim), labels (n,) in 0..classes-1 -> losses (n,) in float32.

    At most ``logits_at_once`` logits exist at a time. What fits in at once is not computed twice.
    """
    rows = max(1, logits_at_once // classes)
    if len(labels) <= rows:
        return _losses(hidden, labels, head)
    pieces = [
        checkpoint(_losses, some, theirs, head, use_reentrant=False, preserve_rng_state=False)
        for some, theirs in zip(hidden.split(rows), labels.split(rows))
    ]
    return torch.cat(pieces)


def _losses(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    return F.cross_entropy(head(hidden).float(), labels, reduction="none")
