"""Checkpoints reload on any number of processes, appear whole or not at all, and the good ones stay."""

from __future__ import annotations

import math
import resource
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from echat.checkpoint import CheckpointError
from echat.train.checkpointing import checkpoints
from echat.train.checkpointing.checkpoints import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    prune,
    remove_partial,
    save_checkpoint,
)
from echat.train.distributed import Ranks
from echat.train.objectives import speech_llm
from echat.train.optimizer import build_optimizer, set_learning_rate
from echat.train.parallel import ParallelModel
from echat.train.recipe import load_recipe
from echat.train.weights.parameters import frozen_hash, frozen_names, set_trainable

CPU = torch.device("cpu")
KEEP = 2


class Trainee:
    """What the loop works with, for a few steps by hand."""

    def __init__(self, ranks: Ranks, recipe: Path, overrides: list[str], seed: int = 0) -> None:
        settings = load_recipe(recipe, overrides)
        torch.manual_seed(seed)
        self.ranks = ranks
        self.objective = speech_llm.build(settings)
        self.objective.batches.shard(ranks.rank, ranks.world)
        set_trainable(self.objective.module, settings.trainable)
        self.parallel_model = ParallelModel(self.objective, settings, ranks, CPU)
        self.optimizer = build_optimizer(self.objective.module, settings.optimizer)
        self.progress = Progress()

    def step(self) -> float:
        set_learning_rate(self.optimizer, 0.01)
        loss = self.parallel_model.forward_backward(self.objective.batches.next())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        return float(loss.total)

    def save(self, folder: Path) -> Path:
        return save_checkpoint(folder, self.progress, self.objective, self.optimizer, KEEP, self.ranks)

    def load(self, path: Path) -> None:
        self.progress = load_checkpoint(path, self.objective, self.optimizer, self.ranks)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of module and optimiser, put together."""
        state = dict(self.objective.module.state_dict())
        for name, parameter in self.objective.module.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{name}/{key}"] = value
        return {
            name: (t.full_tensor() if hasattr(t, "full_tensor") else t).clone() for name, t in state.items()
        }


def train_and_save(ranks: Ranks, recipe: Path, overrides: list[str], folder: Path) -> None:
    trainee = Trainee(ranks, recipe, overrides)
    for _ in range(2):
        trainee.step()
    trainee.save(folder / "checkpoints")
    state = trainee.state()
    if ranks.is_main:
        torch.save(state, folder / "state.pt")


def load_and_compare(ranks: Ranks, recipe: Path, overrides: list[str], folder: Path) -> None:
    trainee = Trainee(ranks, recipe, overrides, seed=1)
    trainee.load(folder / "checkpoints" / "step-00000002")
    expected, found = torch.load(folder / "state.pt"), trainee.state()
    assert found.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    assert not different, different
    assert trainee.progress.step == 2 and math.isfinite(trainee.step())


DDP: list[str] = []
FSDP = ["parallel=fsdp"]


@pytest.mark.parametrize("written", [FSDP, DDP], ids=["fsdp", "ddp"])
@pytest.mark.slow
def test_two_processes_write_what_one_and_three_read(exact, tmp_path, in_processes, written):
    in_processes(2, train_and_save, exact, written, tmp_path)
    load_and_compare(Ranks(), exact, [], tmp_path)
    in_processes(3, load_and_compare, exact, written, tmp_path)


def test_one_process_writes_what_two_shard(exact, tmp_path, in_processes):
    train_and_save(Ranks(), exact, [], tmp_path)
    in_processes(2, load_and_compare, exact, FSDP, tmp_path)


def test_muon_and_adam_come_back(exact, tmp_path):
    both = ['optimizer.muon=["llm.model.layers.*"]']
    trainee = Trainee(Ranks(), exact, both)
    trainee.step()
    path = trainee.save(tmp_path)
    again = Trainee(Ranks(), exact, both, seed=1)
    again.load(path)
    for one, other in zip(trainee.optimizer.optimizers, again.optimizer.optimizers):
        assert len(one.state) == len(other.state) > 0
    expected, found = trainee.step(), again.step()
    assert expected == found
    for one, other in zip(trainee.objective.module.parameters(), again.objective.module.parameters()):
        assert torch.equal(one, other)


FROZEN = ['trainable=["adapter.*", "llm.model.norm.*"]']


def stored_names(path: Path) -> set[str]:
    return set(dcp.FileSystemReader(path).read_metadata().state_dict_metadata)


def test_frozen_weights_are_not_stored(exact, tmp_path):
    trainee = Trainee(Ranks(), exact, FROZEN)
    trainee.step()
    path = trainee.save(tmp_path)
    kept = {name.removeprefix("module/") for name in stored_names(path) if name.startswith("module/")}
    learned = {name for name, p in trainee.objective.module.named_parameters() if p.requires_grad}
    assert learned <= kept and not kept & frozen_names(trainee.objective.module)
    again = Trainee(Ranks(), exact, FROZEN)
    again.load(path)
    assert trainee.step() == again.step()


def test_a_checkpoint_of_an_earlier_version_brings_frozen_weights(exact, tmp_path, monkeypatch):
    trainee = Trainee(Ranks(), exact, FROZEN)
    trainee.step()
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoints, "frozen_names", lambda module: set())
        path = trainee.save(tmp_path)
    again = Trainee(Ranks(), exact, FROZEN, seed=1)
    again.load(path)
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in trainee.state().items())


def test_the_frozen_hash_depends_on_every_frozen_weight(exact):
    module = Trainee(Ranks(), exact, FROZEN).objective.module
    before = frozen_hash(module)
    with torch.no_grad():
        next(p for p in module.parameters() if p.requires_grad).add_(1.0)
    assert frozen_hash(module) == before
    with torch.no_grad():
        module.llm.text_embedding.weight[3, 1] += 1e-6
    assert frozen_hash(module) != before
    assert frozen_hash(torch.nn.Linear(2, 2)) == ""


def test_another_recipe_is_refused_by_name(exact, tmp_path):
    path = Trainee(Ranks(), exact, []).save(tmp_path)
    with pytest.raises(CheckpointError, match="missing or left over, module/llm.* resume with the recipe"):
        Trainee(Ranks(), exact, ["model.llm.layers=2"]).load(path)


def fill_disk(room: int) -> None:
    """No file of this process may grow beyond so many bytes: writing fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "checkpoints"
    path.mkdir()
    return path


