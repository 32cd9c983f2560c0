"""Killed at moments drawn after its first checkpoint and resumed, a run ends as an uninterrupted one does.

``ECHAT_KILLS`` is how many kills that takes; 20 of them were made before this was published.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from echat.checkpoint import read_tensors
from echat.train.distributed import Ranks
from echat.train.trainer import train

KILLS = int(os.environ.get("ECHAT_KILLS", "2"))
LONG = {"budget": {"steps": 12}, "checkpoint": {"every_steps": 2}, "validate_steps": 6}
POLL_SECONDS = 0.002  # between two looks at the files of a run


def go_on(ranks: Ranks, recipe: Path) -> None:
    train(recipe, resume=True)


def results(folder: Path) -> tuple[dict[str, torch.Tensor], bytes]:
    return read_tensors(folder / "model" / "model.safetensors"), (folder / "metrics.jsonl").read_bytes()


def last_step(folder: Path) -> int:
    """The last step that the log of a run names."""
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def moment(folder: Path, chance: random.Random) -> Callable[[], bool]:
    """Some steps beyond all logged so far, at any point of a step or while a checkpoint is written."""
    checkpoints, target = folder / "checkpoints", last_step(folder) + chance.randint(1, 4)
    while_writing = chance.random() < 0.5

    def is_reached() -> bool:
        if not list(checkpoints.glob("step-*")) or last_step(folder) < target:
            return False
        return not while_writing or bool(list(checkpoints.glob(".*step-*")))

    return is_reached


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_any_moment_it_ends_the_same(recipe, tmp_path, in_processes, world):
    """Bit-equal on two processes as well: a sum of two does not depend on their order."""
    in_processes(world, go_on, recipe("speech_llm", "whole", **LONG))
    weights, metrics = results(tmp_path / "whole")
    chance = random.Random(world)
    kills = runs = 0
    while kills < KILLS or not (tmp_path / f"killed-{runs}" / "model").is_dir():
        folder = tmp_path / f"killed-{runs}"
        is_reached = moment(folder, chance)
        work = in_processes(world, go_on, recipe("speech_llm", folder.name, **LONG), wait=False)
        while not work.join(timeout=POLL_SECONDS) and not (kills < KILLS and is_reached()):
            pass
        alive = [process for process in work.processes if process.is_alive()]
        for process in alive:
            os.kill(process.pid, signal.SIGKILL)
        for process in alive:
            process.join()
        kills += bool(alive)
        if not alive:
            found, rows = results(folder)
            assert rows == metrics
            assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())
            runs += kills < KILLS
    assert kills == KILLS
