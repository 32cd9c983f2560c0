"""Provenance of a run: versions, git commit, and hashes of the data lists it reads."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import echat
from echat.checkpoint import atomic_path
from echat.data.formats.manifest import SPEECH_IDS
from echat.train.recipe import Recipe

PROVENANCE = "provenance.json"


def record_start(recipe: Recipe, folder: Path, step: int) -> None:
    """Add this start of the run, from ``step`` on, to ``provenance.json`` in the run folder."""
    path = folder / PROVENANCE
    starts = [start for start in _earlier(path) if start["step"] < step]
    starts.append(
        {
            "step": step,
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "echat": echat.__version__,
            "git": git_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {recipe.device}",
            "data": data_hashes(recipe),
        }
    )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"starts": starts}, indent=1) + "\n", encoding="utf-8")


def _earlier(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        starts = json.loads(path.read_text("utf-8"))["starts"]
        return [start for start in starts if isinstance(start["step"], int)]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected the starts of this run as JSON, found another content ({error}); remove it"
        ) from error


def git_version() -> str:
    """The commit of the source, with ``+changes`` when files differ from it; ``unknown`` outside of git."""
    folder = Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if not done.returncode else ""


def data_hashes(recipe: Recipe) -> dict[str, str]:
    """sha256 of every manifest or list that the recipe names and this machine can open, sidecars included."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(_lists(recipe.model_dump(mode="json"))):
        for path in (Path(name), Path(name).with_name(SPEECH_IDS)):
            if path.is_file():
                with path.open("rb") as file:
                    found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _lists(values: Any) -> Iterator[str]:
    """Names of lists anywhere in a recipe: `manifests`, `validation`, and the `path` of each source."""
    if isinstance(values, list):
        for value in values:
            yield from _lists(value)
    if isinstance(values, dict):
        for key, value in values.items():
            if key == "path" and isinstance(value, str):
                yield value
            elif key in ("manifests", "validation") and value and isinstance(value[0], str):
                yield from value
            else:
                yield from _lists(value)
