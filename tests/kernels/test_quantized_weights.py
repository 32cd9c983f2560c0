"""Quantized weights on disk: reading undoes writing, damaged and unknown ones are refused with a remedy."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echat.checkpoint import CheckpointError, read_tensors, write_tensors
from echat.kernels.weight_quantization import (
    dequantize,
    pack_nibbles,
    quantize_int4,
    quantize_int8,
    unpack_nibbles,
)
from echat.quantized_weights import (
    INT4_GROUP_OF,
    float_dtype,
    read_weights,
    scheme_of,
    stored_bytes,
    write_quantized,
)

DECLARED = {"plain.*": "plain", "four.*": "int4-32", "wide.*": "int4-64", "*": "int8"}


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "four.weight": torch.randn(6, 64),
        "four.odd": torch.randn(6, 33),  # no groups of 32: int8
        "wide.weight": torch.randn(4, 128).half(),
        "eight.weight": torch.randn(5, 40).bfloat16(),
        "convolution.weight": torch.randn(8, 6, 3),
        "depthwise.weight": torch.randn(8, 1, 3),  # rows too short to gain by it
        "eight.bias": torch.randn(5).half(),
        "plain.weight": torch.randn(5, 40),
        "steps": torch.arange(40).view(2, 20),
    }


def quantized_once(name: str, tensor: torch.Tensor) -> torch.Tensor:
    scheme = scheme_of(name, tensor.shape, DECLARED) if tensor.is_floating_point() else "plain"
    if scheme == "plain":
        return tensor
    if scheme == "int8":
        return dequantize(*quantize_int8(tensor))
    return dequantize(*quantize_int4(tensor, INT4_GROUP_OF[scheme]))


def test_reading_a_file_is_quantizing_and_dequantizing(tmp_path):
    path, original = tmp_path / "model.safetensors", tensors()
    write_quantized(path, original, DECLARED)
    stored = read_weights(path, DECLARED)
    assert stored.tensors.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(stored.tensors[name], quantized_once(name, tensor)), name
    assert {name: tuple(scale.shape) for name, scale in stored.int4_scales.items()} == {
        "four.weight": (6, 2),
        "wide.weight": (4, 2),
    }
    names = set(read_tensors(path))
    assert {"four.odd.int8", "depthwise.weight", "plain.weight", "eight.bias", "steps"} <= names
    assert float_dtype(path) in (torch.float16, torch.float32)
    for name, bits in (("four.weight", 4.5), ("wide.weight", 4.25), ("eight.weight", 8.4)):
        tensor = original[name]
        ending = ".int8" if name.startswith("eight") else ".int4"
        found = read_tensors(path)[name + ending].nbytes + read_tensors(path)[name + ".scale"].nbytes
        expected = stored_bytes(tensor, scheme_of(name, tensor.shape, DECLARED))
        assert found == expected == bits * tensor.numel() / 8, name


def test_writing_what_was_read_writes_the_same_int8_codes(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_quantized(first, tensors(), {"*": "int8"})
    write_quantized(second, read_weights(first, {"*": "int8"}).tensors, {"*": "int8"})
    before, after = read_tensors(first), read_tensors(second)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@given(st.lists(st.lists(st.integers(-8, 7), min_size=6, max_size=6), min_size=1, max_size=5))
def test_unpacking_undoes_packing_of_nibbles(rows):
    codes = torch.tensor(rows, dtype=torch.int8)
    packed = pack_nibbles(codes)
    assert packed.nbytes == codes.numel() // 2
    assert torch.equal(unpack_nibbles(packed), codes)


@given(seed=st.integers(0, 1000), power=st.integers(-6, 4))
def test_searched_scales_are_no_worse_than_those_of_the_largest_value(seed, power):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    groups = weight.view(8, 2, 32)
    step = (groups.abs().amax(dim=2, keepdim=True) / 8).bfloat16().float()
    usual = ((groups / step).round().clamp(-8, 7) * step).view_as(weight)
    found = dequantize(*quantize_int4(weight, 32))
    assert (found - weight).square().sum() <= (usual - weight).square().sum() * (1 + 1e-6)
    assert (found - weight).norm() < 0.12 * weight.norm()
    if power >= -2:  # smaller rows meet the smallest scale of fp16
        eight = dequantize(*quantize_int8(weight))
        assert (eight - weight).abs().max() <= 0.13 * weight.abs().max()
        assert (eight - weight).norm() < 0.01 * weight.norm()


def test_zeros_stay_zeros():
    for codes, scale in (quantize_int8(torch.zeros(3, 32)), quantize_int4(torch.zeros(3, 32), 32)):
        assert torch.equal(dequantize(codes, scale), torch.zeros(3, 32))


def damage(name: str, **changed: torch.Tensor | None):
    return name, changed


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        damage("four.weight", scale=None),
        damage("four.weight", scale=torch.zeros(6, 3, dtype=torch.bfloat16)),
        damage("four.weight", scale=torch.ones(6, 2)),
        damage("four.weight", int4=torch.zeros(6, 32, dtype=torch.int8)),
        damage("eight.weight", scale=torch.ones(4, dtype=torch.float16)),
        damage("eight.weight", int8=torch.zeros(40, dtype=torch.int8)),
        damage("eight.weight", scale=torch.full((5,), float("nan"), dtype=torch.float16)),
    ],
)
def test_a_damaged_weight_is_named(tmp_path, name, changed):
    path = tmp_path / "model.safetensors"
    write_quantized(path, tensors(), DECLARED)
    stored = read_tensors(path)
    for ending, tensor in changed.items():
        del stored[f"{name}.{ending}"]
        if tensor is not None:
            stored[f"{name}.{ending}"] = tensor
    write_tensors(tmp_path / "damaged.safetensors", stored)
    with pytest.raises(CheckpointError, match=rf"expected .*{re.escape(name)}.*, found .*again"):
        read_weights(tmp_path / "damaged.safetensors", DECLARED)


def test_the_file_must_be_as_declared(tmp_path):
    path = tmp_path / "model.safetensors"
    write_quantized(path, tensors(), DECLARED)
    for declared in ({}, {"*": "int8"}, {**DECLARED, "four.*": "int4-64"}):
        with pytest.raises(
            CheckpointError, match="expected .* as quantization in config.yaml declares, found"
        ):
            read_weights(path, declared)
    assert read_weights(path, None).tensors.keys() == tensors().keys()


def test_what_is_no_number_is_not_quantized(tmp_path):
    broken = {"weight": torch.full((2, 32), float("inf"))}
    with pytest.raises(CheckpointError, match="expected finite numbers"):
        write_quantized(tmp_path / "model.safetensors", broken, {"*": "int8"})
    assert not list(tmp_path.iterdir())
