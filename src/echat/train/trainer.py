"""The trainer: the training loop of every objective."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from echat.checkpoint import CheckpointError
from echat.config import save_config, to_yaml
from echat.train.checkpointing.checkpoints import list_checkpoints, save_checkpoint
from echat.train.checkpointing.resume import start_or_resume
from echat.train.distributed import (
    Ranks,
    init_distributed,
    seed_everything,
    select_device,
    shutdown_distributed,
)
from echat.train.export import build_objective, export_checkpoint, export_module
from echat.train.objective import Objective
from echat.train.optimizer import (
    build_optimizer,
    clip_gradients,
    gradient_norm,
    learning_rate,
    set_learning_rate,
)
from echat.train.parallel import ParallelModel
from echat.train.recipe import CHECKPOINTS, MODEL, RECIPE_FILE, Recipe, load_recipe
from echat.train.sample_eval import evaluate_samples
from echat.train.step import (
    Progress,
    StepStats,
    TrainingStopped,
    abort_if_diverged,
    count_step,
    reduce_stats,
    step_error,
)
from echat.train.tracking.log import SKIPPED, NullLog, RunLog
from echat.train.tracking.provenance import record_start
from echat.train.weights.parameters import check_frozen, frozen_hash, set_trainable

__all__ = ["TrainingStopped", "run", "train"]


def train(recipe_path: Path | str, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Train a recipe to the end of its budget; returns the exported model folder.

    ``resume`` continues from the newest checkpoint of the run folder (or begins when there is none). After
    SIGTERM, or once a file ``stop`` appears in the run folder, a checkpoint is saved and the folder returned
    does not exist yet.
    """
    return run(load_recipe(recipe_path, overrides), resume)


def run(recipe: Recipe, resume: bool = False) -> Path:
    """Train, checkpoint, log and export as the recipe says. TrainingStopped where nothing can be written."""
    try:
        return _run(recipe, resume)
    except OSError as error:  # a full disk, for one; ranks, data and weights raise errors of their own
        raise TrainingStopped(
            f"{recipe.output}: {error}; free some space or mend what it names, then go on with --resume: "
            "older checkpoints are whole"
        ) from error


def _run(recipe: Recipe, resume: bool) -> Path:
    folder = Path(recipe.output)
    torch.set_num_threads(recipe.threads)
    device = select_device(recipe.device)
    ranks = init_distributed(device)
    seed_everything(recipe.seed)  # alike on all ranks until the weights are initialized
    objective = build_objective(recipe)
    objective.batches.shard(ranks.rank, ranks.world)
    seed_everything(recipe.seed + ranks.rank)
    trainable = set_trainable(objective.module, recipe.trainable_patterns)
    size, frozen = _describe_size(objective, trainable), frozen_hash(objective.module)
    parallel_model = ParallelModel(objective, recipe, ranks, device)
    optimizer = build_optimizer(objective.module, recipe.optimizer, half=recipe.precision == "bf16")
    notes: list[str] = []  # the log is opened at the step where the run resumes
    progress = start_or_resume(folder, objective, optimizer, resume, ranks, notes.append)
    check_frozen(folder, progress.frozen, frozen)
    progress.frozen = frozen
    if ranks.is_main:
        stop_file(recipe).unlink(missing_ok=True)
        save_config(objective.recipe, folder / RECIPE_FILE)
        record_start(objective.recipe, folder, progress.step)
    with _log(folder, progress.step, ranks) as log, _termination() as terminated:
        for note in notes:
            log.info(note)
        if progress.step == 0:
            log.info(to_yaml(recipe))
        start = f"resumed at step {progress.step}" if progress.step else "from the start"
        log.info(f"{size} trained, {start}")
        try:
            budget_used = Trainer(
                recipe, objective, parallel_model, optimizer, progress, log, terminated, ranks
            ).train()
        finally:
            left_out = objective.batches.close()
        if left_out:
            log.info(f"left out of the data, counted each time:\n{left_out}")
        if budget_used < 1.0:
            log.info(f"stopped after step {progress.step}, all saved; go on with --resume")
        elif ranks.is_main:
            _export(recipe, objective, ranks, folder)
    parallel_model.close()
    shutdown_distributed(ranks)
    return folder / MODEL


