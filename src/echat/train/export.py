"""Export: a model folder from the weights of a run, or from one of its checkpoints.

Whatever number of processes wrote the checkpoint, one process gathers its shards.
"""

from __future__ import annotations

import sys
from pathlib import Path

from echat.checkpoint import atomic_path
from echat.deprecated_commands import run_replacement
from echat.train.checkpointing.checkpoints import (
    list_checkpoints,
    load_tensors,
    newest_intact,
    read_progress,
    step_of,
)
from echat.train.distributed import seed_everything
from echat.train.objective import Objective
from echat.train.recipe import CHECKPOINTS, RECIPE_FILE, Recipe, load_recipe, objective_module
from echat.train.weights.lora import add_adapters, merge_adapters
from echat.train.weights.parameters import check_frozen, frozen_hash, set_trainable


def build_objective(recipe: Recipe) -> Objective:
    """The objective of a recipe, with its adapters: the module that checkpoints hold."""
    objective: Objective = objective_module(recipe.objective).build(recipe)
    if recipe.lora is not None:
        add_adapters(objective.module, recipe.lora)
    return objective


def export_module(objective: Objective, folder: Path) -> None:
    """Write the model of an objective, adapters merged; the folder appears whole or not at all."""
    objective.module.eval()
    merge_adapters(objective.module)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        objective.export(temporary)


def export_checkpoint(recipe: Recipe, checkpoint: Path, folder: Path) -> None:
    """Write the model of a checkpoint; it is built as for training, on the CPU, by this process.

    Raises CheckpointError where it is damaged, or the frozen weights are not those of the run.
    """
    progress = read_progress(checkpoint)
    seed_everything(recipe.seed)  # frozen weights may have been initialized at random
    objective = build_objective(recipe)
    try:
        set_trainable(objective.module, recipe.trainable_patterns)
        check_frozen(checkpoint, progress.frozen, frozen_hash(objective.module))
        load_tensors(checkpoint, objective.module)
        export_module(objective, folder)
    finally:
        objective.batches.close()


def checkpoint_of(run: Path, step: int) -> Path:
    """The checkpoint of a step of a run folder."""
    found = list_checkpoints(run / CHECKPOINTS)
    for path in found:
        if step_of(path) == step:
            return path
    there = ", ".join(str(step_of(path)) for path in found)
    raise ValueError(f"{run}: expected a checkpoint of step {step}, found those of {there or 'none'}")


def export_run(run: Path, folder: Path, step: int | None = None, best: bool = False) -> str:
    """Write the model of a step, of the best one by validation loss, or of the newest intact checkpoint.

    Returns the name of the checkpoint.
    """
    recipe = load_recipe(run / RECIPE_FILE)
    checkpoints = run / CHECKPOINTS
    if not list_checkpoints(checkpoints):
        raise ValueError(f"{run}: expected checkpoints/step-..., found none; name the output of a recipe")

    def export(path: Path) -> str:
        export_checkpoint(recipe, path, folder)
        return path.name

    def info(line: str) -> None:
        print(line, file=sys.stderr)

    if best:
        step = newest_intact(checkpoints, read_progress, info).best_step
        if not step:
            raise ValueError(f"{run}: expected a validated step, found none; give the recipe validation data")
    if step is not None:
        return export(checkpoint_of(run, step))
    return newest_intact(checkpoints, export, info)


if __name__ == "__main__":
    run_replacement("echat.train.export")