def test_where_nothing_can_be_written_the_checkpoint_before_stays_whole(exact, folder):
    trainee = Trainee(Ranks(), exact, [])
    trainee.step()
    whole = trainee.save(folder)
    state = trainee.state()
    trainee.step()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    fill_disk(20_000)
    try:
        with pytest.raises(CheckpointError, match="could not be written .*step-00000001 before it is whole"):
            trainee.save(folder)
    finally:
        fill_disk(before)
    assert [path.name for path in folder.iterdir()] == [whole.name]
    again = Trainee(Ranks(), exact, [], seed=1)
    again.load(whole)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state().items())


def save_on_a_full_disk(ranks: Ranks, recipe: Path, folder: Path) -> None:
    """Only the second process runs out of space; both say so, and both go on."""
    trainee = Trainee(ranks, recipe, FSDP)
    trainee.step()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if ranks.rank == 1:
        fill_disk(1_000)
    with pytest.raises(CheckpointError, match="there is none before it"):
        trainee.save(folder)
    fill_disk(before)
    trainee.save(folder)


def test_a_full_disk_of_one_process_is_known_to_all(exact, folder, in_processes):
    in_processes(2, save_on_a_full_disk, exact, folder)
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]


def test_the_newest_and_the_best_stay(folder):
    for step in range(1, 7):
        (folder / f"step-{step:08d}").mkdir()
    prune(folder, keep=2, best=3, step=6)
    assert [path.name[-1] for path in list_checkpoints(folder)] == ["3", "5", "6"]


def test_what_a_damaged_run_left_does_not_count_as_kept(folder):
    for step in (2, 3, 9):
        (folder / f"step-{step:08d}").mkdir()
    prune(folder, keep=1, best=0, step=3)  # it went on from 2, before 9
    assert [path.name[-1] for path in list_checkpoints(folder)] == ["3", "9"]


def test_partial_checkpoints_are_removed(exact, folder):
    whole = Trainee(Ranks(), exact, []).save(folder)
    shutil.copytree(whole, folder / ".1234.step-00000007")
    (folder / ".old.step-00000001").mkdir()
    assert list_checkpoints(folder) == [whole]
    remove_partial(folder)
    assert list(folder.iterdir()) == [whole]
