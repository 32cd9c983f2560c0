"""Several processes learn together, from disjoint shares of the data, and leave one run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.train.command import echat

from echat.checkpoint import read_tensors
from echat.train.distributed import Ranks, select_device
from echat.train.objectives import encoder_ctc
from echat.train.recipe import load_recipe
from echat.train.trainer import train


def go_on(ranks: Ranks, recipe: Path, overrides: list[str]) -> None:
    train(recipe, overrides, resume=True)


def steps(folder: Path) -> list[dict]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" in row]


def shared_keys(ranks: Ranks, recipe: Path, folder: Path) -> None:
    batches = encoder_ctc.build(load_recipe(recipe)).batches
    batches.shard(ranks.rank, ranks.world)
    (folder / str(ranks.rank)).write_text(" ".join(batches.next().keys))


def test_two_ranks_see_different_samples(recipe, tmp_path, in_processes):
    in_processes(2, shared_keys, recipe("encoder_ctc"), tmp_path)
    first, second = ((tmp_path / str(rank)).read_text().split() for rank in (0, 1))
    assert first and second and not set(first) & set(second)


@pytest.mark.slow
def test_a_run_in_shares_goes_on_with_any_number_of_ranks(recipe, tmp_path, in_processes):
    """Two processes, three, one, in bfloat16: a model at the end of each, and one consistent log."""
    shares = ["parallel=fsdp", "precision=bf16"]
    path, folder = recipe("speech_llm"), tmp_path / "run"
    for total, world in ((3, 2), (5, 3), (6, 1)):
        in_processes(world, go_on, path, [*shares, f"budget.steps={total}"])
        assert [row["step"] for row in steps(folder)] == list(range(1, total + 1))
        model = read_tensors(folder / "model" / "model.safetensors")
        assert echat("export", [str(folder), str(tmp_path / "again")]) == 0
        again = read_tensors(tmp_path / "again" / "model.safetensors")
        assert model.keys() == again.keys() and all(torch.equal(t, again[n]) for n, t in model.items())
    samples = [row["samples"] for row in steps(folder)]
    assert samples == sorted(samples)
    assert sum("validation" in line for line in (folder / "metrics.jsonl").open()) == 2


@pytest.mark.slow
def test_ranks_validate_together(recipe, tmp_path, in_processes):
    """The validation loss is the same, however many processes share it."""
    path = recipe("speech_llm", validate_steps=1, budget={"steps": 1}, optimizer={"lr": 1e-9})
    for world in (1, 3):
        in_processes(world, go_on, path, [f"output={tmp_path / str(world)}", "precision=fp32"])
    one, three = (
        next(
            json.loads(line)["validation"]
            for line in (tmp_path / n / "metrics.jsonl").open()
            if "valid" in line
        )
        for n in ("1", "3")
    )
    assert one.keys() == three.keys()
    assert all(three[name] == pytest.approx(value, rel=1e-5) for name, value in one.items())


@pytest.mark.slow
def test_torchrun_starts_processes_that_learn_together(recipe, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "echat", "train", str(recipe("encoder_ctc", budget={"steps": 4})), "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    assert [row["step"] for row in steps(tmp_path / "run")] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_alone_nothing_is_exchanged():
    ranks = Ranks()
    assert ranks.is_main and ranks.gather("value") == ["value"]


def test_an_accelerator_that_is_not_there_is_named():
    if torch.accelerator.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(
        ValueError, match="expected cuda in this machine, found no accelerator; set device=cpu"
    ):
        select_device("cuda")


def test_what_fsdp_cannot_do_is_refused_at_once(recipe):
    with pytest.raises(ValueError, match="optimizer.muon needs whole ones"):
        load_recipe(recipe("speech_llm"), ["parallel=fsdp", 'optimizer.muon=["encoder.*"]'])
    with pytest.raises(ValueError, match="shard_ranks: expected parallel=fsdp"):
        load_recipe(recipe("speech_llm"), ["shard_ranks=2"])
