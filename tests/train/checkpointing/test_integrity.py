"""Damaged checkpoints give way to older ones, foreign ones run no code, and a changed recipe is named."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from tests.train.command import echat
from tests.train.conftest import miniature

from echat.checkpoint import CheckpointError, read_tensors
from echat.train.checkpointing.checkpoints import list_checkpoints, load_tensors, read_progress
from echat.train.checkpointing.integrity import HASHES, INDEX, RUN_FILE, DamagedCheckpoint, SafeReader
from echat.train.objectives import encoder_ctc
from echat.train.recipe import load_recipe
from echat.train.trainer import train

KEEP_ALL = {"every_steps": 2, "keep": 9, "keep_best": False}


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """(recipe, run folder) of six steps with checkpoints at 2, 4 and 6; copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    values = miniature("encoder_ctc", corpus) | {"output": str(folder / "run"), "checkpoint": KEEP_ALL}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    train(path)
    return path, folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> tuple[Path, Path, list[str]]:
    """(recipe, a run folder of one's own, the override that names it)."""
    recipe, folder = trained
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    shutil.rmtree(own / "model")
    return recipe, own, [f"output={own}"]


def newest(folder: Path) -> Path:
    return list_checkpoints(folder / "checkpoints")[-1]


def weights_file(checkpoint: Path) -> Path:
    return next(checkpoint.glob("*.distcp"))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in random.Random(0).sample(range(len(data)), min(64, len(data))):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


PARTS: dict[str, Callable[[Path], Path]] = {
    "weights": weights_file,
    "index": lambda checkpoint: checkpoint / INDEX,
    "run": lambda checkpoint: checkpoint / RUN_FILE,
    "hashes": lambda checkpoint: checkpoint / HASHES,
}
DAMAGES = (cut, empty, flip, garbage, Path.unlink)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_of_any_part_is_found_and_the_one_before_is_taken(run, capsys, tmp_path, part, damage):
    _, folder, _ = run
    damaged = newest(folder)
    damage(PARTS[part](damaged))
    with pytest.raises(DamagedCheckpoint, match=f"{damaged.name}: expected a whole .* remove it"):
        read_progress(damaged)
    assert echat("export", [str(folder), str(tmp_path / "model")]) == 0
    said = capsys.readouterr()
    assert "step-00000004 of" in said.out
    assert said.err.count("\n") == 1 and f"{damaged}: " in said.err and "step-00000004 is taken" in said.err


@pytest.mark.parametrize("damage", [flip_one_bit, None], ids=["one bit", "empty folder"])
def test_a_run_goes_on_from_the_checkpoint_before_to_the_same_end(trained, run, capsys, damage):
    recipe, folder, here = run
    damaged = newest(folder)
    if damage:
        damage(weights_file(damaged))
    else:
        shutil.rmtree(damaged)
        damaged.mkdir()
    model = train(recipe, here, resume=True)
    said = capsys.readouterr().out
    assert f"{damaged.name}: expected a whole checkpoint" in said and "step-00000004 is taken instead" in said
    whole, again = (read_tensors(path / "model.safetensors") for path in (trained[1] / "model", model))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    read_progress(damaged)  # the run wrote it anew


