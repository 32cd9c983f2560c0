"""Several processes learn as one would: DDP, FSDP2 and a single process see the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from echat.train.distributed import Ranks
from echat.train.objectives import speech_llm
from echat.train.optimizer import gradient_norm
from echat.train.parallel import ParallelModel
from echat.train.recipe import load_recipe
from echat.train.weights.parameters import set_trainable

CPU = torch.device("cpu")
MICRO_BATCHES = 2


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    """Every gradient, put together; zeros where nothing came back."""
    return {
        name: whole(torch.zeros_like(p) if p.grad is None else p.grad).clone()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def save_gradients_of_share(ranks: Ranks, recipe: Path, overrides: list[str], folder: Path) -> None:
    """Gradients and their norm after two micro-batches of this rank's share."""
    settings = load_recipe(recipe, overrides)
    torch.manual_seed(0)
    objective = speech_llm.build(settings)
    objective.batches.shard(ranks.rank, ranks.world)
    wrap_in_lora(objective.module, settings.trainable)
    set_trainable(objective.module, settings.trainable)
    parallel_model = ParallelModel(objective, settings, ranks, CPU)
    batches = [objective.batches.next() for _ in range(MICRO_BATCHES)]
    counts = [
        parallel_model.forward_backward(batch, last=n == MICRO_BATCHES - 1).count
        for n, batch in enumerate(batches)
    ]
    norm = gradient_norm(objective.module) * ranks.world
    gradients = {name: g * ranks.world for name, g in gradients_of(objective.module).items()}
    has_audio = [len(batch.mel) > 0 for batch in batches]
    torch.save(
        {"gradients": gradients, "norm": norm, "count": sum(counts), "heard": has_audio},
        folder / f"{ranks.rank}.pt",
    )


def wrap_in_lora(module: nn.Module, trainable: tuple[str, ...]) -> None:
    """Adapters on the attention of the language model where the recipe teaches them."""
    if any("lora_" in pattern for pattern in trainable):
        from peft import LoraConfig, inject_adapter_in_model

        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        inject_adapter_in_model(config, module.llm)


def gradients_of_one_process(
    recipe: Path, overrides: list[str], world: int
) -> tuple[dict[str, Tensor], float]:
    """The same micro-batches of all ranks in one process, summed: gradients and targets."""
    settings = load_recipe(recipe, overrides)
    torch.manual_seed(0)
    objective = speech_llm.build(settings)
    wrap_in_lora(objective.module, settings.trainable)
    set_trainable(objective.module, settings.trainable)
    count = 0.0
    for rank in range(world):
        batches = speech_llm.build(settings).batches
        batches.shard(rank, world)
        for _ in range(MICRO_BATCHES):
            loss = objective.loss(batches.next())
            loss.total.backward()
            count += loss.count
    return gradients_of(objective.module), count


EVERYTHING = ['trainable=["*"]']
LORA = ['trainable=["*lora_*", "projection.*", "speech_head.*"]']
KINDS = {
    "ddp": [*EVERYTHING],
    "fsdp": [*EVERYTHING, "parallel=fsdp"],
    "fsdp-checkpointed": [*EVERYTHING, "parallel=fsdp", 'activation_checkpointing=["*"]', "max_logits=4000"],
    "ddp-checkpointed": [*EVERYTHING, 'activation_checkpointing=["*"]', "max_logits=4000"],
    "fsdp-copies": [*EVERYTHING, "parallel=fsdp", "shard_ranks=1"],
    "ddp-lora": LORA,
    "fsdp-lora": [*LORA, "parallel=fsdp"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_gradients_of_two_ranks_are_those_of_one_process(exact, tmp_path, in_processes, kind):
    overrides = KINDS[kind]
    in_processes(2, save_gradients_of_share, exact, overrides, tmp_path)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    expected, count = gradients_of_one_process(exact, overrides, 2)
    assert sum(share["count"] for share in shares) == pytest.approx(count)
    for share in shares:
        assert share["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            largest = gradient.abs().max().clamp_min(1e-6)
            error = (share["gradients"][name] - gradient).abs().max() / largest
            assert error <= 1e-5, f"{name}: {error:.1e}"
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    assert shares[0]["norm"] == shares[1]["norm"] == pytest.approx(float(norm), rel=1e-5)
