"""The mean of models, and what cannot be averaged."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tests.train.command import echat

from echat.checkpoint import read_tensors
from echat.dialogue.capabilities import Capabilities
from echat.model.model_folder import load_model, save_model
from echat.train.tools.average import average_models

LEARNED = Capabilities(history_turns=1)


@pytest.fixture()
def pair(random_model, tmp_path):
    """Two models of one shape and other weights."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders):
        shutil.copytree(random_model, folder)
        model = load_model(folder)
        torch.manual_seed(number)
        weights = {name: torch.randn_like(tensor) for name, tensor in model.model.state_dict().items()}
        model.model.load_state_dict(weights, assign=True)
        save_model(folder, model.model, model.tokenizer, name=f"run {number}", learned=LEARNED)
    return folders


def test_the_mean(pair, tmp_path, capsys):
    before = [read_tensors(folder / "model.safetensors") for folder in pair]
    assert echat("average", [str(tmp_path / "mean"), *map(str, pair)]) == 0
    assert load_model(tmp_path / "mean").config.learned == LEARNED
    mean = load_model(tmp_path / "mean").model.state_dict()
    for name, tensor in mean.items():
        assert torch.allclose(tensor, (before[0][name] + before[1][name]) / 2, atol=1e-6), name
    after = read_tensors(pair[0] / "model.safetensors")
    assert all(torch.equal(after[name], before[0][name]) for name in after)


def test_alike_stay_as_they_are(pair):
    alone, thrice = load_model(pair[0]).model.state_dict(), average_models([pair[0]] * 3).model.state_dict()
    assert all(torch.equal(alone[name], thrice[name]) for name in alone)


def test_another_kind_is_refused(pair, tmp_path, capsys):
    file = pair[1] / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["ignore_merges"] = not tokenizer["model"]["ignore_merges"]
    file.write_text(json.dumps(tokenizer))
    assert echat("average", [str(tmp_path / "mean"), *map(str, pair)]) == 2
    assert "expected the text tokenizer of" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
