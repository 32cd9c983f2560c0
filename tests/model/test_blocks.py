"""The parts of encoder and adapter against what a student would write."""

from __future__ import annotations

import pytest
import torch

from echat.model.blocks import ConvolutionModule


@pytest.mark.parametrize("length", [1, 4, 19])
def test_the_filter_over_time_is_a_convolution(length: int) -> None:
    """Values and gradients."""
    torch.manual_seed(0)
    module = ConvolutionModule(6, 5)
    frames = torch.randn(2, length, 6, requires_grad=True)
    found, expected = (
        module._convolve(frames),
        module.over_time(frames.transpose(1, 2)).transpose(1, 2),
    )
    assert torch.allclose(found, expected, atol=1e-6)
    learning = [frames, *module.over_time.parameters()]
    weights = torch.randn_like(found)
    ways = (torch.autograd.grad((way * weights).sum(), learning) for way in (found, expected))
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(*ways))
