"""A released file becomes a model folder tensor by tensor, with the numbers of loading it directly."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from echat.checkpoint import CheckpointError
from echat.model.blocks import Rounding, rounded
from echat.model.model_folder import load_model, stored_dtype
from echat.release import osum_conversion
from echat.release.osum_conversion import convert_osum
from echat.release.osum_weights import ROUNDINGS, load_osum, read_state

ASSETS = Path(__file__).parent.parent / "assets" / "model"
WEIGHTS, LLM = ASSETS / "tiny_echat.pt", ASSETS / "llm"
HEADS = {"encoder_heads": 4, "adapter_heads": 4}


@pytest.mark.parametrize(("dtype", "part"), [(torch.float32, 1 << 30), (torch.bfloat16, 1 << 18)])
def test_converted_is_direct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, part: int
) -> None:
    monkeypatch.setattr(osum_conversion, "PART_BYTES", part)
    convert_osum(WEIGHTS, LLM, tmp_path, dtype, **HEADS)
    direct = load_osum(WEIGHTS, LLM, **HEADS, dtype=dtype)
    found = load_model(tmp_path, dtype)
    assert stored_dtype(tmp_path) == dtype and found.config.profile == "osum"
    assert found.model.config == direct.config
    theirs = direct.state_dict() | dict(direct.named_buffers())
    ours = found.model.state_dict() | dict(found.model.named_buffers())
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_stored_weights_are_mapped_and_not_copied(tmp_path: Path) -> None:
    convert_osum(WEIGHTS, LLM, tmp_path, torch.bfloat16, **HEADS)
    model = load_model(tmp_path, None).model
    places = [parameter.data_ptr() for parameter in model.parameters()]
    assert (
        max(places) - min(places) < (tmp_path / "model.safetensors").stat().st_size
    )  # one mapping of one file
    with torch.no_grad():
        model.projection.bias += 1
    again = load_model(tmp_path, None).model
    assert torch.equal(again.projection.bias + 1, model.projection.bias)  # the file is as it was


def test_the_report_counts_every_key(tmp_path: Path) -> None:
    report = convert_osum(WEIGHTS, LLM, tmp_path, **HEADS)
    state = read_state(WEIGHTS)
    counted = report.parameters + len(report.aliases) + len(report.unused) + len(report.tables)
    assert report.keys == counted == len(state)
    assert set(report.aliases) == {"llama_model.lm_head.weight", "embed_tokens.weight", "lm_head.weight"}
    assert report.shapes.ok and max(report.tables.values()) < 1e-7
    lines = str(report).splitlines()
    assert lines[0] == f"tiny_echat.pt: {len(state)} keys, 0 missing, 0 left over, 0 of another shape"
    assert "float32 -> bfloat16" in lines[1]
    assert lines[2] == "  3 aliases agree: 3 of llama_model.model.embed_tokens.weight"
    assert lines[3] == "  2 unused: ln_speech.weight, ln_speech.bias"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("speech_head.bias"), "1 missing .speech_head.bias."),
        (lambda s: s.update(mystery=torch.zeros(1)), "1 left over .mystery."),
        (
            lambda s: s.update({"lm_head.weight": s["lm_head.weight"] + 1}),
            "key lm_head.weight: expected the val",
        ),
        (lambda s: s.update({"lm_head.weight": s["lm_head.weight"].half()}), "the file mixes two models"),
        (
            lambda s: s["encoder.embed.pos_enc.pe"].add_(0.1),
            "key encoder.embed.pos_enc.pe: expected sinusoids",
        ),
        (lambda s: s["encoder.embed.pos_enc.pe"].fill_(torch.nan), "found values nan away"),
    ],
)
def test_anything_else_is_refused_before_a_weight_is_written(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], complaint: str
) -> None:
    state = {name: tensor.clone() for name, tensor in read_state(WEIGHTS).items()}
    change(state)
    torch.save(state, tmp_path / "changed.pt")
    with pytest.raises(CheckpointError, match=complaint):
        convert_osum(tmp_path / "changed.pt", LLM, tmp_path / "out", **HEADS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ways", ROUNDINGS)
def test_rounded_position_tables_are_kept_to_the_bit(tmp_path: Path, ways: Rounding) -> None:
    key = "encoder.embed.pos_enc.pe"
    state = dict(read_state(WEIGHTS))
    state[key] = rounded(state[key], ways)
    torch.save(state, tmp_path / "rounded.pt")
    convert_osum(tmp_path / "rounded.pt", LLM, tmp_path, **HEADS)
    positions = load_model(tmp_path).model.encoder.positions
    assert positions.rounding == ways and torch.equal(positions.table, state[key][0])


def test_the_old_file_format_is_read_too(tmp_path: Path) -> None:
    torch.save(dict(read_state(WEIGHTS)), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_state(tmp_path / "old.pt").keys() == read_state(WEIGHTS).keys()
