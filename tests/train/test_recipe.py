from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.train.command import echat
from torch import nn

from echat.train.recipe import OBJECTIVES, load_recipe
from echat.train.trainer import train
from echat.train.weights.parameters import set_trainable

RECIPES = Path(__file__).parents[2] / "recipes"
TRAINING = sorted(
    path
    for path in RECIPES.rglob("*.yaml")
    if {"objective", "base"} & yaml.safe_load(path.read_text()).keys()
)


def small() -> nn.Module:
    return nn.ModuleDict({"encoder": nn.Linear(2, 2), "llm": nn.ModuleDict({"norm": nn.LayerNorm(2)})})


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path):
    assert load_recipe(path).objective in OBJECTIVES


def test_globs_take_in_and_out():
    module = small()
    assert set_trainable(module, ["encoder.*"]) == ["encoder.weight", "encoder.bias"]
    assert set_trainable(module, ["*", "!*.bias"]) == ["encoder.weight", "llm.norm.weight"]
    assert {n for n, p in module.named_parameters() if p.requires_grad} == {
        "encoder.weight",
        "llm.norm.weight",
    }


def test_a_glob_that_matches_nothing_is_refused():
    with pytest.raises(
        ValueError, match=r"'decoder\.\*' matches no parameter; parameters start with encoder, llm"
    ):
        set_trainable(small(), ["encoder.*", "decoder.*"])


def test_nothing_that_learns_is_refused():
    with pytest.raises(ValueError, match="selects no parameter"):
        set_trainable(small(), ["encoder.*", "!*"])


def test_a_budget_needs_an_end(recipe):
    with pytest.raises(ValueError, match="expected steps, minutes or epochs"):
        load_recipe(recipe("encoder_ctc", budget={}))


def test_an_unknown_objective_is_refused(recipe):
    with pytest.raises(ValueError, match="expected one of speech_llm, encoder_ctc"):
        load_recipe(recipe("encoder_ctc"), ["objective=dream"])


def test_a_recipe_inherits_its_objective(recipe, tmp_path):
    recipe("encoder_ctc", "basis")
    (tmp_path / "heir.yaml").write_text("base: basis.yaml\nseed: 7\n")
    assert (load_recipe(tmp_path / "heir.yaml").seed, load_recipe(tmp_path / "heir.yaml").objective) == (
        7,
        "encoder_ctc",
    )


def shrunk(path: Path, corpus: Path, tmp_path: Path, shape: dict, starts: dict[str, str]) -> Path:
    """A shipped recipe at miniature size, for two steps; ``starts``: part -> what it starts from.

    What learns, tasks, weights, schedule and the names of the parts it starts from stay as shipped.
    """
    values = load_recipe(path).model_dump(mode="json", exclude_unset=True)
    manifest = str(corpus / "manifest.jsonl")
    data = values["data"]
    for source in (*data["sources"], *(data.get("validation") or ())):
        source |= {"path": manifest, "languages": [], "format": "manifest"}
    values |= {"output": str(tmp_path / path.stem), "budget": {"steps": 2}, "checkpoint": {"every_steps": 1}}
    values |= {"validate_steps": 2, "device": "cpu", "decode": {"every_steps": 2, "records": 2, "samples": 1}}
    values["init_from"] = {part: starts[part] for part in values.get("init_from", {})}
    values.pop("init", None)  # one layer cannot hold them
    foreign = {"encoder", "llm"} & values["init_from"].keys() and "all" not in values["init_from"]
    model = {k: v for k, v in shape.items() if k not in ("encoder", "llm")} if foreign else shape
    small = {"encoder": shape["encoder"], "model": model, "tokenizer": str(corpus / "tokenizer")}
    for key in small:
        if values.get(key) is not None or (key == "model" and foreign):
            values[key] = small[key]
    data |= {key: size for key, size in (("batch_cost", 300), ("pool", 8), ("workers", 0)) if key in data}
    shrunk_path = tmp_path / f"{path.stem}.yaml"
    shrunk_path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return shrunk_path


@pytest.mark.slow
def test_the_tiny_stages_follow_one_another_at_miniature_size(corpus, tmp_path, shape):
    shape = shape | {"encoder": shape["encoder"] | {"conv_kernel": 3}}  # as the recipes
    for name in (
        "encoder_first",
        "encoder",
        "replies",
        "llm",
        "situations",
        "spelling",
        "stage1",
        "stage2",
        "stage3",
        "thoughts",
        "follow",
        "spelling_on",
        "follow_on",
        "tempo",
        "tempo_again",
        "follow_tempo",
    ):
        path = RECIPES / "tiny" / f"{name}.yaml"
        written = load_recipe(path).init_from
        starts = {part: source.replace("exp/tiny", str(tmp_path)) for part, source in written.items()}
        folder = train(shrunk(path, corpus, tmp_path, shape, starts))
        assert (folder / "model.safetensors").is_file(), name
        means = {"follow_on": ("average", "follow"), "tempo_again": ("average_tempo", "tempo")}
        if name in means:
            mean, first, second = (str(tmp_path / run / "model") for run in (*means[name], name))
            assert echat("average", [mean, first, second]) == 0
    from echat.model.model_folder import load_model

    loaded = load_model(folder)
    assert loaded.config.profile == "echat" and loaded.config.name == "follow_tempo" and loaded.config.ctc


