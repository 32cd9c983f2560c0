"""Packed linear layers: the numbers of the plain layer within their precision, fused or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from echat.kernels.packed_linear import Int4Linear, Int8Linear, Precision, pack_linear, pack_merged

in_8_bits = pytest.mark.vnni
PRECISIONS = ["fp32", "bf16", *(pytest.param(name, marks=in_8_bits) for name in ("int8", "int4"))]
MAX_ERROR: dict[Precision, float] = {"fp32": 1e-6, "bf16": 0.01, "int8": 0.02, "int4": 0.2}


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("many_rows", [False, True])
@pytest.mark.parametrize(
    "precision",
    ["fp32", "bf16", pytest.param("int8", marks=in_8_bits), pytest.param("int4", marks=in_8_bits)],
)
@torch.inference_mode()
def test_product_gelu_and_addition_are_those_of_the_plain_layer(
    precision: Precision, many_rows: bool
) -> None:
    torch.manual_seed(0)
    layer, x, to = nn.Linear(64, 96), torch.randn(2, 5, 64), torch.randn(2, 5, 96)
    packed = pack_linear(layer.weight, layer.bias, precision, many_rows=many_rows)
    expected, most = layer(x), MAX_ERROR[precision]
    assert error(packed(x).float(), expected) < most
    assert error(packed(x, "gelu").float(), nn.functional.gelu(expected)) < most
    assert error(packed.add(x, to), to + expected) < most
    assert packed.add(x, to).dtype == torch.float32


def test_layers_of_one_input_become_one_layer() -> None:
    torch.manual_seed(0)
    with_bias, without = nn.Linear(8, 3), nn.Linear(8, 2, bias=False)
    x = torch.randn(4, 8)
    expected = torch.cat([with_bias(x), without(x)], dim=1)
    torch.testing.assert_close(pack_merged([with_bias, without])(x), expected)


@in_8_bits
def test_int8_of_few_rows_scales_every_row_by_itself() -> None:
    torch.manual_seed(1)
    linear = pack_linear(torch.randn(24, 64), torch.randn(24), "int8")
    assert isinstance(linear, Int8Linear)
    rows = torch.randn(3, 64) * torch.tensor([[1.0], [1e4], [0.0]])
    together = linear(rows)
    for row in range(3):
        assert torch.equal(linear(rows[row]), together[row])
    assert torch.equal(together[2], linear.bias)


@in_8_bits
def test_int4_error_falls_with_the_group() -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(64, 256), torch.randn(5, 256)
    linears = [pack_linear(weight, None, "int4", int4_group=group) for group in (32, 64, 256)]
    assert [linear.group for linear in linears if isinstance(linear, Int4Linear)] == [32, 64, 256]
    errors = [error(linear(x), x @ weight.T) for linear in linears]
    assert errors[0] < errors[1] < errors[2] < 0.2
    sizes = [linear.weight_bytes for linear in linears]
    assert sizes[0] > sizes[1] > sizes[2] > 64 * 256 // 2
    # What the kernel cannot take (an odd number of outputs, a width without groups) becomes int8.
    assert isinstance(pack_linear(torch.randn(21, 64), None, "int4"), Int8Linear)
    assert isinstance(pack_linear(torch.randn(32, 33), None, "int4"), Int8Linear)
