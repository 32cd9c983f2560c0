from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from torch import nn

from echat.train.loop import train
from echat.train.recipe import OBJECTIVES, choose_learning, load_recipe

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
    assert choose_learning(module, ["encoder.*"]) == ["encoder.weight", "encoder.bias"]
    assert choose_learning(module, ["*", "!*.bias"]) == ["encoder.weight", "llm.norm.weight"]
    assert {n for n, p in module.named_parameters() if p.requires_grad} == {
        "encoder.weight",
        "llm.norm.weight",
    }


def test_a_glob_that_matches_nothing_is_refused():
    with pytest.raises(
        ValueError, match=r"'decoder\.\*' matches no parameter; parameters start with encoder, llm"
    ):
        choose_learning(small(), ["encoder.*", "decoder.*"])


def test_nothing_that_learns_is_refused():
    with pytest.raises(ValueError, match="leaves nothing that learns"):
        choose_learning(small(), ["encoder.*", "!*"])


def test_a_budget_needs_an_end(recipe):
    with pytest.raises(ValueError, match="expected steps, minutes or epochs"):
        load_recipe(recipe("ctc", budget={}))


def test_an_unknown_objective_is_refused(recipe):
    with pytest.raises(ValueError, match="expected one of speech_llm, ctc"):
        load_recipe(recipe("ctc"), ["objective=dream"])


def test_a_recipe_inherits_its_objective(recipe, tmp_path):
    recipe("ctc", "basis")
    (tmp_path / "heir.yaml").write_text("base: basis.yaml\nseed: 7\n")
    assert (load_recipe(tmp_path / "heir.yaml").seed, load_recipe(tmp_path / "heir.yaml").objective) == (
        7,
        "ctc",
    )


def stage(name: str, corpus: Path, tmp_path: Path, shape: dict) -> Path:
    """A shipped stage at miniature size: two steps on the noise corpus, starting from the stages before."""
    values = load_recipe(RECIPES / "tiny" / f"{name}.yaml").model_dump(mode="json", exclude_unset=True)
    manifest = str(corpus / "manifest.jsonl")
    places = [values, values.get("data", {})]
    for place in places:
        for kind in ("sources", "validation"):
            for source in place.get(kind) or ():
                source |= {"path": manifest, "languages": []}
    values |= {"output": str(tmp_path / name), "budget": {"steps": 2}, "checkpoint": {"every_steps": 1}}
    values["init_from"] = {
        k: v.replace("exp/tiny", str(tmp_path)) for k, v in values.get("init_from", {}).items()
    }
    values.pop("starting_heads", None)  # one layer cannot hold them
    for key in ("encoder", "model", "tokenizer"):
        if values.get(key) is not None:
            values[key] = {
                "encoder": shape["encoder"],
                "model": shape,
                "tokenizer": str(corpus / "tokenizer"),
            }[key]
    for place in places:
        place |= {key: small for key, small in (("batch_cost", 300), ("pool", 8)) if key in place}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def test_the_tiny_stages_follow_one_another_at_miniature_size(corpus, tmp_path, shape):
    shape = shape | {"encoder": shape["encoder"] | {"conv_kernel": 3}}  # as the recipes
    for name in ("encoder_first", "encoder", "replies", "llm", "spelling", "stage1", "stage2", "stage3"):
        folder = train(stage(name, corpus, tmp_path, shape))
        assert (folder / "model.safetensors").is_file(), name
    from echat.model.model_folder import load_model

    loaded = load_model(folder)
    assert loaded.config.profile == "echat" and loaded.config.name == "stage3"
