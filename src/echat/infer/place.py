"""Where and how precisely a verification computes, and how a distance is judged there."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from echat.infer.check import Check, close, scale

Precision = Literal["fp32", "bf16"]
CPU = torch.device("cpu")


class Bound(NamedTuple):
    """How far a value may be from its golden one."""

    fp32: float  # absolute
    bf16: float = 0.0  # in parts of the largest golden value; 0: never computed so


@dataclass(frozen=True)
class Place:
    """A device and a precision; `remark` ends the names of values that were computed elsewhere than asked."""

    device: torch.device = CPU
    precision: Precision = "fp32"
    remark: str = ""

    @classmethod
    def of(cls, device: str = "cpu", precision: str = "fp32") -> "Place":
        """The place of two options; refuses a device that this machine lacks."""
        if precision not in get_args(Precision):
            known = " or ".join(get_args(Precision))
            raise ValueError(f"--precision: expected {known}, found {precision!r}; choose one of them")
        return cls(present_device(device), "bf16" if precision == "bf16" else "fp32")

    @property
    def is_rounded(self) -> bool:
        """Whether networks compute with 8 significant bits."""
        return self.precision == "bf16"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.is_rounded else torch.float32

    @property
    def in_fp32(self) -> "Place":
        """For networks whose rounded result would be another, not a less exact one."""
        return replace(self, precision="fp32", remark=" (fp32)") if self.is_rounded else self

    @property
    def at_home(self) -> "Place":
        """For what runs in float32 on the CPU whatever the networks do: features and rules of decoding."""
        words = ["cpu"] * (self.device.type != "cpu") + ["fp32"] * self.is_rounded
        return Place(remark=f" ({' '.join(words)})" if words else "")

    def put(self, value: Tensor) -> Tensor:
        """An input of a network: on the device, real numbers in the precision, whole numbers as they are."""
        return value.to(self.device, self.dtype if value.is_floating_point() else None)

    def allowed(self, golden: Any, bound: Bound, mask: Any = None) -> float:
        """The largest difference that counts as the same."""
        return bound.bf16 * scale(golden, mask) if self.is_rounded else bound.fp32

    def close(self, name: str, found: Any, golden: Any, bound: Bound, mask: Any = None) -> Check:
        """Largest absolute difference, where `mask` is True, against what this precision allows."""
        return close(name + self.remark, found, golden, self.allowed(golden, bound, mask), mask)

    def __str__(self) -> str:
        elsewhere = self.is_rounded or self.device.type != "cpu"
        rest = "; features and decoding rules: cpu, fp32; others as their lines say" if elsewhere else ""
        where = f"device {self.device} ({processor_name(self.device)}), precision {self.precision}"
        return f"{where}, torch {torch.__version__}{rest}"


def present_device(name: str) -> torch.device:
    """A device by name, once it was seen to compute; `auto` is cuda where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if reason.startswith("Expected one of"):  # followed by every kind that torch has heard of
            reason = "torch knows no such device"
        raise ValueError(
            f"--device: expected {' or '.join(['auto', *present_devices()])}, found {name!r} ({reason[:90]})"
        ) from error
    return device


def present_devices() -> list[str]:
    """Names of the devices of this machine."""
    return ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]


def set_threads(count: int | None) -> None:
    """CPU threads of torch in this process; None: those of `OMP_NUM_THREADS`, which torch knows, or one."""
    if count is not None and count < 1:
        raise ValueError(f"threads: expected 1 or more, found {count}")
    if count is not None or not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(count or 1)


def processor_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.processor() or platform.machine()
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name else device.type


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 products with all their bits: TF32, which keeps 10 of 23, is off inside and as before after."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before):
            backend.allow_tf32 = allowed
