"""Weights on disk: one way to save, one way to load.

Tensors live in safetensors files; every file appears whole or not at all. torch is imported by the
functions that need it, so the path helpers stay light.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NAMES_SHOWN = 5  # of a long list in an error message


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
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file(_plain(tensors, dtype), str(temporary), metadata={"format": "pt"})
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
    """Every tensor of a safetensors file, on the CPU, in the stored precision."""
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
    missing = [name for name in own if name not in tensors and not _matches(name, ignore)]
    extra = [name for name in tensors if name not in own and not _matches(name, ignore)]
    shared = [name for name in own if name in tensors]
    shapes = [
        f"{name} expected {tuple(own[name].shape)} found {tuple(tensors[name].shape)}"
        for name in shared
        if own[name].shape != tensors[name].shape
    ]
    if missing or extra or shapes:
        raise CheckpointError(
            f"{where}: expected the {len(own)} tensors of {type(module).__name__}, found "
            + "; ".join(_complaints(missing, extra, shapes))
            + "; config.yaml and the weights beside it must come from the same model"
        )
    with torch.no_grad():
        for name in shared:
            own[name].copy_(tensors[name])


def _complaints(missing: list[str], extra: list[str], shapes: list[str]) -> Iterator[str]:
    if missing:
        yield f"{len(missing)} missing ({_some(missing)})"
    if extra:
        yield f"{len(extra)} left over ({_some(extra)})"
    if shapes:
        yield f"{len(shapes)} of another shape ({_some(shapes)})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
