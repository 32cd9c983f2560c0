"""Resuming a run from its newest intact checkpoint, and the check of its recipe against the stored one.

What determines the weights (objective, shapes, profile) and the seed, which orders the data, must be as at
the start of the run. Anything else may change between two parts of a run, and the log names what did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from echat.checkpoint import CheckpointError
from echat.config import ConfigError, read_yaml, validate
from echat.train.checkpointing.checkpoints import list_checkpoints, load_newest, remove_partial
from echat.train.distributed import Ranks
from echat.train.objective import Objective
from echat.train.recipe import CHECKPOINTS, RECIPE_FILE, Recipe, current_objective
from echat.train.step import Progress, TrainingStopped

FIXED = ("objective", "seed", "profile", "model", "encoder", "tokenizer", "flow", "vocoder", "lora")
FREE = "dropout"  # last part of keys inside the fixed ones that may change all the same
_LONGEST = 60  # characters of a value in a message


def start_or_resume(
    folder: Path,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    resume: bool,
    ranks: Ranks,
    info: Callable[[str], None],
) -> Progress:
    """Progress at step 0 of an empty run folder, or of the newest intact checkpoint, which is loaded.

    ``info`` gets a line for each damaged checkpoint and each change since. Raises TrainingStopped when the
    folder has checkpoints and ``resume`` is not set, CheckpointError when it cannot resume.
    """
    checkpoints = folder / CHECKPOINTS
    checkpoints.mkdir(parents=True, exist_ok=True)
    found = list_checkpoints(checkpoints)
    if not found:
        return Progress()
    if not resume:
        raise TrainingStopped(
            f"{folder}: expected an empty run folder, found checkpoints up to {found[-1].name}; "
            "add --resume to go on with that run, or choose another output"
        )
    _compare_recipes(folder / RECIPE_FILE, objective.recipe, info)
    if ranks.is_main:
        remove_partial(checkpoints)
    progress = load_newest(checkpoints, objective, optimizer, ranks, info)
    if progress.world not in (0, ranks.world):
        info(
            f"{ranks.world} processes go on where {progress.world} were: the data continues behind what any "
            "of them had begun, random numbers begin anew"
        )
    return progress


def _compare_recipes(path: Path, recipe: Recipe, info: Callable[[str], None]) -> None:
    """CheckpointError where something fixed has changed since the run began; a line for anything else."""
    try:
        values = read_yaml(path, type(recipe))
        values["objective"] = current_objective(values.get("objective"))
        if values["objective"] != recipe.objective:
            _refuse(path, "objective", values["objective"], recipe.objective)
        stored = validate(type(recipe), values, str(path))
    except ConfigError as error:
        info(f"what has changed in the recipe is not known: {error}")
        return
    changes = [*_changes(stored.model_dump(mode="json"), recipe.model_dump(mode="json"))]
    for key, before, now in changes:
        top, last = key.split(".")[0], key.split(".")[-1]
        is_path = isinstance(before, str) and top == "tokenizer"  # its folder may have moved
        if top in FIXED and last != FREE and not is_path:
            _refuse(path, key, before, now)
    if changes:
        listed = ", ".join(f"{key} {_short(before)} -> {_short(now)}" for key, before, now in changes)
        info(f"changed since the last part of the run: {listed}")


def _changes(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) of all that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from _changes(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now)):
            yield from _changes(*pair, f"{key}.{number}")
    elif before != now and key != "output":  # a run folder may be moved
        yield key, before, now


def _refuse(path: Path, key: str, before: Any, now: Any) -> None:
    raise CheckpointError(
        f"{path}: expected {key} {_short(before)}, with which the run began, found {_short(now)}; leave it "
        "as it was, or begin a new run in another output"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