def stop_file(recipe: Recipe) -> Path:
    """The stop file: it ends the run as SIGTERM does, on all machines, however long saving takes."""
    return Path(recipe.output) / "stop"


@dataclass
class Trainer:
    """The training loop of one process, with all that it works on."""

    recipe: Recipe
    objective: Objective
    parallel_model: ParallelModel
    optimizer: torch.optim.Optimizer
    progress: Progress
    log: RunLog | NullLog
    terminated: threading.Event
    ranks: Ranks

    def train(self) -> float:
        """Optimizer steps until the budget is used up or the run is asked to stop, then a checkpoint.

        Returns the share of the budget used up.
        """
        recipe, progress = self.recipe, self.progress
        validation = list(self.objective.validation())
        began = self._last_saved = time.monotonic()
        began -= progress.seconds
        self._saved_step = progress.step
        self._epoch = self._samples_of_an_epoch()
        is_stopping = False
        while (budget_used := self._budget_used()) < 1.0 and not is_stopping:
            lr = learning_rate(recipe.optimizer, progress.step, budget_used)
            set_learning_rate(self.optimizer, lr)
            local = self._forward_backward()
            local.norm = gradient_norm(self.objective.module)
            local.seconds, local.terminated = time.monotonic() - began, self._should_stop()
            local.save_is_due = time.monotonic() - self._last_saved > 60.0 * recipe.checkpoint.every_minutes
            step = reduce_stats(self.ranks.gather(replace(local, batches=[])))  # the one message of a step
            self._optimizer_step(step, local, lr)
            is_stopping = step.terminated
            is_best = progress.step % recipe.validate_steps == 0 and self._validate(validation)
            if recipe.decode and progress.step % recipe.decode.every_steps == 0 and self.ranks.is_main:
                self.log.sample_report(progress.step, evaluate_samples(self.objective, recipe.decode))
            is_due = progress.step % recipe.checkpoint.every_steps == 0 or step.save_is_due or is_best
            if is_due and not progress.skipped_in_row:
                self._save(may_fail=True)
        if progress.step != self._saved_step:
            self._save()
        return budget_used

    def _should_stop(self) -> bool:
        """Whether SIGTERM was received or the stop file is there."""
        return self.terminated.is_set() or (self.ranks.is_main and stop_file(self.recipe).exists())

    def _forward_backward(self) -> StepStats:
        """Gradients of one step, summed over its micro-batches."""
        sums = StepStats()
        for number in range(1, self.recipe.accumulate + 1):
            batch = self.objective.batches.next()
            sums.add(
                self.parallel_model.forward_backward(batch, last=number == self.recipe.accumulate), batch
            )
        return sums

    def _optimizer_step(self, step: StepStats, local: StepStats, lr: float) -> None:
        """Take or skip the optimizer step, and log it."""
        recipe, progress = self.recipe, self.progress
        count = max(step.count, 1.0)
        mean = self.ranks.world / count  # ranks are averaged, targets were summed
        norm = step.norm * mean
        reason = step_error(recipe.guard, progress, step.total, norm)
        if reason is None:
            clip_gradients(self.objective.module, mean, norm, recipe.optimizer.clip)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        count_step(progress, norm, skipped=reason is not None)
        progress.samples += step.samples
        progress.seconds = step.seconds
        if reason is not None:
            batches = [batch for share in self.ranks.gather(local.batches) for batch in share]
            self.log.skip(progress, reason, batches)
            abort_if_diverged(recipe.guard, progress, reason, str(Path(recipe.output) / SKIPPED))
            return
        values = {
            "loss": step.total / count,
            "targets": count,
            "lr": lr,
            "grad_norm": norm,
            "padding": sum(step.padding) / len(step.padding),
        }
        self.log.step(progress, self._budget_used(), values, step.means())

    def _validate(self, batches: Sequence[Any]) -> bool:
        """Log the losses of the validation batches; whether this is the best so far."""
        progress = self.progress
        if not batches:
            return False
        values = validate(self.parallel_model, batches, self.ranks)
        self.log.validation(progress.step, values)
        if not self.recipe.checkpoint.keep_best or not values["loss"] < progress.best_loss:
            return False
        progress.best_step, progress.best_loss = progress.step, values["loss"]
        return True

    def _save(self, may_fail: bool = False) -> None:
        """Write a checkpoint. One that ``may_fail`` is tried again when the next one is due."""
        folder, keep = Path(self.recipe.output) / CHECKPOINTS, self.recipe.checkpoint.keep
        self._last_saved = time.monotonic()
        try:
            save_checkpoint(folder, self.progress, self.objective, self.optimizer, keep, self.ranks)
        except CheckpointError as error:
            if not may_fail:
                raise
            self.log.info(f"{error}; the run goes on and tries again: free some space")
            return
        self._saved_step = self.progress.step

    def _budget_used(self) -> float:
        """Share of the budget used up."""
        budget, progress = self.recipe.budget, self.progress
        by_steps = progress.step / budget.steps if budget.steps else 0.0
        by_clock = progress.seconds / (60.0 * budget.minutes) if budget.minutes else 0.0
        by_data = progress.samples / (budget.epochs * self._epoch) if budget.epochs else 0.0
        return max(by_steps, by_clock, by_data)

    def _samples_of_an_epoch(self) -> int:
        size = self.objective.batches.size
        if self.recipe.budget.epochs and size is None:
            raise ValueError(
                f"budget.epochs: expected data of a known number, found random cuts of clips "
                f"({self.recipe.objective}); set budget.steps or budget.minutes"
            )
        return size or 0


