"""Never lose a run: numbered checkpoints that appear whole or not at all and restore everything."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echat.checkpoint import atomic_path
from echat.train.objective import Objective
from echat.train.ranks import Ranks

ALONE = Ranks()
_NAME = re.compile(r"step-(\d{8})\.pt")


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0  # optimiser steps taken
    samples: int = 0  # samples seen
    seconds: float = 0.0  # wall clock spent, over all resumed parts


def save_checkpoint(
    folder: Path,
    progress: Progress,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    keep: int,
    ranks: Ranks = ALONE,
) -> Path:
    """Write ``folder/step-N.pt`` (the leading rank; all call), then remove all but the newest ``keep``."""
    path = folder / f"step-{progress.step:08d}.pt"
    shares = ranks.gather({"batches": objective.batches.state_dict(), "random": random_state()})
    if not ranks.leads:
        return path
    state = {
        "progress": vars(progress),
        "module": objective.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ranks": shares,
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(
    path: Path, objective: Objective, optimizer: torch.optim.Optimizer, ranks: Ranks = ALONE
) -> Progress:
    """Bring module, optimiser, data position and random states back to where the checkpoint was written.

    On another number of ranks the data goes on behind what any rank had begun, and chance begins anew.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    objective.module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    shares = state["ranks"]
    if len(shares) == ranks.world:
        objective.batches.load_state_dict(shares[ranks.rank]["batches"])
        restore_random_state(shares[ranks.rank]["random"])  # last: rebuilding data must not use these up
    else:
        objective.batches.go_behind([share["batches"] for share in shares])
    return Progress(**state["progress"])


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def random_state() -> dict[str, Any]:
    """The states of every random generator a run may draw from, as plain values and tensors."""
    numpy: Any = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [numpy[0], numpy[1].tolist(), *numpy[2:]],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed every generator a run may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
