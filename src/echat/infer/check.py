"""One comparison with a golden value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Check:
    """A golden array, how far this machine is from it, and how far it may be."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Within tolerance; a value that is not a number never is."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAIL"
        return f"{self.name:<60} max error {self.error:.2e}  tolerance {self.tolerance:.0e}  {verdict}"


def close(name: str, found: Any, golden: Any, tolerance: float, mask: Any = None) -> Check:
    """Largest absolute difference, where `mask` is True; arrays of another shape are infinitely far."""
    found, golden = _array(found), _array(golden)
    if found.shape != golden.shape:
        return Check(name, math.inf, tolerance)
    difference = np.abs(found.astype(np.float64) - golden.astype(np.float64))
    if mask is not None:
        difference = difference[_array(mask).astype(bool)]
    error = float(difference.max()) if difference.size else 0.0
    return Check(name, math.inf if math.isnan(error) else error, tolerance)


def scale(golden: Any, mask: Any = None) -> float:
    """Largest absolute golden value, where `mask` is True, infinities aside."""
    values = np.abs(_array(golden).astype(np.float64))
    values = values if mask is None else values[_array(mask).astype(bool)]
    return float(values[np.isfinite(values)].max(initial=0.0))


def same(name: str, found: Any, golden: Any) -> Check:
    """Ids, lengths, masks and strings: the number of places that differ must be 0."""
    if isinstance(golden, str):
        return Check(name, float(found != golden), 0.0)
    found, golden = _array(found), _array(golden)
    if found.shape != golden.shape:
        return Check(name, math.inf, 0.0)
    return Check(name, float((found != golden).sum()), 0.0)


def relative(name: str, found: float, golden: float, tolerance: float) -> Check:
    """Difference in parts of the golden value, which counts as at least a millionth."""
    return Check(name, abs(found - golden) / max(abs(golden), 1e-6), tolerance)


def _array(value: Tensor | np.ndarray | Sequence[Any]) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)
