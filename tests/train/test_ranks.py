"""Several processes learn as one would, from disjoint shares of the data, and leave one run folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.multiprocessing as processes

from echat.train.objectives import ctc
from echat.train.ranks import Ranks, join, leave
from echat.train.recipe import load_recipe

ENCODER = {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16, "max_frames": 600, "dropout": 0.0}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def one_rank(rank: int, world: int, port: int, recipe: Path, folder: Path) -> None:
    """The summed gradients of one step, and the keys that this rank saw."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = join()
    torch.manual_seed(0)
    objective = ctc.build(load_recipe(recipe))
    objective.batches.share(ranks.rank, ranks.world)
    batch = objective.batches.next()
    objective.loss(batch).total.backward()
    ranks.sum_gradients(objective.module)
    gradients = {name: p.grad for name, p in objective.module.named_parameters()}
    torch.save({"gradients": gradients, "keys": batch.keys}, folder / f"{rank}.pt")
    leave(ranks)


def test_gradients_of_two_ranks_are_those_of_one_process(recipe, tmp_path):
    path = recipe("ctc", precision="fp32", augment=None, encoder=ENCODER)
    processes.start_processes(one_rank, (2, free_port(), path, tmp_path), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert not set(first["keys"]) & set(second["keys"])
    torch.manual_seed(0)
    objective = ctc.build(load_recipe(path))
    for rank in (0, 1):
        shard = ctc.build(load_recipe(path)).batches
        shard.share(rank, 2)
        objective.loss(shard.next()).total.backward()
    for name, parameter in objective.module.named_parameters():
        for rank in (first, second):
            torch.testing.assert_close(rank["gradients"][name], parameter.grad, rtol=1e-5, atol=1e-5)


def torchrun(world: int, recipe: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    command += ["--master-port", str(free_port()), "-m", "echat.train", str(recipe), *overrides, "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_run_goes_on_with_another_number_of_ranks(recipe, tmp_path):
    path = recipe("ctc", budget={"steps": 4}, checkpoint={"every_steps": 2})
    torchrun(2, path)
    folder = tmp_path / "run"
    steps = [row for row in map(json.loads, (folder / "metrics.jsonl").open()) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert (folder / "model" / "model.safetensors").is_file()
    torchrun(1, path, "budget.steps=6")
    steps = [row for row in map(json.loads, (folder / "metrics.jsonl").open()) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    samples = [row["samples"] for row in steps]
    assert samples == sorted(samples)


def test_alone_nothing_is_exchanged():
    ranks = Ranks()
    assert ranks.leads and ranks.gather("value") == ["value"]