def test_where_none_is_whole_it_is_said_in_one_line(run, capsys):
    recipe, folder, here = run
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        cut(weights_file(checkpoint))
    assert echat("train", [str(recipe), *here, "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "3, all damaged" in said and "step-00000002" in said
    assert echat("export", [str(folder), str(folder / "model")]) == 2


def test_a_checkpoint_without_hashes_is_read_and_its_damage_found(run):
    """As earlier versions wrote them."""
    recipe, folder, here = run
    checkpoint = newest(folder)
    state = torch.load(checkpoint / RUN_FILE)
    del state["hashed"], state["progress"]["world"]
    torch.save(state, checkpoint / RUN_FILE)
    (checkpoint / HASHES).unlink()
    assert read_progress(checkpoint).step == 6
    module = encoder_ctc.build(load_recipe(recipe)).module
    load_tensors(checkpoint, module)
    weights_file(checkpoint).write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="tensors cannot be read"):
        load_tensors(checkpoint, module)
    assert train(recipe, here, resume=True).is_dir()


# --- files of strangers


class Runs:
    """Unpickled as Python does, it makes a folder."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


class Opens(Runs):
    def __reduce__(self):
        return open, (str(self.proof), "w")


class Evaluates(Runs):
    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({str(self.proof)!r})",)


def in_metadata(value: object, **fields: object) -> dcp.metadata.Metadata:
    """An index that holds a value where tools would not look for one."""
    size = torch.Size([1])
    chunk = dcp.metadata.ChunkStorageMetadata(size, size)
    about = dcp.metadata.TensorStorageMetadata(dcp.metadata.TensorProperties(), size, [chunk])
    return dcp.metadata.Metadata({"module/x": about}, planner_data=value, storage_data={}, **fields)


def without_hashes(checkpoint: Path) -> None:
    """A stranger can write hashes as well; without them nothing stands before the reading itself."""
    (checkpoint / HASHES).unlink()
    state = torch.load(checkpoint / RUN_FILE)
    del state["hashed"]
    torch.save(state, checkpoint / RUN_FILE)


@pytest.mark.parametrize("kind", [Runs, Opens, Evaluates])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("protocol", range(6))
def test_an_index_runs_no_code(trained, tmp_path, kind, hidden, protocol):
    evil = kind(tmp_path / "proof")
    (tmp_path / INDEX).write_bytes(pickle.dumps(in_metadata(evil) if hidden else evil, protocol))
    with pytest.raises(DamagedCheckpoint, match="which is no part of the format"):
        SafeReader(tmp_path).read_metadata()
    assert not (tmp_path / "proof").exists()


def test_a_foreign_run_is_not_run_by_resume_or_export(run, tmp_path, capsys):
    recipe, folder, here = run
    proof = tmp_path / "proof"
    for number, checkpoint in enumerate(list_checkpoints(folder / "checkpoints")):
        without_hashes(checkpoint)
        file = checkpoint / (INDEX, RUN_FILE, INDEX)[number]
        file.write_bytes(pickle.dumps(Runs(proof)))
    assert echat("train", [str(recipe), *here, "--resume"]) == 2
    assert echat("export", [str(folder), str(tmp_path / "model")]) == 2
    assert echat("export", [str(folder), str(tmp_path / "model"), "--step", "4"]) == 2
    assert capsys.readouterr().err.count("\n") == 3 and not proof.exists()


def test_tensors_that_are_pickles_are_not_unpickled(run, tmp_path):
    """An index that calls a part bytes would have it unpickled."""
    recipe, folder, _ = run
    checkpoint, proof = newest(folder), tmp_path / "proof"
    without_hashes(checkpoint)
    index = SafeReader(checkpoint).read_metadata()
    for name in index.state_dict_metadata:
        index.state_dict_metadata[name] = dcp.metadata.BytesStorageMetadata()
    (checkpoint / INDEX).write_bytes(pickle.dumps(index))
    torch.save(Runs(proof), weights_file(checkpoint))
    with pytest.raises(DamagedCheckpoint, match="BytesStorageMetadata"):
        load_tensors(checkpoint, encoder_ctc.build(load_recipe(recipe)).module)
    assert not proof.exists()


def test_an_index_points_into_its_own_folder_alone(run):
    recipe, folder, _ = run
    checkpoint = newest(folder)
    without_hashes(checkpoint)
    index = SafeReader(checkpoint).read_metadata()
    for part in index.storage_data.values():
        part.relative_path = f"../step-00000004/{part.relative_path}"
    (checkpoint / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(DamagedCheckpoint, match="expected a file of this folder, found '../step"):
        load_tensors(checkpoint, encoder_ctc.build(load_recipe(recipe)).module)


def test_an_index_changes_no_class(tmp_path):
    """The opcode that fills objects takes a class as well."""
    (tmp_path / INDEX).write_bytes(
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}X\x07\x00\x00\x00plannedNstb."
    )
    with pytest.raises(DamagedCheckpoint, match="it sets fields of type"):
        SafeReader(tmp_path).read_metadata()
    assert not hasattr(dcp.metadata.Metadata, "planned")


# --- a recipe that changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("encoder.dim=32", "expected encoder.dim 16, with which the run began, found 32"),
        ("encoder.heads=4", "expected encoder.heads 2, with which the run began, found 4"),
        ("encoder.blocks=2", "expected encoder.blocks 1"),
        ("seed=5", "expected seed 0, with which the run began, found 5; leave it"),
    ],
)
def test_what_must_stay_is_refused_in_one_line(run, capsys, change, said):
    recipe, folder, here = run
    before = (folder / "metrics.jsonl").read_bytes()
    assert echat("train", [str(recipe), *here, change, "--resume"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (folder / "metrics.jsonl").read_bytes() == before and len(
        list_checkpoints(folder / "checkpoints")
    ) == 3


def test_another_objective_is_refused(run, recipe, capsys):
    _, _, here = run
    assert echat("train", [str(recipe("tokenizer")), *here, "--resume"]) == 2
    assert (
        "expected objective encoder_ctc, with which the run began, found tokenizer" in capsys.readouterr().err
    )


def test_another_shape_is_refused_where_the_recipe_of_the_run_is_lost(run, capsys):
    recipe, folder, here = run
    (folder / "recipe.yaml").write_text("{", encoding="utf-8")
    assert echat("train", [str(recipe), *here, "encoder.dim=32", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "of another shape, module/encoder" in error and error.count("\n") == 1


@pytest.mark.slow
def test_what_may_change_is_said(run, capsys):
    recipe, folder, here = run
    changes = [
        "optimizer.lr=0.002",
        "sources.0.weight=2.0",
        "accumulate=3",
        "encoder.dropout=0.0",
        "budget.steps=7",
    ]
    train(recipe, [*here, *changes], resume=True)
    said = " ".join(capsys.readouterr().out.split())
    for change in (
        "optimizer.lr 0.01 -> 0.002",
        "accumulate 2 -> 3",
        "encoder.dropout 0.1 -> 0.0",
        "budget.steps 6 -> 7",
        "sources.0.weight 1.0 -> 2.0",
    ):
        assert change in said
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6, 7]
    train(recipe, [*here, *changes], resume=True)
    assert "changed since" not in capsys.readouterr().out


@pytest.mark.slow
def test_another_number_of_processes_is_said(run, in_processes, capfd):
    recipe, _, here = run
    in_processes(2, lambda ranks: train(recipe, [*here, "budget.steps=7"], resume=True))
    assert "2 processes go on where 1 were" in " ".join(capfd.readouterr().out.split())


def test_a_full_disk_is_said_in_one_line(run, monkeypatch, capsys):
    """Where even the log cannot be written."""
    from echat.train.tracking.log import RunLog

    def full(*_):
        raise OSError(28, "No space left on device")

    recipe, folder, here = run
    monkeypatch.setattr(RunLog, "_write", full)
    assert echat("train", [str(recipe), *here, "budget.steps=8", "--resume"]) == 2
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert read_progress(newest(folder)).step == 6


def test_ranks_that_cannot_be_are_named(run, monkeypatch):
    recipe, _, here = run
    for values, said in (
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a number, found 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected a number"),
        ({"WORLD_SIZE": "2"}, "RANK: expected a number, found None; start with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: expected 0 to 1, .* found 2"),
    ):
        with monkeypatch.context() as environment:
            for name, value in values.items():
                environment.setenv(name, value)
            with pytest.raises(ValueError, match=said):
                train(recipe, here, resume=True)


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="found it damaged: run.pt is missing"):
        read_progress(tmp_path)
