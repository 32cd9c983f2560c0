"""A run whose weights stand still in part: small checkpoints, and none of them goes on from other weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.train.command import echat

from echat.checkpoint import CheckpointError, read_tensors
from echat.train.trainer import train


@pytest.fixture
def stages(recipe, tmp_path) -> tuple[Path, Path]:
    """A model, and a recipe that starts from it and learns a part."""
    first = train(recipe("speech_llm", "first", budget={"steps": 2}))
    second = recipe(
        "speech_llm",
        "second",
        model=None,
        tokenizer=None,
        init_from={"all": str(first)},
        trainable=["adapter.*", "projection.*"],
        budget={"steps": 4},
        checkpoint={"every_steps": 2},
    )
    return first, second


@pytest.mark.slow
def test_a_run_goes_on_from_the_weights_it_began_with_alone(stages, tmp_path):
    first, second = stages
    whole = read_tensors(train(second) / "model.safetensors")
    start = read_tensors(first / "model.safetensors")
    moved = {name for name, tensor in whole.items() if not torch.equal(tensor, start[name])}
    assert moved and all(name.startswith(("adapter.", "projection.")) for name in moved)

    shutil.copytree(first, tmp_path / "kept")
    shutil.rmtree(first)
    other = recipe_of_another_seed(tmp_path)
    shutil.copytree(train(other), first)
    with pytest.raises(CheckpointError, match="second: expected the frozen weights of the time"):
        train(second, ["budget.steps=6"], resume=True)
    assert echat("export", [str(tmp_path / "second"), str(tmp_path / "out")]) == 2

    shutil.rmtree(first)
    shutil.copytree(tmp_path / "kept", first)
    assert echat("export", [str(tmp_path / "second"), str(tmp_path / "out")]) == 0
    again = read_tensors(tmp_path / "out" / "model.safetensors")
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)


def recipe_of_another_seed(tmp_path: Path) -> Path:
    """The first stage once more, from other chance, in a folder of its own."""
    path = tmp_path / "other.yaml"
    text = (tmp_path / "first.yaml").read_text().replace(str(tmp_path / "first"), str(tmp_path / "other"))
    path.write_text(text + "\nseed: 7\n")
    return path
