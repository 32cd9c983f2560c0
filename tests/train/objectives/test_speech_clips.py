"""Tokenizer, flow and vocoder in the common loop: the shipped recipes start, and resuming changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.train.command import echat

from echat.audio.waveform import write
from echat.config import ConfigError
from echat.data.sources import SourceConfig
from echat.token2wav.token2wav import Token2Wav
from echat.train.objectives.speech_clips import WholeClipSettings, read_clips
from echat.train.recipe import load_recipe
from echat.train.trainer import train

pytest.importorskip("pyworld")
RECIPES = Path(__file__).parents[3] / "recipes" / "tiny"
SMALL = {
    "tokenizer": [
        "tokenizer.dim=16", "tokenizer.heads=2", "tokenizer.hidden=16", "tokenizer.blocks_before=1",
        "tokenizer.blocks_after=1", "tokenizer.quantizer.size=16", "tokenizer.quantizer.dim=4",
        "tokenizer.quantizer.warmup_steps=2", "batch_seconds=1",
    ],
    "flow": [
        "flow.input_size=16", "flow.vocab_size=16", "flow.encoder.input_size=16",
        "flow.encoder.output_size=16", "flow.encoder.attention_heads=2", "flow.encoder.linear_units=16",
        "flow.encoder.num_blocks=1",
        "flow.estimator.channels=[8,8]", "flow.estimator.num_heads=1", "flow.estimator.attention_head_dim=8",
        "flow.estimator.num_mid_blocks=1", "batch_seconds=1",
    ],
    "vocoder": [
        "vocoder.base_channels=8", "vocoder.f0_predictor.cond_channels=8", "segment_frames=12",
        "batch_size=2",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Six short hums with words, and their ids."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for index in range(6):
        time = torch.arange(6400 + 800 * index) / 16_000
        write(folder / f"{index}.wav", 0.3 * torch.sin(2 * math.pi * (150 + 20 * index) * time), 16_000)
        split = "dev" if index == 5 else "train"
        rows.append({"key": f"clip{index}", "audio": f"{index}.wav", "text": "a b", "split": split})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = [{"key": row["key"], "speech_ids": [i % 16 for i in range(10)]} for row in rows]
    (folder / "speech_ids.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ids))
    return folder / "manifest.jsonl"


def settings(name: str, corpus: Path, output: Path, steps: int) -> list[str]:
    data = [f"data.{key}=[{{path: {corpus}}}]" for key in ("sources", "validation")]
    given = [f"output={output}", *data, f"budget.steps={steps}"]
    return (
        SMALL[name] + given + ["checkpoint.every_steps=2", "validate_steps=2", "optimizer.schedule=constant"]
    )


def metrics(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer", "flow", "vocoder"])
def test_resumed_equals_uninterrupted(corpus, tmp_path, name):
    recipe = RECIPES / f"{name}.yaml"
    whole = train(recipe, settings(name, corpus, tmp_path / "whole", 4))
    train(recipe, settings(name, corpus, tmp_path / "parts", 2))
    again = train(recipe, settings(name, corpus, tmp_path / "parts", 4), resume=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    for path in sorted(whole.glob("*.safetensors")):
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_old_keys_of_a_recipe_name_the_same_clips() -> None:
    given = ["manifests=[a.jsonl]", "validation=[b.jsonl]", "max_seconds=12"]
    old = load_recipe(RECIPES / "flow.yaml", given)
    assert isinstance(old, WholeClipSettings)
    (one,), (held_out,) = old.data.sources, old.data.validation
    assert (one.path, one.split, one.min_seconds, one.max_seconds) == ("a.jsonl", "train", 0.3, 12)
    assert (held_out.path, held_out.split, held_out.max_seconds) == ("b.jsonl", "dev", 12)


def test_keys_that_clips_have_no_use_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="source a, weight: expected none"):
        load_recipe(RECIPES / "flow.yaml", ["data.sources=[{path: a, weight: 2}]"])


def test_a_bad_record_costs_only_itself(corpus, tmp_path) -> None:
    rows = corpus.read_text().replace('"audio": "', f'"audio": "{corpus.parent}/').splitlines()
    whole, damaged = tmp_path / "whole.jsonl", tmp_path / "damaged.jsonl"
    whole.write_text("\n".join(rows))
    damaged.write_text("\n".join([rows[0], "{", *rows[1:], json.dumps({"key": "x", "audio": "none.wav"})]))
    assert read_clips([SourceConfig(path=str(damaged))]) == read_clips([SourceConfig(path=str(whole))])


@pytest.mark.slow
def test_discriminators_learn_beside_the_vocoder(corpus, tmp_path):
    given = settings("vocoder", corpus, tmp_path / "run", 2)
    train(RECIPES / "vocoder.yaml", [*given, "losses.adversarial_weight=1"])
    parts = json.loads(metrics(tmp_path / "run")[0])["parts"]
    assert {"adversarial", "features", "critics", "mel", "f0"} <= parts.keys()


def test_ids_beside_a_manifest(corpus, tmp_path, capsys):
    tokenizer = train(RECIPES / "tokenizer.yaml", settings("tokenizer", corpus, tmp_path / "run", 1))
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    copy = tmp_path / "copy" / "manifest.jsonl"
    copy.parent.mkdir()
    copy.write_text(
        "".join(json.dumps(row | {"audio": str(corpus.parent / row["audio"])}) + "\n" for row in rows)
    )
    assert echat("data", "tokenize", str(copy), "--tokenizer", str(tokenizer)) == 0
    written = [json.loads(line) for line in copy.with_name("speech_ids.jsonl").read_text().splitlines()]
    assert {row["key"] for row in written} == {row["key"] for row in rows}
    assert len(next(row for row in written if row["key"] == "clip0")["speech_ids"]) == 10
    assert echat("data", "tokenize", str(tmp_path / "nothing.jsonl"), "--tokenizer", str(tokenizer)) == 2
    assert "expected a JSON-lines file" in capsys.readouterr().err


def test_a_flow_needs_ids(corpus, tmp_path):
    (tmp_path / "manifest.jsonl").write_text(
        corpus.read_text().replace('"audio": "', f'"audio": "{corpus.parent}/')
    )
    with pytest.raises(ValueError, match="write them first"):
        train(RECIPES / "flow.yaml", settings("flow", tmp_path / "manifest.jsonl", tmp_path / "run", 1))


@pytest.mark.slow
def test_three_trainings_make_a_voice(corpus, tmp_path):
    names = ("tokenizer", "flow", "vocoder")
    made = {n: train(RECIPES / f"{n}.yaml", settings(n, corpus, tmp_path / n, 1)) for n in names}
    arguments = [text for name, folder in made.items() for text in (f"--{name}", str(folder))]
    voice = f"hum={corpus.parent / '3.wav'}"
    assert echat("assemble", [*arguments, "--voice", voice, str(tmp_path / "model")]) == 0
    token2wav = Token2Wav.from_folder(tmp_path / "model" / "token2wav")
    (ids,) = token2wav.tokenizer.encode([torch.randn(8000) * 0.1])
    assert len(ids) == 13
    assert token2wav.synthesize(ids).shape == (256 * token2wav.config.flow.mel_frames(13),)
    assert list(token2wav.voices) == ["hum"] and not len(token2wav.voices["hum"].mel)
    assert echat("assemble", [*arguments, "--voice", "x=missing.wav", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
