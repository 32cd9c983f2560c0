"""Layers of the vocoder: snake activations and residual blocks of dilated convolutions.

Legend: batch, channels, time.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _SnakeFunction(torch.autograd.Function):
    """Snake with a derivative in closed form: a third of the bytes that the one of autograd moves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        return torch.sin(x * alpha).square_().div_(alpha + 1e-9).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, alpha = ctx.saved_tensors
        angle = x * (2 * alpha)
        waves = torch.sin(angle)  # 2 sin(alpha x) cos(alpha x)
        by_x = torch.addcmul(grad, grad, waves)
        # d/d alpha of sin^2(alpha x) / alpha; sin^2 = (1 - cos 2 alpha x) / 2
        by_alpha = waves.mul_(x).sub_(angle.cos_().neg_().add_(1).mul_(0.5 / (alpha + 1e-9)))
        return by_x, by_alpha.mul_(grad).sum((0, 2), keepdim=True)[0] / (alpha + 1e-9)


class Snake(nn.Module):
    """`x + sin(alpha x)^2 / alpha`, one trainable frequency per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return _SnakeFunction.apply(x, self.alpha[:, None])  # type: ignore[no-any-return]


class SnakeResBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each behind a snake, added to the input."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2)
            for d in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations
        )
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for snake1, conv1, snake2, conv2 in zip(
            self.activations1, self.convs1, self.activations2, self.convs2, strict=True
        ):
            x = x + conv2(snake2(conv1(snake1(x))))
        return x
