"""Safe loading of untrusted model files: no pickled code runs, sizes are bounded, bad files are refused.

A `.pt` is a pickle in an archive. What it may hold is bounded before it is unpickled, because a few kilobytes
can ask for hours and for all memory: records are stored as they are, the pickle is small, and no tensor has
more values than the file holds. Modules are built without memory, and only as large as their weights are.
"""

import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from echat.checkpoint import SAME_MODEL, CheckpointError, KeyReport
from echat.errors import first_line

M = TypeVar("M", bound=nn.Module)
PICKLE_BYTES = 1 << 20  # of the structure in an archive; 1,300 tensors take a quarter of it
PICKLE_READS = 400_000  # of a file without an archive, whose structure has no size of its own
JSON_BYTES = 1 << 26  # of a configuration or an index


# --- torch files


def read_torch_file(path: Path) -> Any:
    """What a `.pt` holds, as `load_weights_only` reads it. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a .pt file, found none; check the path")
    try:
        return load_weights_only(path)
    except Exception as error:  # unpickling fails in many ways; all of them mean the same to the user
        raise CheckpointError(
            f"{path}: expected a torch file of plain tensors, found {path.stat().st_size} bytes that "
            f"cannot be used ({first_line(error)}); download the file again"
        ) from error


def load_weights_only(path: Path) -> Any:
    """Plain values and tensors (`weights_only`) of a torch file, on the CPU, memory-mapped where it allows.

    Raises errors of many types for a file that is damaged or asks for more than it holds.
    """
    if zipfile.is_zipfile(path):
        _refuse_bomb(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    else:
        with path.open("rb") as file:
            found = torch.load(cast(IO[bytes], _Bounded(file)), map_location="cpu", weights_only=True)
    _refuse_inflated(found)
    return found


def _refuse_bomb(path: Path) -> None:
    """torch stores records as they are; packed ones may unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError(
            f"expected records as they are, found packed ones ({(packed or ['overlapping'])[0]})"
        )
    for entry in entries:
        if entry.filename.endswith(".pkl") and entry.file_size > PICKLE_BYTES:
            raise ValueError(
                f"{entry.filename}: expected at most {PICKLE_BYTES} bytes, found {entry.file_size}"
            )


class _Bounded(io.RawIOBase):
    """A file from which the unpickler may take only so many pieces."""

    def __init__(self, file: Any) -> None:
        self._file, self._reads = file, 0

    def _count(self) -> None:
        self._reads += 1
        if self._reads > PICKLE_READS:
            raise ValueError(f"expected a structure of at most {PICKLE_READS} pieces, found more")

    def read(self, size: int = -1) -> bytes:
        self._count()
        return self._file.read(size)

    def readline(self, size: int | None = -1) -> bytes:
        self._count()
        return self._file.readline(size)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _refuse_inflated(value: Any) -> None:
    """A tensor that steps over the same bytes again and again has more values than the file."""
    if isinstance(value, Tensor) and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(
            f"expected tensors of the file's own values, found one of shape {tuple(value.shape)}"
        )
    if isinstance(value, Mapping):
        for part in value.values():
            _refuse_inflated(part)


# --- JSON


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise ValueError(f"more than {JSON_BYTES} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected a JSON object in UTF-8, found another content ({first_line(error)}); copy or "
            "download the file again"
        ) from error
    return found


# --- modules


def build_on_meta(
    build: Callable[[], M],
    tensors: Mapping[str, Tensor] | None,
    where: str,
    ignore: Sequence[str] = (),
    mend: str = SAME_MODEL,
) -> M:
    """A module on the meta device, without memory, that fits `tensors` by name and shape; None: any.

    A configuration may ask for any size: building ends once there are more parameters than tensors. Raises
    CheckpointError.
    """
    try:
        with torch.device("meta"), nullcontext() if tensors is None else _at_most(len(tensors), where):
            module = build()
    except CheckpointError:
        raise
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: expected sizes that make a model, found a configuration that does not "
            f"({first_line(error)}); {mend}"
        ) from error
    if tensors is not None:
        KeyReport.compare(module.state_dict(), tensors, ignore).require(where, type(module).__name__, mend)
    return module


@contextmanager
def _at_most(count: int, where: str) -> Iterator[None]:
    """Refuse to register many more parameters than this; tied ones may be registered twice."""
    limit, registered, thread = 2 * count + 100, 0, threading.get_ident()

    def registers(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal registered
        registered += threading.get_ident() == thread
        if registered > limit:
            raise CheckpointError(
                f"{where}: expected weights for the whole configuration, found {count} tensors and more than "
                f"{limit} parameters; {SAME_MODEL}"
            )

    handle = register_module_parameter_registration_hook(registers)
    try:
        yield
    finally:
        handle.remove()


def describe_non_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor with a value that is no finite number, and how many it has; empty: there is none."""
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            return f"{name} with {bad} of {tensor.numel()} values that are no finite numbers"
    return ""
