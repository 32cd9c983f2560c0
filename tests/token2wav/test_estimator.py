"""The velocity network of the flow; `echat verify` compares it with golden arrays."""

import torch
import torch.nn.functional as F


def test_without_a_mask_is_the_same_as_with_ones(flow, golden, close):
    g = golden("estimator")
    names = ("x", "mask", "mu", "t", "spks", "cond")
    inputs = {name: g[f"odd.{name}"] for name in names}
    ones = flow.decoder.estimator(**(inputs | {"mask": torch.ones_like(inputs["mask"])}))
    none = flow.decoder.estimator(**(inputs | {"mask": None}))
    close(none, ones, 1e-5)
    assert F.l1_loss(none, inputs["x"]) > 0.1
