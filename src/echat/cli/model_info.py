"""Facts about this installation and about a model folder, read without loading a model."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import echat
from echat.config import read_yaml

if TYPE_CHECKING:
    from echat.dialogue.tasks import Task

MODELS = Path(echat.__file__).parent / "models"


def describe_installation() -> dict[str, Any]:
    """Versions, devices, shipped models and the task table."""
    import torch

    from echat.dialogue.tasks import TASKS

    cards = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        "echat": echat.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *cards],
        "models": shipped_models(),
        "tasks": {name: _describe_task(row) for name, row in TASKS.items()},
    }


def _describe_task(task: Task) -> str:
    """``audio -> words, emotion`` or ``audio -> label thought, text, speech``."""
    if task.understands:
        kinds = [kind.replace("_", " ") for kind in task.labels]
        written = (["words"] if task.transcribes else []) + kinds
    else:
        written = ([f"{task.thinks} thought"] if task.thinks else []) + list(task.writes)
    return f"{task.input_modality} -> {', '.join(written)}"


def shipped_models() -> list[str]:
    """Names of the models inside the package."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.yaml"))


def describe_model(name: str) -> dict[str, Any]:
    """Size, parameters per part, voices and configuration of a model folder."""
    folder = MODELS / name if (MODELS / name / "config.yaml").is_file() else Path(name)
    if not (folder / "config.yaml").is_file():
        raise ValueError(
            f"{name}: expected a model folder with config.yaml or a shipped model "
            f"({', '.join(shipped_models()) or 'none'}), found neither; check the name or the path"
        )
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "folder": str(folder),
        "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "parameters": {
            path.relative_to(folder).as_posix(): _parameters(path)
            for path in sorted(folder.rglob("*.safetensors"))
            if path.parent.name != "voices"
        },
        "voices": sorted(path.stem for path in folder.rglob("voices/*.safetensors")),
        "config": read_yaml(folder / "config.yaml"),
    }


def _parameters(path: Path) -> dict[str, int]:
    """Number of values per top-level module, from the header of the file alone."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path}: expected a safetensors file, found a broken header; copy it again")
        header = json.loads(file.read(size))
    counts: dict[str, int] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            part = name.split(".")[0]
            counts[part] = counts.get(part, 0) + math.prod(entry["shape"])
    return counts
