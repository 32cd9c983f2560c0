"""Integrity of checkpoint folders: hashes of their files, and an index that is read without running code.

``hashes.json`` holds size and sha256 of every other file, written last, so damage of any file is found before
anything is loaded. The index of ``torch.distributed.checkpoint`` is a pickle, and an ordinary unpickler calls
whatever it names: here it may name the classes of the format and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata

from echat.checkpoint import CheckpointError
from echat.errors import first_line
from echat.safe_loading import load_weights_only
from echat.train.distributed import Ranks

HASHES = "hashes.json"
RUN_FILE = "run.pt"
INDEX = ".metadata"


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files are not what was written; an older one may be intact."""


# --- hashes


def write_hashes(folder: Path, state: dict[str, Any], ranks: Ranks) -> None:
    """Write the state of the run beside the tensors, then size and sha256 of all files; ranks share the work.

    OSError, on all processes, where one fails.
    """
    is_main, run = ranks.is_main, folder / RUN_FILE
    _on_all_ranks(lambda: torch.save(state | {"hashed": True}, run) if is_main else None, ranks)
    shares = _on_all_ranks(
        lambda: {path.name: _size_and_hash(path) for path in _files_of_rank(folder, ranks)}, ranks
    )
    files = {name: found for share in shares for name, found in sorted(share.items())}
    text = json.dumps({"files": files}, indent=1) + "\n"
    _on_all_ranks(lambda: (folder / HASHES).write_text(text, encoding="utf-8") if is_main else None, ranks)


def _on_all_ranks(action: Callable[[], Any], ranks: Ranks) -> list[Any]:
    """The result of an action in each process, once it has ended in all. OSError, on all, where one fails."""
    result, problem = None, ""
    try:
        result = action()
    except (OSError, RuntimeError) as error:
        problem = first_line(error)
    outcomes = ranks.gather((result, problem))
    for _, problem in outcomes:
        if problem:
            raise OSError(problem)
    return [result for result, _ in outcomes]


def find_damage(folder: Path, ranks: Ranks) -> str:
    """What is damaged in the files of a checkpoint, the same on every process; empty when they are intact.

    Earlier versions wrote no hashes: their checkpoints are found damaged when they are loaded.
    """
    return next((problem for problem in ranks.gather(_damage(folder, ranks)) if problem), "")


def _damage(folder: Path, ranks: Ranks) -> str:
    """The damage that this process finds in its share of the files."""
    try:
        if not (folder / HASHES).is_file():
            return _damage_without_hashes(folder)
        files = json.loads((folder / HASHES).read_text(encoding="utf-8"))["files"]
        for name in sorted(files)[ranks.rank :: ranks.world]:
            path, expected = folder / Path(name).name, files[name]
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name}: expected {expected['bytes']} bytes, found {path.stat().st_size}"
            if _size_and_hash(path) != expected:
                return f"{name}: its content is not what was written, by its sha256"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{HASHES} cannot be read ({first_line(error)})"
    return ""


def _damage_without_hashes(folder: Path) -> str:
    """A checkpoint of an earlier version has no hashes; where ``hashed`` is set, the file was lost."""
    missing = [name for name in (RUN_FILE, INDEX) if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    return f"{HASHES} is missing" if read_run_file(folder / RUN_FILE).get("hashed") else ""


def _files_of_rank(folder: Path, ranks: Ranks) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != HASHES)
    return files[ranks.rank :: ranks.world]


def _size_and_hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# --- the state of the run


def read_run_file(file: Path) -> dict[str, Any]:
    """The state beside the tensors: plain values, no code is run. Raises DamagedCheckpoint."""
    try:
        state = load_weights_only(file)
    except Exception as error:  # a damaged archive fails in many ways; all of them mean the same to the user
        raise DamagedCheckpoint(f"{file.name} cannot be read ({first_line(error)})") from error
    if not isinstance(state, dict) or not {"progress", "ranks"} <= state.keys():
        raise DamagedCheckpoint(f"{file.name}: expected the state of a run, found something else")
    return state


# --- the index


class SafeReader(dcp.FileSystemReader):
    """Reads a checkpoint folder, its index by `_IndexUnpickler`."""

    def read_metadata(self, *arguments: Any, **options: Any) -> dcp.Metadata:
        """The index. Raises DamagedCheckpoint where it cannot be read or names anything foreign."""
        folder = Path(self.path)
        try:
            found = _IndexUnpickler(io.BytesIO((folder / INDEX).read_bytes())).load()
            _check_index(found)
        except Exception as error:  # unpickling fails in many ways; all of them mean the same to the user
            raise DamagedCheckpoint(f"{INDEX} cannot be read ({first_line(error)})") from error
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


_FORMAT = {
    metadata: (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    filesystem: ("_StorageInfo",),
}
_CLASSES: dict[tuple[str, str], Any] = {
    (module.__name__, name): getattr(module, name) for module, names in _FORMAT.items() for name in names
}
_CLASSES |= {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): lambda name: torch.strided,  # every tensor here is
    ("collections", "OrderedDict"): dict,
    ("pathlib", "PosixPath"): lambda *parts: "/".join(map(str, parts)),  # where it once lay: of no use here
    ("pathlib._local", "PosixPath"): lambda *parts: "/".join(map(str, parts)),
}
_FILLED = {known for (module, _), known in _CLASSES.items() if module in {m.__name__ for m in _FORMAT}}


_PythonUnpickler: Any = vars(pickle)["_Unpickler"]


class _IndexUnpickler(_PythonUnpickler):  # type: ignore[misc]
    """Knows the classes of the format. In Python, because that in C makes room for any index of its memo."""

    dispatch = dict(_PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        known = _CLASSES.get((module, name))
        if known is not None:
            return known
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of the format")

    def load_build(self) -> None:
        """Fields go into objects of the format, never into a class or a function."""
        if type(self.stack[-2]) not in _FILLED:
            raise pickle.UnpicklingError(f"it sets fields of {type(self.stack[-2]).__name__}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"it names the extension {code}, which is no part of the format")


def _check_index(found: Any) -> None:
    """Tensors alone, each part of them in a file of this folder."""
    if not isinstance(found, metadata.Metadata):
        raise ValueError(f"expected an index, found {type(found).__name__}")
    for name, about in found.state_dict_metadata.items():
        if not isinstance(name, str) or not isinstance(about, metadata.TensorStorageMetadata):
            raise ValueError(f"expected a tensor, found {type(about).__name__} for {name!r}")
        if not isinstance(about.properties.dtype, torch.dtype) or not isinstance(about.size, torch.Size):
            raise ValueError(f"expected dtype and size of {name!r}, found something else")
    for part in found.storage_data.values():
        if Path(part.relative_path).name != part.relative_path or part.relative_path in (".", ".."):
            raise ValueError(f"expected a file of this folder, found {part.relative_path!r}")
