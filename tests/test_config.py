"""Reading undoes writing, overrides win, and whatever does not fit is said in one helpful line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from echat.config import Config, ConfigError, _warn_renamed, apply_override, load_config, merge, save_config


class Layer(Config):
    width: int = 8
    dropout: float = 0.0


class Recipe(Config):
    name: str = "tiny"
    layer: Layer = Layer()
    layers: list[Layer] = []
    note: str | None = None
    anything: dict[str, Any] = {}


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=20)


@given(
    name=words,
    width=st.integers(),
    dropout=st.floats(allow_nan=False, allow_infinity=False),
    note=st.none() | words,
)
def test_reading_undoes_writing(tmp_path_factory, name, width, dropout, note):
    recipe = Recipe(name=name, layer=Layer(width=width, dropout=dropout), layers=[Layer()], note=note)
    path = tmp_path_factory.mktemp("config") / "recipe.yaml"
    save_config(recipe, path)
    assert load_config(Recipe, path) == recipe


def test_configuration_is_frozen():
    with pytest.raises(ValidationError):
        Layer().width = 3


def test_base_is_inherited_and_the_file_wins(tmp_path):
    (tmp_path / "common").mkdir()
    write(tmp_path / "common", "name: base\nlayer: {width: 4, dropout: 0.5}\n", "base.yaml")
    write(tmp_path, "base: common/base.yaml\nlayer: {width: 6}\n", "middle.yaml")
    path = write(tmp_path, "base: middle.yaml\nnote: hello\n")
    assert load_config(Recipe, path) == Recipe(name="base", layer=Layer(width=6, dropout=0.5), note="hello")


def test_overrides_win_over_the_file_and_reach_into_lists(tmp_path):
    path = write(tmp_path, "layer: {width: 4}\nlayers: [{width: 1}, {width: 2}]\nnote: old\n")
    overrides = ["layer.width=5", "layer.dropout=1e-4", "layers.1.width=9", "note=null", "anything.lr=1e-3"]
    recipe = load_config(Recipe, path, overrides)
    assert recipe.layer == Layer(width=5, dropout=1e-4)
    assert [layer.width for layer in recipe.layers] == [1, 9]
    assert recipe.note is None and recipe.anything == {"lr": 0.001}


def test_an_empty_file_means_the_defaults(tmp_path):
    assert load_config(Recipe, write(tmp_path, "# nothing differs\n")) == Recipe()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nmae: x", ["unknown key 'nmae'", "did you mean 'name'?"]),
        ("layer: {widht: 3}", ["key layer", "'widht'", "did you mean 'width'?"]),
        ("layers: [{}, {dorpout: 3}]", ["key layers.1", "did you mean 'dropout'?"]),
        ("zzzzz: 1", ["expected one of", "layers"]),
        ("layer: {width: wide}", ["key layer.width", "integer", "'wide'"]),
        ("name: a\nname: b", ["line 2", "'name' twice"]),
        ("layer: {width: 3", ["line 1", "expected YAML"]),
        ("- 1\n- 2", ["expected keys and values", "list"]),
        ("base: 3", ["key base", "found 3"]),
        ("base: recipe.yaml", ["circle"]),
        ("base: absent.yaml", ["absent.yaml", "found nothing"]),
    ],
)
def test_a_misfit_is_named_in_one_line(tmp_path, text, says):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(Recipe, path)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message
    assert all(part in message for part in says), message


def test_a_binary_file_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"RIFF\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8, found byte 0xff at offset 4"):
        load_config(Recipe, path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("name", "key.path=value"),
        ("=3", "key.path=value"),
        ("layer..width=3", "key.path=value"),
        ("name.first=3", "expected keys inside name"),
        ("layers.7.width=3", "list index in 0..0"),
        ("layer={", "expected a YAML value"),
    ],
)
def test_a_bad_override_is_named(override, says):
    with pytest.raises(ConfigError, match=says):
        apply_override({"name": "x", "layers": [{}]}, override)


mappings = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
).filter(lambda value: isinstance(value, dict))


@given(mappings, mappings)
def test_merging_keeps_every_change_and_its_inputs(base, changes):
    before = repr(base), repr(changes)
    merged = merge(base, changes)
    assert merge(merged, changes) == merged and set(merged) == set(base) | set(changes)
    assert merge({}, base) == base == merge(base, {})
    assert (repr(base), repr(changes)) == before


# --- renamed keys: read under their old names for one version


class Loss(Config):
    weight: float = 0.0
    only: bool = False


class Part(Config):
    renamed: ClassVar = {"big": "size"}

    size: int = 1


class Renamed(Config):
    renamed: ClassVar = {"learn": "trainable", "ctc_weight": "loss.weight", "gone": ""}

    trainable: list[str] = []
    loss: Loss | None = None
    parts: tuple[Part, ...] = ()


OLD = "learn: [a]\nctc_weight: 0.5\nparts: [{big: 3}]\n"
NEW = Renamed(trainable=["a"], loss=Loss(weight=0.5), parts=(Part(size=3),))


def test_old_keys_are_read_from_a_file_an_override_and_a_program(tmp_path):
    assert load_config(Renamed, write(tmp_path, OLD)) == NEW
    overrides = ["learn=[a]", "ctc_weight=0.5", "parts=[{big: 3}]"]
    assert load_config(Renamed, write(tmp_path, ""), overrides) == NEW
    assert Renamed(learn=["a"], ctc_weight=0.5, parts=[{"big": 3}]) == NEW
    assert load_config(Renamed, write(tmp_path, OLD), ["parts.0.big=4"]).parts[0].size == 4


def test_a_key_that_is_gone_has_no_effect(tmp_path):
    assert load_config(Renamed, write(tmp_path, "gone: 3"), ["gone=4"]) == Renamed(gone=5) == Renamed()


@pytest.mark.parametrize(
    ("base", "text"), [("trainable: [b]", "learn: [a]"), ("learn: [b]", "trainable: [a]")]
)
def test_old_and_new_names_override_each_other(tmp_path, base, text):
    write(tmp_path, base, "base.yaml")
    path = write(tmp_path, f"base: base.yaml\n{text}")
    assert load_config(Renamed, path).trainable == ["a"]
    assert load_config(Renamed, path, ["learn=[c]"]).trainable == ["c"]
    assert load_config(Renamed, path, ["trainable=[c]"]).trainable == ["c"]


def test_an_old_key_joins_the_table_that_is_there(tmp_path):
    assert load_config(Renamed, write(tmp_path, "loss: {only: true}\nctc_weight: 2")).loss == Loss(
        weight=2, only=True
    )
    assert load_config(Renamed, write(tmp_path, "loss: null\nctc_weight: 2")).loss == Loss(weight=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learn: [a]\ntrainable: [b]", "key learn: its new name trainable is there, too; leave learn out"),
        ("ctc_weight: 1\nloss: {weight: 1}", "key ctc_weight: its new name loss.weight is there, too"),
        ("ctc_weight: 1\nloss: 3", "key loss: expected keys and values, found the value 3"),
        ("larn: [a]", "unknown key 'larn'"),
    ],
)
def test_an_old_key_beside_its_new_one_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(Renamed, write(tmp_path, text))


def test_each_old_key_is_named_once(tmp_path, caplog):
    _warn_renamed.cache_clear()
    for _ in range(2):
        load_config(Renamed, write(tmp_path, OLD), ["learn=[b]"])
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "key learn is now trainable",
        "key ctc_weight is now loss.weight",
        "key big is now size",
    ]
