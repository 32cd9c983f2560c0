"""The recipes of echat-mini start from parts of their kinds, learn two steps, and follow one another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from echat.config import read_values
from echat.model.model_folder import load_model
from echat.train.recipe import Recipe
from echat.train.trainer import train

RECIPES = Path(__file__).parents[2] / "recipes" / "echat_mini"


@pytest.fixture(scope="module")
def llama(corpus, tmp_path_factory) -> Path:
    """A random Llama beside the tokenizer of the corpus."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )).save_pretrained(folder)  # fmt: skip
    for path in (corpus / "tokenizer").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def shrunk(name: str, manifest: Path, output: Path, **changes) -> Path:
    """The shipped recipe on other data, for two steps; all else as it is shipped."""
    values = read_values(Recipe, RECIPES / f"{name}.yaml", ())
    for source in (*values["data"]["sources"], *values["data"]["validation"]):
        source["path"] = str(manifest)
    values |= {"output": str(output), "budget": {"steps": 2}, "validate_steps": 2, **changes}
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def dialogues(talkative, tmp_path_factory) -> Path:
    """The corpus with a past turn each: half of them with sound and speech ids, half as text alone."""
    rows = [json.loads(line) for line in (talkative / "manifest.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        past = {"text": "my bus", "reply": "i lost my keys"}
        row["history"] = [
            past | ({"audio": row["audio"], "speech_ids": [1, 2, 3] * 20} if number % 2 else {})
        ]
    path = tmp_path_factory.mktemp("dialogues") / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def moved_parts(before: Path, after: Path) -> set[str]:
    """First names of the parameters that differ."""
    first, second = (load_model(folder).model.state_dict() for folder in (before, after))
    return {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.slow
def test_the_stages_follow_one_another(dialogues, llama, foreign, tmp_path):
    encoder = {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16, "layer_mix": True, "max_frames": 600}
    adapter = {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16, "max_frames": 200}
    start = {"llm": str(llama), "encoder": foreign["encoder"]}
    model = {"encoder": encoder, "adapter": adapter, "speech_codec_size": 32}
    folder = train(shrunk("text", dialogues, tmp_path / "text", model=model, init_from=start))
    assert load_model(folder).config.model.llm.architecture == "llama"
    assert load_model(folder).config.learned.history_turns is None

    listening = {"encoder", "subsampler", "adapter", "projection"}
    speaking = {"llm", "speech_embedding", "speech_head"}
    learning = {
        "understanding": listening,
        "stage2_tts": speaking,
        "stage2_s2s": listening | speaking,
        "stage3_empathy": listening | speaking,
    }
    for name, parts in learning.items():
        before = folder
        folder = train(shrunk(name, dialogues, tmp_path / name, init_from={"all": str(before)}))
        after = load_model(folder)
        assert moved_parts(before, folder) - {"ctc_head"} == parts, name
        assert (after.config.learned.history_turns, after.config.learned.languages) == (4, ("en",))
    assert after.model.encoder.layer_mix.scores.ne(0).any()


def test_the_recipes_serve_every_task_of_their_stage():
    """Later stages go on with the tasks of earlier ones."""
    tasks = {}
    for path in RECIPES.glob("*.yaml"):
        values = read_values(Recipe, path, ())
        if values["objective"] == "speech_llm":
            tasks[path.stem] = {task for source in values["data"]["sources"] for task in source["tasks"]}
    assert tasks["stage2_tts"] >= {"tts", "tts_stream", "s2t", "t2t"}
    assert tasks["stage2_s2s"] >= {"s2s", "s2s_stream", "tts", "t2t", "understand", "asr"}
    thoughts = {f"{way}_think_{form}" for way in ("s2s", "s2t") for form in ("label", "language")}
    assert tasks["stage3_empathy"] >= tasks["stage2_s2s"] | thoughts