def validate(parallel_model: ParallelModel, batches: Sequence[Any], ranks: Ranks) -> dict[str, float]:
    """Mean loss, and mean loss per part, over the validation batches, which are split among the ranks.

    All ranks run equally many batches, some twice, because a model may be sharded over the ranks.
    """
    parallel_model.eval()
    sums = StepStats()
    for turn in range(math.ceil(len(batches) / ranks.world)):
        number = turn * ranks.world + ranks.rank
        batch = batches[number % len(batches)]
        loss = parallel_model.eval_loss(batch)
        if number < len(batches):
            sums.add(replace(loss, parts={**loss.parts, "loss": (loss.total, loss.count)}), batch)
    parallel_model.train()
    return reduce_stats(ranks.gather(sums)).means()


@contextlib.contextmanager
def _log(folder: Path, step: int, ranks: Ranks) -> Iterator[RunLog | NullLog]:
    """The log of the main rank; the others have none."""
    if not ranks.is_main:
        yield NullLog()
        return
    with RunLog(folder, folder.name, step) as log:
        yield log


def _export(recipe: Recipe, objective: Objective, ranks: Ranks, folder: Path) -> None:
    """Export the model folder; where the weights are sharded, from the last checkpoint."""
    if ranks.world > 1 and recipe.parallel == "fsdp":
        export_checkpoint(recipe, list_checkpoints(folder / CHECKPOINTS)[-1], folder / MODEL)
    else:
        export_module(objective, folder / MODEL)


def _describe_size(objective: Objective, names: Sequence[str]) -> str:
    sizes = {name: p.numel() for name, p in objective.module.named_parameters()}
    trainable, total = sum(sizes[name] for name in names), sum(sizes.values())
    return f"{trainable / 1e6:.2f} of {total / 1e6:.2f} million parameters"


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
