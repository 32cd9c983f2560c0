"""Linear layers for inference with packed (prepacked, quantized) weights: fp32, bf16, int8 and int4 on a CPU.

oneDNN reorders a weight once; the plain layer does so in every call, or multiplies without. Products are made
for one of two uses. *Few rows* (a decoding step): the smaller the weight the faster, and a row of the input
is never scaled by what stands in other rows, so a row in a batch is the row alone. *Many rows* (the frames of
the synthesis): one scale per call, and GELU or an addition is fused into the product.

Legend: in, out features; n rows of the input.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "int8", "int4"]  # of the weights; results are float32, or bf16 from bf16
Activation = Literal["none", "gelu"]

INT4_GROUPS = (256, 128, 64, 32)  # inputs that may share a scale, as the kernel allows
INT4_OUT_MULTIPLE = 32  # of outputs, as the kernel allows
INT4_MIDDLE = 8  # the code that stands for a group's zero point
INT8_MOST, UINT8_MIDDLE = 127, 128
SMALLEST_SCALE = 1e-12  # keeps the scale of an all-zero row usable


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN keeps weights of this type in a blocked layout; bf16 needs AVX512."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """(..., in) -> (..., out). The weights are no parameters: they cannot be trained, moved or saved."""

    weight_bytes: int  # read for one row

    def product(self, x: Tensor) -> Tensor:
        """The linear map alone."""
        raise NotImplementedError

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """The product, and its exact GELU where asked for."""
        y = self.product(x)
        return F.gelu(y) if activation == "gelu" else y

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        """`to + self(x)`, in the precision of `to`."""
        return to + self(x).to(to.dtype)


class FloatLinear(PackedLinear):
    """float32 or bfloat16 weights in the blocked layout of oneDNN; plain where torch has no oneDNN.

    bf16 rounds inputs and outputs to 8 significant bits; it pays where a CPU multiplies them faster (AMX,
    Zen 4 and later), not where it only can (AVX512-BF16 of a server without AMX took twice as long).
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, many_rows: bool = False
    ) -> None:
        super().__init__()
        weight = weight.detach().to(dtype)
        self.dtype, self.weight_bytes = dtype, weight.nbytes
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.is_blocked = weight.device.type == "cpu" and can_pack(dtype)
        rows = None if many_rows else 1  # for which oneDNN chooses the layout
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if self.is_blocked else weight

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight, self.bias)

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        if not self.is_blocked:
            return super().forward(x, activation)
        x = x.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "none")

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        if not self.is_blocked or to.dtype != self.dtype:
            return super().add(x, to)
        return torch.ops.mkldnn._linear_pointwise.binary(x.to(self.dtype), to, self.weight, self.bias, "add")


