"""Every source of chance that a run draws from: seeded, remembered, restored."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed every generator a run may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of every random generator a run may draw from, as plain values and tensors."""
    version, internal, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=True)
    device = _accelerator()
    return {
        "python": [version, torch.tensor(internal), gauss],
        "numpy": [numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]],
        "torch": torch.get_rng_state(),
        "device": device.get_rng_state() if device is not None else None,  # of this process
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Go on where :func:`random_state` was asked."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(map(int, internal)), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys), *rest))
    torch.set_rng_state(state["torch"])
    device = _accelerator()
    if device is not None and state.get("device") is not None:
        device.set_rng_state(state["device"])


def _accelerator() -> Any:
    """torch's module for the accelerator of this machine (``torch.cuda``, ``torch.npu``), or None."""
    here = torch.accelerator.current_accelerator(check_available=True)
    return None if here is None else torch.get_device_module(here)
