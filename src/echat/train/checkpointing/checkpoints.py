"""Checkpoints of a run: saving, loading, pruning. They appear whole or not at all and restore everything.

A checkpoint is a folder ``step-N``: tensors in the sharded format of ``torch.distributed.checkpoint``, each
process its shard, ``run.pt`` with the rest, and the hashes of both
(``echat.train.checkpointing.integrity``). It reloads on any number of processes (resharding). Frozen weights
are not in it: ``init_from`` gives them again. Reading one executes no code from it, whoever wrote it.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from echat.checkpoint import NAMES_SHOWN, CheckpointError, atomic_path
from echat.errors import first_line
from echat.train.checkpointing.integrity import (
    RUN_FILE,
    DamagedCheckpoint,
    SafeReader,
    find_damage,
    read_run_file,
    write_hashes,
)
from echat.train.distributed import Ranks, random_state, restore_random_state
from echat.train.objective import Objective
from echat.train.optimizer import inner_optimizers
from echat.train.step import Progress
from echat.train.weights.parameters import frozen_names

R = TypeVar("R")
SINGLE_PROCESS = Ranks()
_NAME = re.compile(r"step-(\d{8})")
_FAILURES = (OSError, RuntimeError, dcp.api.CheckpointException)  # when saving


def save_checkpoint(
    folder: Path,
    progress: Progress,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    keep: int,
    ranks: Ranks = SINGLE_PROCESS,
) -> Path:
    """Write ``folder/step-N`` (all processes call), then remove all but the newest ``keep`` and the best.

    Raises CheckpointError, on all processes, when it cannot be written; older checkpoints stay as they were.
    """
    path = folder / f"step-{progress.step:08d}"
    progress.world = ranks.world
    shares = ranks.gather({"batches": objective.batches.state_dict(), "random": random_state()})
    problem = ""
    try:
        with _shared_folder(path, ranks) as temporary:
            _without_warnings(
                dcp.save, _state_tensors(objective.module, optimizer), ranks, checkpoint_id=temporary
            )
            write_hashes(temporary, {"progress": vars(progress), "ranks": shares}, ranks)
    except _FAILURES as error:
        problem = _reason(error)
    problems = [found for found in ranks.gather(problem) if found]
    if problems:
        older = list_checkpoints(folder)
        left = f"{older[-1].name} before it is whole" if older else "there is none before it"
        raise CheckpointError(f"{path}: could not be written ({problems[0]}); {left}")
    if ranks.is_main:
        prune(folder, keep, progress.best_step, progress.step)
    return path


def load_newest(
    folder: Path,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    info: Callable[[str], None],
) -> Progress:
    """Resume from the newest intact checkpoint; ``info`` gets a line for each damaged one.

    Raises CheckpointError when none is intact, or when one is but belongs to another recipe.
    """
    return newest_intact(folder, lambda path: load_checkpoint(path, objective, optimizer, ranks), info)


def newest_intact(folder: Path, read: Callable[[Path], R], info: Callable[[str], None]) -> R:
    """The result of ``read`` for the newest checkpoint that it does not find damaged."""
    found = list_checkpoints(folder)
    problems: list[str] = []
    for path in reversed(found):
        try:
            result = read(path)
        except DamagedCheckpoint as error:
            problems.append(str(error))
            continue
        for problem in problems:
            info(f"{problem}; {path.name} is taken instead")
        return result
    raise CheckpointError(
        f"{folder}: expected a whole checkpoint, found {len(found)}, all damaged: {'; '.join(problems)}; "
        "copy the folder again from where it is whole, or begin a new run in another output"
    )


def load_checkpoint(
    path: Path, objective: Objective, optimizer: torch.optim.Optimizer, ranks: Ranks = SINGLE_PROCESS
) -> Progress:
    """Restore module, optimizer, data position and random states from a checkpoint.

    On another number of ranks the data continues behind what any rank had begun, and the random generators
    are seeded anew. Raises DamagedCheckpoint, before anything is changed if the checkpoint has hashes.
    """
    state = read_run(path, ranks)
    load_tensors(path, objective.module, optimizer, ranks)
    try:
        progress, shares = _progress(state["progress"]), state["ranks"]
        if len(shares) == ranks.world:
            objective.batches.load_state_dict(shares[ranks.rank]["batches"])
            restore_random_state(shares[ranks.rank]["random"])  # last: rebuilding data must not use these up
        else:
            objective.batches.fast_forward([share["batches"] for share in shares])
    except (TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise _damaged(path, f"{RUN_FILE} holds another state ({_reason(error)})") from error
    return progress


def read_progress(path: Path) -> Progress:
    """The progress of the run when a checkpoint was written. Raises DamagedCheckpoint."""
    try:
        return _progress(read_run(path)["progress"])
    except TypeError as error:
        raise _damaged(path, f"{RUN_FILE} holds another state ({_reason(error)})") from error


def _progress(values: Any) -> Progress:
    """Progress from its stored values. Raises TypeError where they are something else."""
    progress = Progress(**values)
    for name, default in vars(Progress()).items():
        found = getattr(progress, name)
        if isinstance(found, str) != isinstance(default, str) or not isinstance(found, int | float | str):
            raise TypeError(f"expected {name} like {default!r}, found {found!r}")
    return progress


def read_run(path: Path, ranks: Ranks = SINGLE_PROCESS) -> dict[str, Any]:
    """Everything in a checkpoint but its tensors, once all its files were found intact."""
    problem = find_damage(path, ranks)
    if problem:
        raise _damaged(path, problem)
    try:
        return read_run_file(path / RUN_FILE)
    except DamagedCheckpoint as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, problem: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{path}: expected a whole checkpoint, found it damaged: {problem}; remove it")


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    found = _NAME.fullmatch(path.name)
    assert found is not None, path
    return int(found[1])


def prune(folder: Path, keep: int, best: int, step: int) -> None:
    """Remove all but the newest ``keep`` checkpoints up to ``step`` and that of step ``best``.

    Later ones are damaged: the run resumed from before them. They must not count among the newest.
    """
    for old in [path for path in list_checkpoints(folder) if step_of(path) <= step][:-keep]:
        if step_of(old) != best:
            shutil.rmtree(old.rename(old.with_name(f".old.{old.name}")))  # half removed, it is no checkpoint


def remove_partial(folder: Path) -> None:
    """Remove checkpoints that a killed process left partially written or partially removed."""
    for rest in folder.glob(".*step-*"):
        shutil.rmtree(rest, ignore_errors=True)


# --- tensors


def load_tensors(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> None:
    """Load the tensors of a module, and of an optimizer when one is given, from a checkpoint."""
    reader = SafeReader(path)
    try:
        stored = reader.read_metadata().state_dict_metadata
    except DamagedCheckpoint as error:
        raise _damaged(path, str(error)) from error
    if optimizer is not None:
        _allocate_optimizer_state(module, optimizer, stored)
    expected = _state_tensors(module, optimizer)
    found = {name for name in stored if optimizer is not None or name.startswith("module/")}
    current = {f"module/{name}": tensor for name, tensor in module.state_dict().items()}
    expected |= {
        name: current[name] for name in found - expected.keys() if name in current
    }  # earlier versions
    _check_same_tensors(path, expected, {name: stored[name] for name in found})
    try:
        _without_warnings(dcp.load, expected, ranks, storage_reader=reader)
    except dcp.api.CheckpointException as error:
        raise _damaged(path, f"its tensors cannot be read ({_reason(error)})") from error


def _check_same_tensors(path: Path, expected: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """CheckpointError unless a checkpoint holds the very tensors of this run, by name and by shape."""
    odd = sorted(expected.keys() ^ stored.keys())
    problem = f"{len(odd)} missing or left over, {', '.join(odd[:NAMES_SHOWN])} among them"
    if not odd:
        odd = [name for name in sorted(stored) if stored[name].size != expected[name].shape]
        shapes = [f"{name} {tuple(stored[name].size)} for {tuple(expected[name].shape)}" for name in odd[:3]]
        problem = f"{len(odd)} of another shape, {', '.join(shapes)} among them"
    if odd:
        raise CheckpointError(
            f"{path}: expected the tensors of this recipe, found {problem}; resume with the recipe the run "
            "began with"
        )


def _state_tensors(module: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """``module/NAME`` and ``optimizer/NAME OF PARAMETER/NAME OF STATE`` -> the very tensors, flat.

    Without frozen parameters.
    """
    frozen = frozen_names(module)
    tensors: dict[str, Any] = {
        f"module/{name}": tensor for name, tensor in module.state_dict().items() if name not in frozen
    }
    for name, parameter in module.named_parameters():
        for part in inner_optimizers(optimizer):
            for key, value in part.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
    return tensors


def _allocate_optimizer_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, stored: dict[str, Any]
) -> None:
    """Allocate a tensor for every stored state of the optimizer, sharded as its parameter is."""
    owner = {
        id(p): part for part in inner_optimizers(optimizer) for g in part.param_groups for p in g["params"]
    }
    parameters = dict(module.named_parameters())
    for entry, about in stored.items():
        kind, name, *key = entry.split("/")
        parameter = parameters.get(name)
        if kind != "optimizer" or not key or parameter is None or id(parameter) not in owner:
            continue
        owner[id(parameter)].state[parameter][key[0]] = _empty_state(parameter, about)


def _empty_state(parameter: nn.Parameter, about: Any) -> Tensor:
    """An empty tensor for a stored state: a scalar, or of the parameter's shape and sharded like it."""
    dtype = about.properties.dtype
    if about.size == ():
        return torch.empty((), dtype=dtype, device=parameter.device)
    return torch.empty_like(parameter, dtype=dtype, requires_grad=False)


# --- saving from several processes


@contextmanager
def _shared_folder(path: Path, ranks: Ranks) -> Iterator[Path]:
    """A temporary folder that all processes write into, renamed to ``path`` when all are done."""
    with atomic_path(path) if ranks.is_main else nullcontext(path) as temporary:
        problem = _make_folder(temporary) if ranks.is_main else ""
        shared, problem = ranks.gather((temporary, problem))[0]
        if problem:
            raise OSError(problem)
        yield shared


def _make_folder(folder: Path) -> str:
    """Make a folder; the error message, or an empty string."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        return str(error)
    return ""


def _without_warnings(action: Any, tensors: dict[str, Any], ranks: Ranks, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process needs none
        action(tensors, no_dist=ranks.world == 1, **options)


def _reason(error: BaseException) -> str:
    """An error in one line, of several processes the first."""
    if isinstance(error, dcp.api.CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return first_line(error)
