"""Fused (chunked) cross-entropy: logits only at target positions, computed once, gradients in place.

A text head of 151,936 classes makes 0.6 MB of float32 logits per position, and a plain loss keeps four such
tensors. Here the gradient overwrites the logits, in their precision, as soon as the loss is known
(as in Liger Kernel, Hsu et al. 2024, and Cut Cross-Entropy, Wijmans et al. 2024). When even one such tensor
would be too large, targets are processed in chunks: each adds the gradients of hidden states and weights
before the next begins. Nothing is computed twice either way.

Legend: n targets, dim width of the hidden states, V text classes, C speech classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_LOGITS = 1 << 27  # 256 MB in bfloat16, 512 MB in float32
SOFTMAX_CHUNK = 1 << 19  # in float32, on a CPU: what stays in its cache from one operation to the next
SOFTMAX_CHUNK_ACCELERATOR = 1 << 25  # where each operation costs a launch

Head = Callable[[Tensor], Tensor]  # hidden states (n, dim) -> logits (n, classes)


@dataclass(frozen=True)
class Heads:
    """Two heads whose classes compete for a target, or the first alone."""

    text: Head
    speech: Head
    classes: int  # V + C
    weights: tuple[Tensor, ...]  # all that they compute with


@dataclass(frozen=True)
class Targets:
    """The classes to predict; positions that can only be text come first."""

    labels: Tensor  # (n,) in 0..V+C-1
    weights: Tensor  # (n,) float32, by which each counts in the total
    text_only: int  # so many of the first are classified among the V text classes alone

    def part(self, start: int, stop: int) -> Targets:
        text_only = min(max(self.text_only - start, 0), stop - start)
        return Targets(self.labels[start:stop], self.weights[start:stop], text_only)


def fused_cross_entropy(
    hidden: Tensor, targets: Targets, heads: Heads, max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """hidden (n, dim) -> weighted sum of the losses, and the losses (n,) without gradient, in float32.

    At most ``max_logits`` logits exist at a time.
    """
    rows = max(1, max_logits // heads.classes)
    if len(hidden) <= rows:
        return _unchunked(hidden, targets, heads)
    trainable = [weight for weight in heads.weights if weight.requires_grad and torch.is_grad_enabled()]
    found: tuple[Tensor, Tensor] = _ChunkedCrossEntropy.apply(hidden, targets, heads, rows, *trainable)
    return found


def _unchunked(hidden: Tensor, targets: Targets, heads: Heads) -> tuple[Tensor, Tensor]:
    """As ``fused_cross_entropy``: both heads, and the loss of their logits, which it takes over."""
    logits = [heads.text(hidden)]
    if targets.text_only < len(hidden):
        logits.append(heads.speech(hidden[targets.text_only :]))
    found: tuple[Tensor, Tensor] = _CrossEntropy.apply(targets, *logits)
    return found


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Heads and loss of some rows at a time. Gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Targets, heads: Heads, rows: int, *trainable: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs_grad = ctx.needs_input_grad[0]
        losses, total = [], hidden.new_zeros((), dtype=torch.float32)
        hidden_grad = torch.empty_like(hidden) if needs_grad else None
        weight_grads: list[Tensor | None] = [None] * len(trainable)
        for start in range(0, len(hidden), rows):
            stop = min(start + rows, len(hidden))
            chunk = hidden[start:stop].detach().requires_grad_(needs_grad)
            with torch.set_grad_enabled(any(ctx.needs_input_grad)):
                part, theirs = _unchunked(chunk, targets.part(start, stop), heads)
            total += part.detach()
            losses.append(theirs)
            if part.requires_grad:
                inputs = [chunk, *trainable] if needs_grad else trainable
                gradients = list(torch.autograd.grad(part, inputs, allow_unused=True))
                if hidden_grad is not None:
                    hidden_grad[start:stop] = gradients.pop(0)
                weight_grads = [_add_float32(*pair) for pair in zip(weight_grads, gradients)]
        ctx.save_for_backward(
            hidden_grad, *(g if g is None else g.to(w) for g, w in zip(weight_grads, trainable))
        )
        every = torch.cat(losses)
        ctx.mark_non_differentiable(every)
        return total, every

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, *weight_grads = _scale(ctx.saved_tensors, factor)
        return hidden_grad, None, None, None, *weight_grads


class _CrossEntropy(torch.autograd.Function):
    """Logits of the text head (n, V), of the speech head (n - text_only, C) if any row needs it -> total,
    losses (n,). The logits are overwritten by their gradient."""

    @staticmethod
    def forward(ctx: Any, targets: Targets, *logits: Tensor) -> tuple[Tensor, Tensor]:
        losses, text_only = torch.empty_like(targets.weights), targets.text_only
        for start, stop in _chunks(
            text_only, len(losses), sum(part.shape[1] for part in logits), losses.device
        ):
            some = targets.part(start, stop)
            parts = [logits[0][start:stop]]
            if start >= text_only:
                parts.append(logits[1][start - text_only : stop - text_only])
            losses[start:stop] = _losses_and_gradients(
                parts, some.labels, some.weights, any(ctx.needs_input_grad)
            )
        ctx.save_for_backward(*(part.detach() for part in logits))
        ctx.mark_non_differentiable(losses)
        return (losses * targets.weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_scale(ctx.saved_tensors, factor)


def _chunks(text_only: int, count: int, classes: int, device: torch.device) -> list[tuple[int, int]]:
    """Rows 0..count-1 in runs of a few, none of which crosses ``text_only``."""
    chunk = SOFTMAX_CHUNK if device.type == "cpu" else SOFTMAX_CHUNK_ACCELERATOR
    rows = max(1, chunk // classes)
    starts = [*range(0, text_only, rows), *range(text_only, count, rows)]
    return list(zip(starts, [*starts[1:], count]))


def _losses_and_gradients(
    logits: Sequence[Tensor], labels: Tensor, weights: Tensor, needs_grad: bool
) -> Tensor:
    """Losses (r,) of labels (r,) among the classes of all logits (r, classes of one head), side by side.

    If ``needs_grad``, logits become the gradient of their weighted sum: weight x (softmax - 1 at the label).
    """
    columns = _columns(logits, labels)
    chosen = sum(part.gather(1, at).float() * inside for part, (at, inside) in zip(logits, columns))
    highest = torch.stack([part.amax(1) for part in logits]).amax(0).float()[:, None]  # (r, 1)
    powers = [part.float().sub_(highest).exp_() for part in logits]
    total = torch.stack([part.sum(1) for part in powers]).sum(0)[:, None]  # (r, 1)
    if needs_grad:
        for part, power, (at, inside) in zip(logits, powers, columns):
            power.mul_(weights[:, None] / total)
            part.copy_(power.scatter_add_(1, at, -weights[:, None] * inside))
    return (total.log() + highest - chosen)[:, 0]


def _columns(logits: Sequence[Tensor], labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each head the column (r, 1) of every label, some column where it is another's, and whether it is
    its own: 1.0 or 0.0 (r, 1)."""
    found, first = [], 0
    for part in logits:
        at = labels[:, None] - first
        inside = (at >= 0) & (at < part.shape[1])
        found.append((at.clamp(0, part.shape[1] - 1), inside.float()))
        first += part.shape[1]
    return found


def _add_float32(sum_so_far: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """In float32, whatever the precision of the weight."""
    if sum_so_far is None or gradient is None:
        return sum_so_far if gradient is None else gradient.float()
    return sum_so_far.add_(gradient)


def _scale(gradients: Sequence[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    """Times ``factor``, usually 1: checked on a CPU; on an accelerator the check would synchronize."""
    if factor.device.type == "cpu" and factor == 1:
        return list(gradients)
    return [g if g is None else g * factor.to(g.dtype) for g in gradients]
