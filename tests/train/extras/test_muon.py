"""Updates of Muon are orthogonal, its parts step as one, and its state survives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from echat.train.extras.muon import RMS, Muon, orthogonalize
from echat.train.optimizer import build_optimizer, set_learning_rate
from echat.train.recipe import OptimizerConfig


def test_half_precision_is_enough() -> None:
    matrices = torch.randn((3, 24, 60), generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices, half=True))
    assert values.min() > 0.5 and values.max() < 1.4


@pytest.mark.parametrize("shape", [(2, 12, 40), (3, 40, 12), (1, 16, 16)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.4
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    among = u.mT @ result @ vh.mT
    assert (among - torch.diag_embed(among.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3


def test_matrices_of_a_shape_move_as_each_would_alone() -> None:
    def run(count: int) -> torch.Tensor:
        torch.manual_seed(3)
        parameters = [nn.Parameter(torch.randn(6, 9)) for _ in range(3)]
        gradients = [torch.randn(6, 9) for _ in parameters]
        optimizer = Muon(parameters[:count], lr=0.1)
        for _ in range(3):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        return parameters[0].detach()

    assert torch.allclose(run(1), run(3), atol=1e-6)


def test_an_update_has_the_size_of_one_of_adam() -> None:
    kernel = nn.Parameter(torch.zeros(8, 4, 3))
    kernel.grad = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(1))
    Muon([kernel], lr=0.5).step()
    assert float(kernel.detach().pow(2).mean().sqrt()) == pytest.approx(0.5 * RMS, rel=0.35)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected matrices, found the shape \(4,\)"):
        Muon([nn.Parameter(torch.zeros(4))])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


CONFIG = OptimizerConfig(lr=0.05, muon=("*", "!2.*"), lr_scale={"0.weight": 0.5})


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(5))
    for _ in range(steps):
        optimizer.zero_grad()
        (module(inputs) - inputs[:, :2]).pow(2).mean().backward()
        optimizer.step()


def test_the_named_matrices_are_muons_and_rates_reach_both() -> None:
    module = net()
    optimizer = build_optimizer(module, CONFIG)
    set_learning_rate(optimizer, 0.2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == 4 and rates[id(module[0].weight)] == pytest.approx(0.1)
    train(module, optimizer, 1)
    state = optimizer.state_dict()["optimizers"]
    assert [set(next(iter(part["state"].values()))) for part in state][1] == {"momentum"}
    with pytest.raises(ValueError, match="optimizer.muon: pattern 'nowhere'"):
        build_optimizer(module, OptimizerConfig(muon=("nowhere",)))


def test_resumed_is_uninterrupted() -> None:
    whole = net()
    train(whole, build_optimizer(whole, CONFIG), 6)
    first = net()
    optimizer = build_optimizer(first, CONFIG)
    train(first, optimizer, 3)
    second = net()
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(second, CONFIG)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, 3)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
