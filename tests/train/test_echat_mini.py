"""The recipes of echat-mini start from parts of their kinds, learn two steps, and follow one another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from echat.model.model_folder import load_model
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
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    for source in (*values["data"]["sources"], *values["data"]["validation"]):
        source["path"] = str(manifest)
    values |= {"output": str(output), "budget": {"steps": 2}, "validate_steps": 2, **changes}
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_text_and_understanding_follow_one_another(talkative, llama, foreign, tmp_path):
    manifest = talkative / "manifest.jsonl"
    encoder = {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16, "layer_mix": True, "max_frames": 600}
    adapter = {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16, "max_frames": 200}
    start = {"llm": str(llama), "encoder": foreign["encoder"]}
    model = {"encoder": encoder, "adapter": adapter, "speech_codec_size": 32}
    text = train(shrunk("text", manifest, tmp_path / "text", model=model, init_from=start))
    first = load_model(text).model.state_dict()
    assert load_model(text).config.model.llm.architecture == "llama"

    after = train(shrunk("understanding", manifest, tmp_path / "heard", init_from={"all": str(text)}))
    second = load_model(after).model.state_dict()
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert {name.split(".")[0] for name in moved} == {"encoder", "subsampler", "adapter", "projection"}
    assert "encoder.layer_mix.scores" in moved
