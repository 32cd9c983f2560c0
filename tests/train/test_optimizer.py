from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from echat.train.optimizer import (
    build_optimizer,
    clip_gradients,
    gradient_norm,
    learning_rate,
    set_learning_rate,
)
from echat.train.recipe import OptimizerConfig


def module() -> nn.ModuleDict:
    return nn.ModuleDict({"table": nn.Embedding(4, 3), "layer": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})


def test_only_matrices_decay():
    net = module()
    decays = {
        id(p): group["weight_decay"]
        for group in build_optimizer(net, OptimizerConfig(weight_decay=0.1)).param_groups
        for p in group["params"]
    }
    assert {n: decays[id(p)] for n, p in net.named_parameters()} == {
        "table.weight": 0.0,
        "layer.weight": 0.1,
        "layer.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
    }


def test_what_does_not_learn_is_left_out():
    net = module()
    net["layer"].requires_grad_(False)
    params = [p for group in build_optimizer(net, OptimizerConfig()).param_groups for p in group["params"]]
    assert len(params) == 3


def test_a_scaled_part_learns_slower():
    net = module()
    optimizer = build_optimizer(net, OptimizerConfig(lr_scale={"layer.*": 0.1}))
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(net["layer"].bias)] == pytest.approx(0.05) and rates[id(net["norm"].bias)] == 0.5
    with pytest.raises(ValueError, match="nowhere"):
        build_optimizer(net, OptimizerConfig(lr_scale={"nowhere.*": 0.1}))
    net["layer"].requires_grad_(False)  # a part that stands still may still be named
    build_optimizer(net, OptimizerConfig(lr_scale={"layer.*": 0.1}))


@given(st.integers(0, 5000), st.floats(0, 1))
def test_the_rate_stays_between_nothing_and_the_peak(step, progress):
    for schedule in ("cosine", "inverse_sqrt", "constant"):
        config = OptimizerConfig(lr=0.3, warmup_steps=100, schedule=schedule)
        assert 0 < learning_rate(config, step, progress) <= 0.3


def test_the_schedules_have_their_shapes():
    cosine = OptimizerConfig(lr=1.0, warmup_steps=10, final_lr=0.1)
    assert learning_rate(cosine, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(cosine, 50, 0.5) == pytest.approx(0.55)
    assert learning_rate(cosine, 99, 1.0) == pytest.approx(0.1)
    root = OptimizerConfig(lr=1.0, warmup_steps=100, schedule="inverse_sqrt")
    assert learning_rate(root, 49, 0.0) == pytest.approx(0.5)
    assert learning_rate(root, 399, 0.0) == pytest.approx(0.5)


def test_clipping_divides_by_the_count_and_bounds_the_norm():
    net = nn.Linear(3, 1, bias=False)
    net.weight.grad = torch.tensor([[6.0, 0.0, 8.0]])
    norm = gradient_norm(net) / 2.0
    assert norm == pytest.approx(5.0)
    clip_gradients(net, 1 / 2.0, norm, 1.0)
    assert math.isclose(net.weight.grad.norm(), 1.0, rel_tol=1e-4)
    net.weight.grad = torch.tensor([[0.6, 0.0, 0.8]])
    clip_gradients(net, 1 / 2.0, gradient_norm(net) / 2.0, 1.0)
    torch.testing.assert_close(net.weight.grad, torch.tensor([[0.3, 0.0, 0.4]]))