class Int8Linear(PackedLinear):
    """8-bit weights with a scale per output (dynamic quantization), for few rows or for many.

    Few rows: each row of the input is brought to 8 bits by a scale of its own, oneDNN multiplies. Many rows:
    one scale for all of them, FBGEMM multiplies; 2.5 times as fast as fp32 with AVX512-VNNI.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, many_rows: bool = False) -> None:
        super().__init__()
        if weight.device.type != "cpu":
            raise ValueError(f"precision int8: expected a model on the CPU, found {weight.device}; use bf16")
        self.bias = None if bias is None else bias.detach().float()
        self.many_rows = many_rows
        weight = weight.detach().float()
        step = weight.abs().amax(dim=1).clamp_min(SMALLEST_SCALE) / INT8_MOST  # (out,)
        self.weight_bytes = weight.numel() + step.nbytes
        if many_rows:
            self.weight = _prepack_fbgemm(weight, step, self.bias)
            return
        _require_exact_int8()
        codes = (weight / step[:, None]).round().to(torch.int8)
        self.scale = step / INT8_MOST  # an input's step is its row's largest value / INT8_MOST
        self.zero = torch.zeros(len(codes), dtype=torch.int32)
        self.weight = torch.ops.onednn.qlinear_prepack(codes, None)

    def product(self, x: Tensor) -> Tensor:
        if self.many_rows:
            return torch.ops.quantized.linear_dynamic(x, self.weight)
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

    def __init__(
        self, weight: Tensor, bias: Tensor | None, group: int, stored_scale: Tensor | None = None
    ) -> None:
        """`stored_scale`: (out, groups) of a weight that came from symmetric 4-bit codes, which are found
        again."""
        super().__init__()
        self.bias = None if bias is None else bias.detach().float()
        out, width = weight.shape
        groups = weight.detach().float().view(out, width // group, group)
        if stored_scale is None:
            low, high = groups.amin(dim=2), groups.amax(dim=2)
            scale = ((high - low) / 15).clamp_min(SMALLEST_SCALE).bfloat16()
            zero = (low + INT4_MIDDLE * scale.float()).bfloat16()
        else:
            scale, zero = stored_scale.bfloat16(), torch.zeros_like(stored_scale, dtype=torch.bfloat16)
        # Codes are chosen for the scale and the zero as rounded, so that their rounding costs nothing extra.
        codes = (groups - zero.float()[..., None]) / scale.float()[..., None] + INT4_MIDDLE
        codes = codes.round().clamp(0, 15).to(torch.int32).view(out, width)
        self.group = group
        self.scale_zero = torch.stack([scale, zero], dim=2).transpose(0, 1).contiguous()  # (groups, out, 2)
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.weight_bytes = codes.numel() // 2 + self.scale_zero.nbytes

    def product(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()  # the kernel is slow in float32
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, self.group, self.scale_zero)
        y = y.float() if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)


# --- Packing


def pack_linear(
    weight: Tensor,
    bias: Tensor | None,
    precision: Precision = "fp32",
    *,
    many_rows: bool = False,
    int4_group: int = 32,
    stored_scale: Tensor | None = None,
) -> PackedLinear:
    """weight (out, in), bias (out,) -> the packed layer. Shapes that int4 cannot take become int8."""
    if precision == "int4":
        if stored_scale is not None and weight.shape[0] % INT4_OUT_MULTIPLE == 0:
            return Int4Linear(weight, bias, weight.shape[1] // stored_scale.shape[1], stored_scale)
        group = next((g for g in INT4_GROUPS if g <= int4_group and weight.shape[1] % g == 0), None)
        if group and weight.shape[0] % INT4_OUT_MULTIPLE == 0:
            return Int4Linear(weight, bias, group)
    if precision in ("int8", "int4"):
        return Int8Linear(weight, bias, many_rows)
    return FloatLinear(weight, bias, torch.bfloat16 if precision == "bf16" else torch.float32, many_rows)


def pack_merged(
    linears: Sequence[nn.Module],
    precision: Precision = "fp32",
    *,
    many_rows: bool = False,
    int4_group: int = 32,
) -> PackedLinear:
    """Linear layers of one input as one packed layer, outputs side by side; a missing bias counts as zero."""
    plain = [linear for linear in linears if type(linear) is nn.Linear]
    if len(plain) < len(linears):
        other = next(type(linear).__name__ for linear in linears if type(linear) is not nn.Linear)
        raise ValueError(
            f"packing for inference: expected plain linear layers, found {other}; merge adapters into the "
            "weights first"
        )
    weight, bias = torch.cat([linear.weight.detach() for linear in plain]), None
    if any(linear.bias is not None for linear in plain):
        zeros = [weight.new_zeros(linear.out_features) for linear in plain]
        bias = torch.cat([zero if linear.bias is None else linear.bias for linear, zero in zip(plain, zeros)])
    scale = stored_int4_scale(plain)
    return pack_linear(
        weight, bias, precision, many_rows=many_rows, int4_group=int4_group, stored_scale=scale
    )


def stored_int4_scale(linears: Sequence[nn.Linear]) -> Tensor | None:
    """(out, groups) of merged layers that were all stored in 4 bits in groups of one size, else None.

    A weight has `int4_scale` from loading; one that has changed since lies on its codes no more.
    """
    scales: list[Tensor] = []
    for linear in linears:
        scale: Tensor | None = getattr(linear.weight, "int4_scale", None)
        if scale is None or not _lies_on_codes(linear.weight.detach(), scale):
            return None
        scales.append(scale)
    return torch.cat(scales) if len({scale.shape[1] for scale in scales}) == 1 else None


def _lies_on_codes(weight: Tensor, scale: Tensor) -> bool:
    groups = weight.view(len(weight), scale.shape[1], -1)
    step = scale.float()[..., None]
    codes = (groups.float() / step).round().clamp(-INT4_MIDDLE, INT4_MIDDLE - 1)
    return torch.equal((codes * step).to(weight.dtype), groups)


def replace_linears(module: nn.Module) -> nn.Module:
    """Replace every `nn.Linear` inside `module`, which is changed, by a packed one of the same numbers."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, pack_linear(child.weight, child.bias, many_rows=True))
        else:
            replace_linears(child)
    return module


def at_least_int8(precision: Precision) -> Precision:
    """The precision of layers in which an error of 4 bits costs too much."""
    return "int8" if precision == "int4" else precision


def _prepack_fbgemm(weight: Tensor, step: Tensor, bias: Tensor | None) -> Any:
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():  # torch announces another home for these; the kernel stays the fastest
        warnings.filterwarnings("ignore", message="torch.quantize_per", category=UserWarning)
        quantized = torch.quantize_per_channel(weight, step, zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantized, bias)


# --- Whether this CPU multiplies 8-bit integers exactly


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
