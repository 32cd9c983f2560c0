"""Released files: every key and shape of the full size, and a strict way in."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from echat.checkpoint import CheckpointError
from echat.model.speech_llm import SpeechLLMConfig, model_on_meta
from echat.release import osum_weights
from echat.release.osum_weights import ALIASES, POSITION_TABLES, UNUSED, load_osum, map_key

ASSETS = Path(__file__).parent.parent / "assets" / "model"
HEADS = {"encoder_heads": 4}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return osum_weights.read_state(ASSETS / "tiny_echat.pt")


def _saved(state: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save(state, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def test_full_size_has_exactly_the_released_keys() -> None:
    released = json.loads((ASSETS / "keys_full.json").read_text())["keys"]
    skipped = {*ALIASES, *UNUSED, *POSITION_TABLES}
    theirs = {map_key(name): tuple(shape) for name, shape in released if name not in skipped}
    ours = model_on_meta(SpeechLLMConfig()).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == theirs
    assert len(released) == 888


def test_full_size_is_read_off_the_shapes() -> None:
    released = json.loads((ASSETS / "keys_full.json").read_text())["keys"]
    shapes = {name: torch.Size(shape) for name, shape in released}
    config = SpeechLLMConfig()
    assert osum_weights.infer_config(shapes, config.llm) == config


def test_tiny_checkpoint_loads(state: dict[str, Tensor]) -> None:
    model = load_osum(ASSETS / "tiny_echat.pt", ASSETS / "llm", **HEADS)
    assert torch.equal(model.speech_embedding.weight, state["speech_token_emded.weight"])
    assert torch.equal(model.llm.text_embedding.weight, state["lm_head.weight"])
    assert model.config.speech_codec_size == 40
    assert model.config.encoder.max_frames == 600
    assert all(p.requires_grad for p in model.parameters())


def test_one_alias_is_enough(state: dict[str, Tensor], tmp_path: Path) -> None:
    kept = {k: v for k, v in state.items() if k not in ALIASES or k == "lm_head.weight"}
    del kept["llama_model.model.embed_tokens.weight"]
    model = load_osum(_saved(kept, tmp_path), ASSETS / "llm", **HEADS)
    assert torch.equal(model.llm.text_embedding.weight, state["lm_head.weight"])


def test_disagreeing_aliases_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    changed = state | {"embed_tokens.weight": state["embed_tokens.weight"] + 1}
    with pytest.raises(CheckpointError, match=r"key embed_tokens.weight: expected the values of llama_model"):
        load_osum(_saved(changed, tmp_path), ASSETS / "llm", **HEADS)


def test_runtime_names_are_aliases(state: dict[str, Tensor], tmp_path: Path) -> None:
    extra = {"llama_model.speech_head.bias": state["speech_head.bias"].clone()}
    model = load_osum(_saved(state | extra, tmp_path), ASSETS / "llm", **HEADS)
    assert torch.equal(model.speech_head.bias, state["speech_head.bias"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("adapter_norm", s.pop("speech_transformer.after_norm.bias")), "1 missing"),
        (lambda s: s.update(mystery=torch.zeros(1)), "1 left over .mystery."),
        (lambda s: s.update({"speech_head.bias": torch.zeros(3)}), "1 of another shape"),
        (lambda s: s.pop("speech_token_emded.weight"), "found no speech_token_emded.weight"),
        (
            lambda s: s.update({"encoder.embed.pos_enc.pe": s["encoder.embed.pos_enc.pe"] + 0.1}),
            "key encoder.embed.pos_enc.pe: expected sinusoids",
        ),
    ],
)
def test_anything_else_is_refused(
    state: dict[str, Tensor], tmp_path: Path, change: object, complaint: str
) -> None:
    changed = dict(state)
    change(changed)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=complaint):
        load_osum(_saved(changed, tmp_path), ASSETS / "llm", **HEADS)


def test_low_precision_files_load(state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    model = load_osum(_saved(half, tmp_path), ASSETS / "llm", **HEADS)
    assert model.projection.weight.dtype == torch.float32
    assert torch.equal(model.projection.weight, half["speech_llama_proj.weight"].float())


def test_broken_and_missing_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"broken.pt: expected a torch file"):
        osum_weights.read_state(broken)
    with pytest.raises(CheckpointError, match="found none; check the path"):
        osum_weights.read_state(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match=r"Qwen2 folder with config.json"):
        osum_weights.read_llm_config(tmp_path)
