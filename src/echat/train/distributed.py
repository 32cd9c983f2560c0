"""Distributed processes of a run: rank, device and communication of each; random states.

``torchrun --nproc-per-node 2 -m echat train recipe.yaml`` starts them; in a single process all of it is a
no-op. Data parallelism and sharding are in ``echat.train.parallel``.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Rank of this process and number of processes (world size)."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in order of rank, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def select_device(name: str) -> torch.device:
    """The device of this process: of several accelerators of a machine the one of its local rank.

    ``name`` is ``cpu``, the kind of accelerator that this machine has (``cuda``, ``npu``, ``xpu``), or one of
    them with its number.
    """
    device = torch.device(name)
    if device.type == "cpu":
        return device
    here = torch.accelerator.current_accelerator(check_available=True)
    if here is None or here.type != device.type:
        found = "no accelerator" if here is None else here.type
        raise ValueError(f"device: expected {device.type} in this machine, found {found}; set device=cpu")
    if ":" not in name:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.accelerator.device_count():
            raise ValueError(
                f"device: expected a {device.type} for each process of this machine, found "
                f"{torch.accelerator.device_count()} and process {local}; start fewer with --nproc-per-node"
            )
        device = torch.device(device.type, local)
    torch.accelerator.set_device_index(device.index)
    return device


def init_distributed(device: torch.device | None = None) -> Ranks:
    """Initialize the process group of the processes that torchrun started.

    The backend is gloo, and between devices the default of torch: NCCL on NVIDIA GPUs, HCCL on Ascend NPUs.
    """
    world = _variable("WORLD_SIZE", 1)
    if world == 1:
        return Ranks()
    rank = _variable("RANK")
    if rank >= world:
        raise ValueError(
            f"RANK: expected 0 to {world - 1}, one of the {world} processes that WORLD_SIZE counts, found "
            f"{rank}; start with torchrun, which sets both"
        )
    if not dist.is_initialized():
        backend = "gloo"
        if device is not None and device.type != "cpu":
            backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
        dist.init_process_group(backend)
    return Ranks(dist.get_rank(), world)


def _variable(name: str, default: int | None = None) -> int:
    """A number that torchrun sets for each process."""
    value = os.environ.get(name, default)
    if not str(value).isdecimal() or (name == "WORLD_SIZE" and int(str(value)) < 1):
        raise ValueError(
            f"{name}: expected a number, found {value!r}; start with torchrun, which sets it, or without "
            "WORLD_SIZE for one process"
        )
    return int(str(value))


def shutdown_distributed(ranks: Ranks) -> None:
    """Destroy the process group, when there is one, once all processes have arrived."""
    if ranks.world > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


# --- Random generators: seeded, saved, restored.


def seed_everything(seed: int) -> None:
    """Seed every random generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of every random generator, as plain values and tensors."""
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
    """Restore what :func:`random_state` returned."""
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