STAGES = (
    "stage1_understanding",
    "stage2_tts",
    "stage2_s2s",
    "stage3_empathy_label",
    "stage3_empathy_language",
)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["osum_echat", "small", "mini"])
def test_the_published_stages_follow_one_another_at_miniature_size(size, talkative, tmp_path, shape, foreign):
    """Whisper and Qwen2 in, two steps in each stage, decoding included; each starts where its recipe says."""
    names = ("llm", *STAGES) if size == "mini" else STAGES
    for name in names:
        path = RECIPES / size / f"{name}.yaml"
        written = load_recipe(path).init_from
        starts = {
            part: source.replace(f"exp/{size}", str(tmp_path)) if source.startswith("exp/") else foreign[part]
            for part, source in written.items()
        }
        folder = train(shrunk(path, talkative, tmp_path, shape, starts))
        rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == [1, 2], name
        assert any("validation" in row for row in rows) and (folder / "model.safetensors").is_file(), name
        learned = {task for row in rows for task in row.get("parts", {})}
        assert learned, name
        assert (folder.parent / "samples").is_dir(), name


FLOW = [
    "flow.input_size=16", "flow.vocab_size=32", "flow.encoder.input_size=16", "flow.encoder.output_size=16",
    "flow.encoder.attention_heads=2", "flow.encoder.linear_units=16", "flow.encoder.num_blocks=1",
    "flow.estimator.channels=[8,8]", "flow.estimator.num_heads=1", "flow.estimator.attention_head_dim=8",
    "flow.estimator.num_mid_blocks=1", "flow.estimator.n_blocks=1", "batch_seconds=1",
    "budget.steps=2", "decode=null", "speaker=null",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "mini", "osum_echat"])
def test_the_voice_of_each_size_learns_at_miniature_size(size, talkative, tmp_path):
    """The released one goes on from another run's export, as it does from the released flow."""
    path = talkative / "manifest.jsonl"
    manifests = [f"data.{key}=[{{path: {path}}}]" for key in ("sources", "validation")]
    start = train(RECIPES / "mini" / "token2wav.yaml", [*FLOW, *manifests, f"output={tmp_path / 'start'}"])
    overrides = [*FLOW, *manifests, f"output={tmp_path / size}"]
    path = RECIPES / size / "token2wav.yaml"
    if load_recipe(path).init_from:
        overrides.append(f"init_from.all={start}")
    folder = train(path, overrides)
    assert (folder / "flow.safetensors").is_file()


OLD_KEYS = {
    "learn": ["llm.*"],
    "recompute": ["llm.*"],
    "spell_weight": 0.5,
    "cue_weight": 2.0,
    "spells_only": True,
    "spell_languages": ["de"],
    "starting_heads": True,
    "logits_at_once": 5000,
    "lora": {"also": ["projection.*"]},
}
OLD_DATA_KEYS = {
    "spread": 1.5,
    "learn_heard": True,
    "augment": {"bend": 1, "formants": 2, "colour_db": 3, "tempo": 4},
}


def test_keys_of_earlier_versions_are_read(recipe, corpus):
    source = {"path": str(corpus / "manifest.jsonl"), "as_text": True, "near": 7}
    data = OLD_DATA_KEYS | {"sources": [source]}
    settings = load_recipe(recipe("speech_llm", **OLD_KEYS, ctc=None, data=data))
    assert settings.trainable == settings.activation_checkpointing == ("llm.*",)
    assert settings.ctc.model_dump() == {
        "weight": 0.5,
        "label_weight": 2.0,
        "only": True,
        "languages": ("de",),
    }
    assert settings.init.induction_heads and settings.max_logits == 5000
    assert settings.lora.modules_to_save == ("projection.*",)
    assert settings.data.pseudo_audio.blanks == 1.5 and settings.data.pseudo_audio.loss_on_input
    augment = settings.data.augment
    assert (augment.vtlp_bands, augment.vtlp, augment.eq_db, augment.time_stretch) == (1, 2, 3, 4)
    assert settings.data.sources[0].pseudo_audio and settings.data.sources[0].shuffle_block == 7


def test_ctc_of_weight_zero_is_none(recipe):
    assert load_recipe(recipe("speech_llm"), ["spell_weight=0"]).ctc is None
    assert load_recipe(recipe("speech_llm"), ["ctc.weight=0"]).ctc is None


def test_the_objective_of_earlier_versions_is_read(recipe):
    assert load_recipe(recipe("encoder_ctc"), ["objective=ctc"]).objective == "encoder_ctc"
    assert load_recipe(recipe("encoder_ctc"), ["batch_cost=7"]).data.batch_cost == 7
