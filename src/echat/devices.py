"""Devices of torch: selection, names, number of CPU threads, and full float32 precision."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from echat.errors import first_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by the names of options


def present_device(name: str) -> torch.device:
    """A device by name, tested with a small computation; `auto` is cuda where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        reason = first_line(error)
        if reason.startswith("Expected one of"):  # followed by all kinds of device
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
    """The product name of a device."""
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
