"""Adapters begin as nothing, learn alone, and vanish into the weights when the model is exported."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from echat.checkpoint import read_tensors
from echat.model.model_folder import load_model
from echat.train.recipe import load_recipe
from echat.train.trainer import train
from echat.train.weights.lora import LoraConfig, add_adapters, match_layers, merge_adapters
from echat.train.weights.parameters import set_trainable

pytest.importorskip("peft")


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({
        "encoder": nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4, bias=False)),
        "head": nn.Linear(4, 3),
    })  # fmt: skip


def output(net: nn.Module) -> torch.Tensor:
    x = torch.arange(8.0).view(2, 4) / 8
    return net["head"](net["encoder"](x))


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_change_nothing_until_they_learn_and_merge_to_the_same_outputs(dora):
    net = module()
    names, before = set(net.state_dict()), output(net)
    chosen = add_adapters(net, LoraConfig(rank=2, dora=dora))
    assert chosen == ["encoder.0", "encoder.2", "head"]
    torch.testing.assert_close(output(net), before)
    trainable = set_trainable(net, LoraConfig().trainable_patterns)
    assert trainable and all("lora_" in name for name in trainable)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        output(net).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = output(net).detach()
    assert not torch.allclose(learned, before, atol=1e-3)
    merge_adapters(net)
    assert set(net.state_dict()) == names
    torch.testing.assert_close(output(net), learned)


def test_merging_a_plain_module_changes_nothing():
    net = module()
    before = copy.deepcopy(net.state_dict())
    merge_adapters(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_layers_are_chosen_by_globs():
    assert match_layers(module(), ["*", "!encoder.0"]) == ["encoder.2", "head"]
    with pytest.raises(ValueError, match=r"lora.targets: pattern 'decoder\.\*' matches no linear layer"):
        match_layers(module(), ["decoder.*"])
    with pytest.raises(ValueError, match="selects no layer"):
        match_layers(module(), ["*", "!*"])


@pytest.mark.slow
def test_a_recipe_with_adapters_exports_an_ordinary_model(recipe, random_model, corpus, tmp_path):
    start = {"init_from": {"all": str(random_model)}, "model": None, "tokenizer": None, "ctc": None}
    lora = {"rank": 2, "targets": ["llm.*", "projection"], "modules_to_save": ["speech_head.*"]}
    path = recipe("speech_llm", lora=lora, **start)
    folder = train(path)
    before, after = (
        read_tensors(random_model / "model.safetensors"),
        read_tensors(folder / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {"projection.weight", "speech_head.bias", "llm.model.layers.0.mlp.up_proj.weight"} <= changed
    assert not [name for name in changed if name.startswith(("encoder.", "adapter.", "llm.model.embed"))]
    load_model(folder)
    again = load_recipe(folder.parent / "recipe.yaml")  # the stored recipe is one that runs
    assert again.lora == load_recipe(path).lora and again.model is not None


@pytest.mark.slow
def test_adapters_resume_to_the_same_weights(recipe, random_model):
    start = {"init_from": {"all": str(random_model)}, "model": None, "tokenizer": None, "ctc": None}
    path = recipe("speech_llm", "whole", lora={"rank": 2, "dropout": 0.1}, **start)
    whole = train(path)
    parts = whole.parent.with_name("parts")
    train(path, [f"output={parts}", "budget.steps=2", "optimizer.schedule=constant"])
    once = train(path, [f"output={parts.with_name('once')}", "optimizer.schedule=constant"])
    again = train(path, [f"output={parts}", "optimizer.schedule=constant"], resume=True)
    one, other = (read_tensors(folder / "model.safetensors") for folder in (once, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
