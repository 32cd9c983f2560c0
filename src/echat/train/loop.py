"""The training loop, the same for everything that learns here."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from echat.train.log import RunLog, SilentLog
from echat.train.lora import add_adapters, merge_adapters
from echat.train.objective import AnyBatch, Loss, Objective
from echat.train.optimizer import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from echat.train.provenance import note_start
from echat.train.ranks import Ranks, add_up, join, leave
from echat.train.recipe import Recipe, choose_learning, load_recipe, objective_module
from echat.train.validation import look


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
    ranks = join()
    seed_everything(recipe.seed)  # alike on all ranks until the weights are made
    objective: Objective = objective_module(recipe.objective).build(recipe)
    if recipe.lora is not None:
        add_adapters(objective.module, recipe.lora)  # while chance is alike on all ranks
    objective.batches.share(ranks.rank, ranks.world)
    seed_everything(recipe.seed + ranks.rank)
    objective.module.to(recipe.device).train()
    learning = choose_learning(objective.module, recipe.learning)
    optimizer = build_optimizer(objective.module, recipe.optimizer)
    progress = _start(folder, objective, optimizer, resume, ranks)
    if ranks.leads:
        save_config(objective.recipe, folder / "recipe.yaml")
        note_start(objective.recipe, folder, progress.step)
    with _log(folder, progress.step, ranks) as log, _termination() as terminated:
        if progress.step == 0:
            log.say(to_yaml(recipe))
        log.say(_describe(objective, learning, progress))
        try:
            _loop(recipe, objective, optimizer, progress, log, terminated, ranks)
        finally:
            left_out = objective.batches.close()
        if left_out:
            log.say(f"left out of the data, counted each time:\n{left_out}")
        if _done(recipe, progress) < 1.0:
            log.say(f"stopped after step {progress.step}, all saved; go on with --resume")
        elif ranks.leads:
            _export(objective, folder / "model")
    leave(ranks)
    return folder / "model"


def _loop(
    recipe: Recipe,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    log: RunLog | SilentLog,
    terminated: threading.Event,
    ranks: Ranks,
) -> None:
    """Steps until the budget is used up or somebody ends the run; the last act is a checkpoint."""
    checkpoints = Path(recipe.output) / "checkpoints"
    validation = list(objective.validation())
    clock = time.monotonic() - progress.seconds
    last_saved = time.monotonic()
    saved_step = progress.step
    ends = False
    while (done := _done(recipe, progress)) < 1.0 and not ends:
        lr = learning_rate(recipe.optimizer, progress.step, done)
        set_learning_rate(optimizer, lr)
        step = _accumulate(recipe, objective, progress)
        ranks.sum_gradients(objective.module)
        shares = ranks.gather((vars(step), time.monotonic() - clock, terminated.is_set()))
        step = _joined([share[0] for share in shares])
        ends = any(share[2] for share in shares)
        count = max(step.count, 1.0)
        norm = clip_gradients(objective.module, count, recipe.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.samples += step.samples
        progress.seconds = shares[0][1]  # one clock for all ranks
        padding = sum(step.padding) / len(step.padding)
        values = {
            "loss": step.total / count,
            "targets": count,
            "lr": lr,
            "grad_norm": norm,
            "padding": padding,
        }
        log.step(progress, _done(recipe, progress), values, step.means())
        if validation and progress.step % recipe.validate_steps == 0 and ranks.leads:
            log.validation(progress.step, validate(recipe, objective, validation))
        if recipe.decode and progress.step % recipe.decode.every_steps == 0 and ranks.leads:
            log.decoded(progress.step, look(objective, recipe.decode))
        if any(ranks.gather(_checkpoint_due(recipe, progress.step, last_saved))):
            save_checkpoint(checkpoints, progress, objective, optimizer, recipe.checkpoint.keep, ranks)
            last_saved, saved_step = time.monotonic(), progress.step
    if progress.step != saved_step:
        save_checkpoint(checkpoints, progress, objective, optimizer, recipe.checkpoint.keep, ranks)


@dataclass
class StepSums:
    """What one optimiser step saw: summed loss, targets and samples, sums and counts per part."""

    total: float = 0.0
    count: float = 0.0
    samples: int = 0
    padding: list[float] = field(default_factory=list)  # of each micro-batch
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, loss: Loss, batch: AnyBatch) -> None:
        self.total += float(loss.total.detach())
        self.count += loss.count
        self.samples += len(batch.keys)
        self.padding.append(batch.padding)
        found = {name: (float(part), float(size)) for name, (part, size) in loss.parts.items()}
        self.parts = add_up([self.parts, found])

    def means(self) -> dict[str, float]:
        return {name: part / max(size, 1.0) for name, (part, size) in sorted(self.parts.items())}


def _joined(shares: Sequence[dict[str, Any]]) -> StepSums:
    """The step of all ranks together."""
    return StepSums(
        sum(share["total"] for share in shares),
        sum(share["count"] for share in shares),
        sum(share["samples"] for share in shares),
        [padding for share in shares for padding in share["padding"]],
        add_up([share["parts"] for share in shares]),
    )


def _accumulate(recipe: Recipe, objective: Objective, progress: Progress) -> StepSums:
    """Gradients of one step, summed over its micro-batches."""
    sums = StepSums()
    for _ in range(recipe.accumulate):
        batch = objective.batches.next().to(torch.device(recipe.device))
        with _autocast(recipe):
            loss: Loss = objective.loss(batch)
        if not torch.isfinite(loss.total):
            raise TrainingStopped(
                f"step {progress.step + 1}: expected a finite loss, found {float(loss.total)} "
                f"in the batch of {', '.join(batch.keys)}; "
                "the weights are untouched: look at these records, or lower optimizer.lr and resume"
            )
        loss.total.backward()  # type: ignore[no-untyped-call]
        sums.add(loss, batch)
    return sums


@torch.no_grad()
def validate(recipe: Recipe, objective: Objective, batches: Sequence[Any]) -> dict[str, float]:
    """Mean loss, and mean loss per part, over the validation batches."""
    objective.module.eval()
    sums = StepSums()
    for batch in batches:
        with _autocast(recipe):
            loss = objective.loss(batch.to(torch.device(recipe.device)))
        sums.add(replace(loss, parts={**loss.parts, "loss": (loss.total, loss.count)}), batch)
    objective.module.train()
    return sums.means()


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


@contextlib.contextmanager
def _log(folder: Path, step: int, ranks: Ranks) -> Iterator[RunLog | SilentLog]:
    """The leading rank writes, the others keep silent."""
    if not ranks.leads:
        yield SilentLog()
        return
    with RunLog(folder, folder.name, step) as log:
        yield log


def _export(objective: Objective, folder: Path) -> None:
    objective.module.eval()
    merge_adapters(objective.module)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        objective.export(temporary)


def _start(
    folder: Path, objective: Objective, optimizer: torch.optim.Optimizer, resume: bool, ranks: Ranks
) -> Progress:
    found = list_checkpoints(folder / "checkpoints")
    if not found:
        return Progress()
    if not resume:
        raise TrainingStopped(
            f"{folder}: expected an empty run folder, found checkpoints up to {found[-1].name}; "
            "add --resume to go on with that run, or choose another output"
        )
    return load_checkpoint(found[-1], objective, optimizer, ranks)


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
