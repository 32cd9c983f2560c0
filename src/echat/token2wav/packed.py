"""Linear layers ready for inference: weights in the order in which the CPU reads them.

oneDNN reorders a weight once; the plain layer does so in every call, or multiplies without. What follows a
product at every element, GELU or an addition, is done while the product is in the cache.
"""

import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echat.onednn import packs

Precision = Literal["fp32", "bf16", "int8"]


class PackedLinear(nn.Module):
    """`x (..., n_in) -> (..., n_out)` of float32, computed in a precision; for inference only.

    - `fp32`: the numbers of the plain layer up to the order of its sums;
    - `bf16`: inputs and outputs rounded to 8 significant bits; pays where a CPU multiplies them faster (AMX,
      Zen 4 and later), not where it only can (AVX512-BF16 of a server without AMX took twice as long);
    - `int8`: one scale per row of the weight and one per input; 2.5 times as fast as fp32 with AVX512-VNNI.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision = "fp32") -> None:
        """`weight (n_out, n_in)`. Only CPUs pack; int8 is refused elsewhere."""
        super().__init__()
        on_cpu = weight.device.type == "cpu"
        if precision == "int8" and not on_cpu:
            raise ValueError(f"precision int8: expected a model on the CPU, found {weight.device}; use bf16")
        self.precision = precision
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.is_packed = on_cpu and precision != "int8" and packs(self.dtype)
        self.weight = weight.detach().to(self.dtype)
        self.bias = None if bias is None else bias.detach().to(self.dtype)
        if precision == "int8":
            self.rounded = _rounded(self.weight, self.bias)
            del self.weight, self.bias
        elif self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def forward(self, x: Tensor, activation: Literal["none", "gelu"] = "none") -> Tensor:
        """The product, and its exact GELU where asked for; bf16 stays bf16."""
        if self.precision == "int8":
            y = torch.ops.quantized.linear_dynamic(x, self.rounded)
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


def _rounded(weight: Tensor, bias: Tensor | None) -> Any:
    """The weight in 8 bits, packed; each row has the scale that just holds its largest value."""
    scales = (weight.abs().amax(1) / 127).clamp_min(1e-12)
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():  # torch announces another home for these; the kernel stays the fastest
        warnings.filterwarnings("ignore", message="torch.quantize_per", category=UserWarning)
        rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(rounded, bias)


def pack_linears(module: nn.Module) -> nn.Module:
    """Replace every `nn.Linear` inside `module`, which is changed, by a packed one of the same numbers."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack_linears(child)
    return module
