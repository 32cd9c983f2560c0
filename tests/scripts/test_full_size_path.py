"""The script that tries the whole path, at a miniature size: conversion, loading, answer, sound."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from echat.token2wav.flow import Flow, FlowConfig
from echat.token2wav.hift.vocoder import Vocoder, VocoderConfig

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


def checkpoint_script():
    spec = importlib.util.spec_from_file_location("full_size_checkpoint", SCRIPTS / "full_size_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_full_size_has_the_released_keys():
    script = checkpoint_script()
    released = json.loads((ROOT / "tests" / "assets" / "model" / "keys_full.json").read_text())["keys"]
    shapes = script.key_shapes(script.MODELS["full"])
    shapes |= {name: shapes[script.TEXT_TABLE] for name in script.TIED}
    assert shapes == {name: tuple(shape) for name, shape in released}


def test_full_size_of_the_synthesis_has_the_released_keys():
    released_shapes, golden = checkpoint_script().released_shapes, ROOT / "tests" / "assets" / "token2wav"
    with torch.device("meta"):
        flow, vocoder = Flow(FlowConfig()), Vocoder(VocoderConfig())
    keys = json.loads((golden / "keys_flow.json").read_text())
    assert released_shapes(flow) == dict(keys["keys"])
    assert sum(p.numel() for p in flow.parameters()) == keys["total_parameters"]
    keys = json.loads((golden / "keys_hift.json").read_text())
    assert released_shapes(vocoder, "new") == dict(keys["keys"])
    assert released_shapes(vocoder, "old") == dict(keys["keys_weight_g_v_layout"])
    shapes = released_shapes(vocoder)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == keys["total_parameters"]


@pytest.mark.slow
def test_the_whole_path_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "full_size_path.py"), str(tmp_path), "--size", "tiny"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["decoded ids"] >= 1 and 0.9 < figures["speech seconds"] < 1.1
    assert figures["prompt positions"] > 62  # 5 s of sound are 63 of them
    assert "0 missing, 0 left over, 0 of another shape" in done.stdout
    state = torch.load(tmp_path / "weights.pt", mmap=True, weights_only=True)
    table = state["llama_model.model.embed_tokens.weight"]
    assert table.dtype == torch.bfloat16 and 0.01 < float(table.float().std()) < 0.03
    assert all(state[name].data_ptr() == table.data_ptr() for name in checkpoint_script().TIED)
