"""Weights on disk: one way to save, one way to load.

Tensors live in safetensors files; every file appears whole or not at all. torch is imported by the
functions that need it, so the path helpers stay light.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NAMES_SHOWN = 5  # of a long list in an error message
CACHE_LINE = 64  # bytes; memory-mapped tensors start on one
PIECE = 1 << 24  # values cast and written at once, so that a large tensor never exists twice


class CheckpointError(ValueError):
    """A weights file that cannot be used as asked."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` (same suffix) to write a file or folder at.

    It is renamed to ``path`` when the block ends well and removed when it fails, so a reader never sees
    half of it. Missing parent folders are made. A block that writes nothing leaves ``path`` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        if temporary.is_dir():
            _replace_folder(temporary, path)
        elif temporary.exists():
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Rename does not overwrite a folder that holds something: step the old one aside first."""
    if not path.exists():
        os.rename(temporary, path)
        return
    aside = path.with_name(f".{secrets.token_hex(4)}.old.{path.name}")
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(aside, path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write named tensors to a safetensors file, floating ones as ``dtype`` when it is given."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(_plain(tensors, dtype), str(temporary), metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(f"{path}: could not be written ({error}); free some space") from error
        os.chmod(temporary, 0o666 & ~_umask())  # the writer makes the file private to its owner


def _plain(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Contiguous CPU copies; tied weights, which the format refuses, are stored once per name."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        tensor = tensor.contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return plain


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU, in the stored precision.

    The file is mapped into memory: its pages are read when first used, and writing to a tensor changes this
    copy alone.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise CheckpointError(
            f"{path}: expected a safetensors file, found {found}; copy the model folder again, complete"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, found {size} bytes that cannot be read ({error}); "
            "the file is cut short or of another kind, copy or download it again"
        ) from error


def stream_tensors(
    path: str | Path,
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Write a safetensors file from tensors that come one by one, in any order, never all in memory.

    ``shapes`` names every tensor of the file; all are stored as ``dtype``, a floating one.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        offsets = _write_header(file, shapes, dtype)
        for name, tensor in tensors:
            file.seek(offsets.pop(name))
            flat = tensor.detach().flatten()
            assert flat.numel() == math.prod(shapes[name]), name
            for piece in flat.split(PIECE):
                file.write(_bytes(piece.to(dtype)))
        assert not offsets, f"tensors that never came: {sorted(offsets)}"


def _write_header(file: BinaryIO, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> dict[str, int]:
    """Names, shapes and places of a safetensors file -> where in the file each tensor starts.

    The format allows no gaps, so tensors of whole cache lines come first: every one of them is aligned.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for name in sorted(sizes, key=lambda name: (sizes[name] % CACHE_LINE != 0, name)):
        starts[name], end = end, end + sizes[name]
        header[name] = {
            "dtype": _format_name(dtype),
            "shape": list(shapes[name]),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % CACHE_LINE)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + start for name, start in starts.items()}


def _format_name(dtype: torch.dtype) -> str:
    """What the format calls a floating type: F32, BF16, ..."""
    assert dtype.is_floating_point, dtype
    kind = "BF" if "bfloat" in str(dtype) else "F"
    return f"{kind}{8 * dtype.itemsize}"


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return tensor.contiguous().view(torch.uint8).numpy().data


@dataclass(frozen=True)
class KeyReport:
    """The names of a file against the names that a model expects."""

    expected: int
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()  # each with the shape expected and found

    @classmethod
    def compare(
        cls, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], ignore: Sequence[str] = ()
    ) -> KeyReport:
        """Tensors that a model has and tensors that were found; names that match a glob of ``ignore`` may be
        on one side only."""
        return cls(
            len(own),
            tuple(name for name in own if name not in tensors and not _matches(name, ignore)),
            tuple(name for name in tensors if name not in own and not _matches(name, ignore)),
            tuple(
                f"{name} expected {tuple(own[name].shape)} found {tuple(tensors[name].shape)}"
                for name in own
                if name in tensors and own[name].shape != tensors[name].shape
            ),
        )

    @property
    def ok(self) -> bool:
        """Nothing missing, nothing left over, every shape equal."""
        return not (self.missing or self.left_over or self.reshaped)

    def __str__(self) -> str:
        lists = {"missing": self.missing, "left over": self.left_over, "of another shape": self.reshaped}
        parts = (f"{len(names)} {what} ({_some(names)})" for what, names in lists.items() if names)
        return "; ".join(parts) or "0 missing, 0 left over, 0 of another shape"

    def require(self, where: str, of: str, mend: str) -> None:
        """CheckpointError unless all is well."""
        if not self.ok:
            raise CheckpointError(
                f"{where}: expected the {self.expected} tensors of {of}, found {self}; {mend}"
            )


COPY_AGAIN = "copy or download the weights again"
SAME_MODEL = "config.yaml and the weights beside it must come from the same model"


def load_strict(
    module: nn.Module, tensors: Mapping[str, Tensor], where: str, ignore: Sequence[str] = ()
) -> None:
    """Copy ``tensors`` into ``module`` with nothing missing, nothing left over and every shape equal.

    Values are cast to the module's precision. Names that match a glob of ``ignore`` may be missing or left
    over; where both sides have them they are copied. ``where`` names the source in errors. On an error the
    module is unchanged.
    """
    import torch

    own = module.state_dict()
    KeyReport.compare(own, tensors, ignore).require(where, type(module).__name__, SAME_MODEL)
    with torch.no_grad():
        for name in own.keys() & tensors.keys():
            if not bool(torch.isfinite(tensors[name]).all()):
                raise CheckpointError(
                    f"{where}: expected finite numbers, found others in {name}; {COPY_AGAIN}"
                )
        for name in own.keys() & tensors.keys():
            own[name].copy_(tensors[name])


def assign_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str,
    dtype: torch.dtype | None = None,
    mend: str = SAME_MODEL,
) -> None:
    """Make ``tensors`` the weights of a ``module`` built on the meta device, as strictly as `load_strict`.

    Tensors that have ``dtype`` already (None: any) are used where they lie, so those of a memory-mapped file
    cost nothing until they are read; the others are cast one by one.
    """
    KeyReport.compare(module.state_dict(), tensors).require(where, type(module).__name__, mend)
    cast = {name: tensor.detach().to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    module.load_state_dict(cast, assign=True)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
