"""Calibrated rounding to 4 bits: the outputs stay nearer than by rounding each weight to its nearest code."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from echat.checkpoint import read_tensors
from echat.cli import app
from echat.infer.loading import find_model
from echat.kernels.weight_quantization import dequantize, quantize_int4, quantize_int4_calibrated
from echat.model.model_folder import load_model
from echat.model_files import WEIGHTS_FILE
from echat.train.tools.calibration import SecondMoments


def test_outputs_stay_nearer_than_by_rounding_to_the_nearest():
    torch.manual_seed(0)
    x = torch.randn(500, 12) @ torch.randn(12, 64) + 0.1 * torch.randn(500, 64)  # inputs that go together
    weight = torch.randn(24, 64)
    nearest = dequantize(*quantize_int4(weight, 32))
    codes, scale = quantize_int4_calibrated(weight, x.T @ x, 32)
    fitted = dequantize(codes, scale)
    assert codes.min() >= -8 and codes.max() <= 7 and scale.shape == (24, 2)
    errors = [float((x @ (w - weight).T).norm() / (x @ weight.T).norm()) for w in (nearest, fitted)]
    assert errors[1] < 0.5 * errors[0], errors


def test_inputs_that_are_independent_leave_nothing_to_make_up_for():
    weight = torch.randn(8, 64)
    codes, scale = quantize_int4_calibrated(weight, torch.eye(64), 32)
    expected_codes, expected_scale = quantize_int4(weight, 32)
    assert torch.equal(codes, expected_codes) and torch.equal(scale, expected_scale)


def test_inputs_that_never_occur_are_harmless():
    weight, moments = torch.randn(8, 64), torch.zeros(64, 64)
    assert torch.isfinite(dequantize(*quantize_int4_calibrated(weight, moments, 32))).all()


class TwoOfOneInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.query(x) + self.key(x))


def test_second_moments_are_sums_over_all_calls_and_shared_by_layers_of_one_input():
    torch.manual_seed(0)
    module, inputs = TwoOfOneInput(), [torch.randn(2, 5, 4), torch.randn(7, 4)]
    with SecondMoments(module, lambda name: name != "out.weight") as found, torch.no_grad():
        for x in inputs:
            module(x)
    rows = torch.cat([x.reshape(-1, 4) for x in inputs])
    assert found.moments.keys() == {"query.weight", "key.weight"}
    assert found.moments["query.weight"] is found.moments["key.weight"]
    torch.testing.assert_close(found.moments["query.weight"], rows.T @ rows)
    module(inputs[0])  # no longer watched
    torch.testing.assert_close(found.moments["query.weight"], rows.T @ rows)


@pytest.mark.slow
def test_the_command_calibrates_on_the_training_data_of_a_recipe(recipe, tmp_path):
    path, model = recipe("speech_llm"), find_model("echat-tiny")
    calibrated = ["quantize", str(model), str(tmp_path / "a"), "--calibrate", str(path), "--batches", "2"]
    for words in (calibrated, ["quantize", str(model), str(tmp_path / "b")]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (result.output, result.exception)
        assert "layers" in result.stdout and "int4-32" in result.stdout and " MB" in result.stdout
    one, other = (read_tensors(tmp_path / name / WEIGHTS_FILE) for name in ("a", "b"))
    assert one.keys() == other.keys()
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    assert differing and all(name.startswith("llm.model.layers.") for name in differing)
    assert load_model(tmp_path / "a").config == load_model(tmp_path / "b").config
