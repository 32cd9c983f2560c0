"""Linear maps for inference, with weights packed in the order in which torch's CPU kernels read them.

oneDNN reorders a weight once; the plain layer does so in every call, or multiplies without. There are two
families. `PackedLinear` has four precisions and float32 activations; a row of its input is never scaled by
what stands in other rows, so a row in a batch is the row alone. `FusedLinear` does what follows a product at
every element, GELU or an addition, while the product is in the cache.

Legend: in, out features; n rows of the input.
"""

import warnings
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def can_pack(dtype: torch.dtype) -> bool:
    """Whether it keeps weights of this type in the order in which the CPU reads them; bf16 needs AVX512."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


# --- Four precisions, float32 between the maps: encoder, adapter and language model.

Precision = Literal["fp32", "bf16", "int8", "int4"]

INT4_GROUPS = (256, 128, 64, 32)  # inputs that may share a scale, as the kernel allows
INT4_OUT_MULTIPLE = 32  # of outputs, as the kernel allows
INT4_MIDDLE = 8  # the code that stands for a group's zero point
INT8_MOST, UINT8_MIDDLE = 127, 128
SMALLEST_SCALE = 1e-12  # keeps the scale of an all-zero row usable


class PackedLinear(nn.Module):
    """(..., in) -> (..., out). The weights are no parameters: they cannot be trained, moved or saved."""

    weight_bytes: int  # read for one row

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = None if bias is None else bias.detach().float()


class FloatLinear(PackedLinear):
    """float32 or bfloat16 weights in the blocked layout of oneDNN; plain where torch has no oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(bias)
        weight = weight.detach().to(dtype)
        self.dtype, self.weight_bytes = dtype, weight.nbytes
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.is_blocked = can_pack(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1) if self.is_blocked else weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if not self.is_blocked:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Int8Linear(PackedLinear):
    """8-bit weights with a scale per output; each row of the input is brought to 8 bits by a scale of its
    own."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(bias)
        _require_exact_int8()
        weight = weight.detach().float()
        step = weight.abs().amax(dim=1).clamp_min(SMALLEST_SCALE) / INT8_MOST  # (out,)
        codes = (weight / step[:, None]).round().to(torch.int8)
        self.scale = step / INT8_MOST  # an input's step is its row's largest value / INT8_MOST
        self.zero = torch.zeros(len(codes), dtype=torch.int32)
        self.weight_bytes = codes.nbytes + self.scale.nbytes
        self.weight = torch.ops.onednn.qlinear_prepack(codes, None)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()  # (n, in)
        # Plain operations: torch's fused ones (addcdiv, addcmul) take four times as long over many rows.
        most = rows.abs().amax(dim=1, keepdim=True).clamp_min_(SMALLEST_SCALE)
        # Conversion cuts off, so that half a step more rounds. oneDNN is fast with unsigned inputs only.
        codes = torch.mul(rows, INT8_MOST / most).add_(UINT8_MIDDLE + 0.5).to(torch.uint8)
        y = _int8_product(codes, self.weight, self.scale, self.zero).mul_(most)  # (n, out)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)


class Int4Linear(PackedLinear):
    """4-bit weights; `group` neighbouring inputs of an output share a scale and a zero point."""

    def __init__(self, weight: Tensor, bias: Tensor | None, group: int) -> None:
        super().__init__(bias)
        out, width = weight.shape
        groups = weight.detach().float().view(out, width // group, group)
        low, high = groups.amin(dim=2), groups.amax(dim=2)
        scale = ((high - low) / 15).clamp_min(SMALLEST_SCALE).bfloat16()
        zero = (low + INT4_MIDDLE * scale.float()).bfloat16()
        # Codes are chosen for the scale and the zero as rounded, so that their rounding costs nothing extra.
        codes = (groups - zero.float()[..., None]) / scale.float()[..., None] + INT4_MIDDLE
        codes = codes.round().clamp(0, 15).to(torch.int32).view(out, width)
        self.group = group
        self.scale_zero = torch.stack([scale, zero], dim=2).transpose(0, 1).contiguous()  # (groups, out, 2)
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.weight_bytes = codes.numel() // 2 + self.scale_zero.nbytes

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()  # the kernel is slow in float32
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, self.group, self.scale_zero)
        y = y.float() if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)


def pack_linear(
    weight: Tensor, bias: Tensor | None, precision: Precision, int4_group: int = 32
) -> PackedLinear:
    """weight (out, in), bias (out,) -> the packed map. Shapes that int4 cannot take become int8."""
    if precision == "int4":
        group = next((g for g in INT4_GROUPS if g <= int4_group and weight.shape[1] % g == 0), None)
        if group and weight.shape[0] % INT4_OUT_MULTIPLE == 0:
            return Int4Linear(weight, bias, group)
    if precision in ("int8", "int4"):
        return Int8Linear(weight, bias)
    return FloatLinear(weight, bias, torch.bfloat16 if precision == "bf16" else torch.float32)


def _int8_product(codes: Tensor, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(n, in) unsigned codes around `UINT8_MIDDLE`, weights packed by oneDNN -> (n, out) float32."""
    return torch.ops.onednn.qlinear_pointwise.default(
        codes, 1.0, UINT8_MIDDLE, weight, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )


