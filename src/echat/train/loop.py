"""The training loop, the same for everything that learns here."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from echat.checkpoint import atomic_path
from echat.config import save_config, to_yaml
from echat.train.checkpoints import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    seed_everything,
)
from echat.train.log import RunLog
from echat.train.objective import Loss, Objective
from echat.train.optimizer import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from echat.train.recipe import Recipe, choose_learning, load_recipe, objective_module


class TrainingStopped(ValueError):
    """Training cannot go on; the message says where it stands and what to do."""


def train(recipe_path: Path | str, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Run a recipe to the end of its budget; returns the exported model folder.

    ``resume`` continues from the newest checkpoint of the run folder (or begins when there is none). After
    SIGTERM the state is saved and the folder returned does not exist yet.
    """
    return run(load_recipe(recipe_path, overrides), resume)


def run(recipe: Recipe, resume: bool = False) -> Path:
    """Train, checkpoint, log and export as the recipe says."""
    folder = Path(recipe.output)
    torch.set_num_threads(recipe.threads)
    seed_everything(recipe.seed)
    objective: Objective = objective_module(recipe.objective).build(recipe)
    objective.module.to(recipe.device).train()
    learning = choose_learning(objective.module, recipe.learn)
    optimizer = build_optimizer(objective.module, recipe.optimizer)
    progress = _start(folder, objective, optimizer, resume)
    save_config(recipe, folder / "recipe.yaml")
    with RunLog(folder, folder.name, progress.step) as log, _termination() as terminated:
        if progress.step == 0:
            log.say(to_yaml(recipe))
        log.say(_describe(objective, learning, progress))
        _loop(recipe, objective, optimizer, progress, log, terminated)
        if _done(recipe, progress) < 1.0:
            log.say(f"stopped after step {progress.step}, all saved; go on with --resume")
            return folder / "model"
    objective.module.eval()
    with atomic_path(folder / "model") as temporary:
        temporary.mkdir()
        objective.export(temporary)
    return folder / "model"


def _loop(
    recipe: Recipe,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    log: RunLog,
    terminated: threading.Event,
) -> None:
    """Steps until the budget is used up or somebody ends the run; the last act is a checkpoint."""
    checkpoints = Path(recipe.output) / "checkpoints"
    validation = list(objective.validation())
    clock = time.monotonic() - progress.seconds
    last_saved = time.monotonic()
    saved_step = progress.step
    while (done := _done(recipe, progress)) < 1.0 and not terminated.is_set():
        lr = learning_rate(recipe.optimizer, progress.step, done)
        set_learning_rate(optimizer, lr)
        loss, count, parts = _accumulate(recipe, objective, progress)
        norm = clip_gradients(objective.module, count, recipe.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.seconds = time.monotonic() - clock
        values = {"loss": loss, "targets": count, "lr": lr, "grad_norm": norm}
        log.step(progress, _done(recipe, progress), values, parts)
        if validation and progress.step % recipe.validate_steps == 0:
            log.validation(progress.step, validate(recipe, objective, validation))
        if _checkpoint_due(recipe, progress.step, last_saved):
            save_checkpoint(checkpoints, progress, objective, optimizer, recipe.checkpoint.keep)
            last_saved, saved_step = time.monotonic(), progress.step
    if progress.step != saved_step:
        save_checkpoint(checkpoints, progress, objective, optimizer, recipe.checkpoint.keep)


def _accumulate(
    recipe: Recipe, objective: Objective, progress: Progress
) -> tuple[float, float, dict[str, float]]:
    """Gradients of one step, summed over its micro-batches: mean loss, target count, mean loss per part."""
    total, count = 0.0, 0.0
    parts: dict[str, list[float]] = {}
    for _ in range(recipe.accumulate):
        batch = objective.batches.next().to(torch.device(recipe.device))
        with _autocast(recipe):
            loss: Loss = objective.loss(batch)
        value = float(loss.total.detach())
        if not torch.isfinite(loss.total):
            raise TrainingStopped(
                f"step {progress.step + 1}: expected a finite loss, found {value} in the batch of "
                f"{', '.join(batch.keys)}; "
                "the weights are untouched: look at these records, or lower optimizer.lr and resume"
            )
        loss.total.backward()  # type: ignore[no-untyped-call]
        total, count = total + value, count + loss.count
        progress.samples += len(batch.keys)
        for name, (part, size) in loss.parts.items():
            sums = parts.setdefault(name, [0.0, 0.0])
            sums[0] += float(part)
            sums[1] += size
    return (
        total / max(count, 1.0),
        max(count, 1.0),
        {n: s / max(c, 1.0) for n, (s, c) in sorted(parts.items())},
    )


@torch.no_grad()
def validate(recipe: Recipe, objective: Objective, batches: Sequence[Any]) -> dict[str, float]:
    """Mean loss, and mean loss per part, over the validation batches."""
    objective.module.eval()
    sums: dict[str, list[float]] = {}
    for batch in batches:
        with _autocast(recipe):
            loss = objective.loss(batch.to(torch.device(recipe.device)))
        for name, (part, size) in {**loss.parts, "loss": (loss.total, loss.count)}.items():
            pair = sums.setdefault(name, [0.0, 0.0])
            pair[0] += float(part)
            pair[1] += size
    objective.module.train()
    return {name: part / max(size, 1.0) for name, (part, size) in sorted(sums.items())}


def _autocast(recipe: Recipe) -> torch.autocast:
    kind = torch.device(recipe.device).type
    return torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bf16")


def _done(recipe: Recipe, progress: Progress) -> float:
    """Share of the budget used up."""
    by_steps = progress.step / recipe.budget.steps if recipe.budget.steps else 0.0
    by_clock = progress.seconds / (60.0 * recipe.budget.minutes) if recipe.budget.minutes else 0.0
    return max(by_steps, by_clock)


def _checkpoint_due(recipe: Recipe, step: int, last_saved: float) -> bool:
    often = step % recipe.checkpoint.every_steps == 0
    return often or time.monotonic() - last_saved > 60.0 * recipe.checkpoint.every_minutes


def _start(folder: Path, objective: Objective, optimizer: torch.optim.Optimizer, resume: bool) -> Progress:
    found = list_checkpoints(folder / "checkpoints")
    if not found:
        return Progress()
    if not resume:
        raise TrainingStopped(
            f"{folder}: expected an empty run folder, found checkpoints up to {found[-1].name}; "
            "add --resume to go on with that run, or choose another output"
        )
    return load_checkpoint(found[-1], objective, optimizer)


def _describe(objective: Objective, learning: Sequence[str], progress: Progress) -> str:
    sizes = {name: p.numel() for name, p in objective.module.named_parameters()}
    learns, whole = sum(sizes[name] for name in learning), sum(sizes.values())
    start = f"resumed at step {progress.step}" if progress.step else "from the start"
    return f"{learns / 1e6:.2f} of {whole / 1e6:.2f} million parameters learn, {start}"


@contextlib.contextmanager
def _termination() -> Iterator[threading.Event]:
    """An event that SIGTERM sets (in the main thread; elsewhere nothing can)."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
