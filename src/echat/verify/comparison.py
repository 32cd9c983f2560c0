"""Comparison of a value with a golden one: errors, tolerances, and the device and precision of a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from echat.devices import present_device, processor_name

Precision = Literal["fp32", "bf16"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Check:
    """One comparison: name of the golden array, error of this machine, tolerance."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Is the error within tolerance? NaN never is."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAIL"
        return f"{self.name:<60} max error {self.error:.2e}  tolerance {self.tolerance:.0e}  {verdict}"


def check_close(name: str, found: Any, golden: Any, tolerance: float, mask: Any = None) -> Check:
    """Largest absolute difference, where `mask` is True; arrays of another shape are infinitely far."""
    found, golden = _array(found), _array(golden)
    if found.shape != golden.shape:
        return Check(name, math.inf, tolerance)
    difference = np.abs(found.astype(np.float64) - golden.astype(np.float64))
    if mask is not None:
        difference = difference[_array(mask).astype(bool)]
    error = float(difference.max()) if difference.size else 0.0
    return Check(name, math.inf if math.isnan(error) else error, tolerance)


def largest_magnitude(golden: Any, mask: Any = None) -> float:
    """Largest absolute golden value, where `mask` is True, infinities aside."""
    values = np.abs(_array(golden).astype(np.float64))
    values = values if mask is None else values[_array(mask).astype(bool)]
    return float(values[np.isfinite(values)].max(initial=0.0))


def check_equal(name: str, found: Any, golden: Any) -> Check:
    """Ids, lengths, masks and strings: the number of elements that differ must be 0."""
    if isinstance(golden, str):
        return Check(name, float(found != golden), 0.0)
    found, golden = _array(found), _array(golden)
    if found.shape != golden.shape:
        return Check(name, math.inf, 0.0)
    return Check(name, float((found != golden).sum()), 0.0)


def check_relative(name: str, found: float, golden: float, tolerance: float) -> Check:
    """Difference in parts of the golden value, which counts as at least a millionth."""
    return Check(name, abs(found - golden) / max(abs(golden), 1e-6), tolerance)


def _array(value: Tensor | np.ndarray | Sequence[Any]) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


class Tolerance(NamedTuple):
    """The largest allowed error."""

    fp32: float  # absolute
    bf16: float = 0.0  # in parts of the largest golden value; 0: never computed so


@dataclass(frozen=True)
class Backend:
    """A device and a precision; `remark` ends the names of values that were computed elsewhere than asked."""

    device: torch.device = CPU
    precision: Precision = "fp32"
    remark: str = ""

    @classmethod
    def of(cls, device: str = "cpu", precision: str = "fp32") -> "Backend":
        """The backend of two CLI options; ValueError for a device that this machine lacks."""
        if precision not in get_args(Precision):
            known = " or ".join(get_args(Precision))
            raise ValueError(f"--precision: expected {known}, found {precision!r}; choose one of them")
        return cls(present_device(device), "bf16" if precision == "bf16" else "fp32")

    @property
    def is_bf16(self) -> bool:
        """Whether networks compute with 8 significant bits."""
        return self.precision == "bf16"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.is_bf16 else torch.float32

    @property
    def in_fp32(self) -> "Backend":
        """For networks whose rounded result would be different, not less exact."""
        return replace(self, precision="fp32", remark=" (fp32)") if self.is_bf16 else self

    @property
    def on_cpu(self) -> "Backend":
        """For features and decoding rules, which always run in float32 on the CPU."""
        words = ["cpu"] * (self.device.type != "cpu") + ["fp32"] * self.is_bf16
        return Backend(remark=f" ({' '.join(words)})" if words else "")

    def to_device(self, value: Tensor) -> Tensor:
        """An input of a network: on the device, floats in the precision, integers as they are."""
        return value.to(self.device, self.dtype if value.is_floating_point() else None)

    def allowed(self, golden: Any, tolerance: Tolerance, mask: Any = None) -> float:
        """The largest allowed difference in this precision."""
        return tolerance.bf16 * largest_magnitude(golden, mask) if self.is_bf16 else tolerance.fp32

    def check_close(
        self, name: str, found: Any, golden: Any, tolerance: Tolerance, mask: Any = None
    ) -> Check:
        """Largest absolute difference, where `mask` is True, against what this precision allows."""
        return check_close(name + self.remark, found, golden, self.allowed(golden, tolerance, mask), mask)

    def __str__(self) -> str:
        elsewhere = self.is_bf16 or self.device.type != "cpu"
        rest = "; features and decoding rules: cpu, fp32; others as their lines say" if elsewhere else ""
        where = f"device {self.device} ({processor_name(self.device)}), precision {self.precision}"
        return f"{where}, torch {torch.__version__}{rest}"