@cache
def has_exact_int8() -> bool:
    """Whether the largest products add up: CPUs without VNNI instructions saturate a sum of two."""
    if not torch.backends.mkldnn.is_available():
        return False
    codes = torch.full((1, 64), 255, dtype=torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), INT8_MOST, dtype=torch.int8), None)
    ones, zero = torch.ones(16), torch.zeros(16, dtype=torch.int32)
    expected = float(64 * INT8_MOST * (255 - UINT8_MIDDLE))
    return bool((_int8_product(codes, weight, ones, zero) == expected).all())


def _require_exact_int8() -> None:
    if not has_exact_int8():
        raise ValueError(
            "precision int8 or int4: expected a CPU with 8-bit dot products (VNNI), found one without, on "
            "which sums of products overflow; choose bf16 or fp32"
        )


# --- GELU and additions fused into the product: the synthesis.

FusedPrecision = Literal["fp32", "bf16", "int8"]


class FusedLinear(nn.Module):
    """`x (..., n_in) -> (..., n_out)` of float32, computed in a precision; for inference only.

    - `fp32`: the numbers of the plain layer up to the order of its sums;
    - `bf16`: inputs and outputs rounded to 8 significant bits; pays where a CPU multiplies them faster (AMX,
      Zen 4 and later), not where it only can (AVX512-BF16 of a server without AMX took twice as long);
    - `int8`: one scale per row of the weight and one per input; 2.5 times as fast as fp32 with AVX512-VNNI.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: FusedPrecision = "fp32") -> None:
        """`weight (n_out, n_in)`. Only CPUs pack; int8 is refused elsewhere."""
        super().__init__()
        on_cpu = weight.device.type == "cpu"
        if precision == "int8" and not on_cpu:
            raise ValueError(f"precision int8: expected a model on the CPU, found {weight.device}; use bf16")
        self.precision = precision
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.is_packed = on_cpu and precision != "int8" and can_pack(self.dtype)
        self.weight = weight.detach().to(self.dtype)
        self.bias = None if bias is None else bias.detach().to(self.dtype)
        if precision == "int8":
            self.quantized = _quantized(self.weight, self.bias)
            del self.weight, self.bias
        elif self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def forward(self, x: Tensor, activation: Literal["none", "gelu"] = "none") -> Tensor:
        """The product, and its exact GELU where asked for; bf16 stays bf16."""
        if self.precision == "int8":
            y = torch.ops.quantized.linear_dynamic(x, self.quantized)
        elif self.is_packed:
            x = x.to(self.dtype)
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "none")
        else:
            y = F.linear(x.to(self.dtype), self.weight, self.bias)
        return F.gelu(y) if activation == "gelu" else y

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        """`to + self(x)`, in the precision of `to`."""
        if self.is_packed and to.dtype == self.dtype:
            return torch.ops.mkldnn._linear_pointwise.binary(x, to, self.weight, self.bias, "add")
        return to + self(x).to(to.dtype)


def _quantized(weight: Tensor, bias: Tensor | None) -> Any:
    """The weight in 8 bits, packed; each row has the scale that just holds its largest value."""
    scales = (weight.abs().amax(1) / 127).clamp_min(1e-12)
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():  # torch announces another home for these; the kernel stays the fastest
        warnings.filterwarnings("ignore", message="torch.quantize_per", category=UserWarning)
        quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantized, bias)


def replace_linears(module: nn.Module) -> nn.Module:
    """Replace every `nn.Linear` inside `module`, which is changed, by a packed one of the same numbers."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, FusedLinear(child.weight, child.bias))
        else:
            replace_linears(child)
    return module
