"""Killed at any moment and resumed, a run ends with the weights of an uninterrupted one.

``ECHAT_KILLS`` is how many kills that takes; 20 of them were made before this was published.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from echat.checkpoint import read_tensors
from echat.train.loop import train
from echat.train.ranks import Ranks

KILLS = int(os.environ.get("ECHAT_KILLS", "2"))
LONG = {"budget": {"steps": 12}, "checkpoint": {"every_steps": 2}, "validate_steps": 6}


def go_on(ranks: Ranks, recipe: Path) -> None:
    train(recipe, resume=True)


def results(folder: Path) -> tuple[dict[str, torch.Tensor], bytes]:
    return read_tensors(folder / "model" / "model.safetensors"), (folder / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_any_moment_it_ends_the_same(recipe, tmp_path, in_processes, world):
    """Bit-equal on two processes as well: a sum of two does not depend on their order."""
    began = time.monotonic()
    in_processes(world, go_on, recipe("speech_llm", "whole", **LONG))
    lasted = time.monotonic() - began
    weights, metrics = results(tmp_path / "whole")
    kills, runs = 0, 0
    while kills < KILLS or not (tmp_path / f"killed-{runs}" / "model").is_dir():
        path = recipe("speech_llm", f"killed-{runs}", **LONG)
        work = in_processes(world, go_on, path, wait=False)
        patience = random.uniform(0.0, lasted) if kills < KILLS else 10 * lasted
        work.join(timeout=patience)
        alive = [process for process in work.processes if process.is_alive()]
        for process in alive:
            os.kill(process.pid, signal.SIGKILL)
        for process in alive:
            process.join()
        kills += bool(alive)
        if not alive:
            found, rows = results(tmp_path / f"killed-{runs}")
            assert rows == metrics
            assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())
            runs += kills < KILLS
