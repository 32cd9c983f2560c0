"""Where the relative paths of a list begin, and the folders that its sound must lie in.

A list may be untrusted (path traversal). What it names is read, copied and played, so it may name sound below
allowed folders only: the folder its names begin at, those given by an option, and those that echat saved when
it wrote the list itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from echat.checkpoint import atomic_path
from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind

_TRIED = 20  # names of a list that are looked for before its folder is taken as given
_ABOVE = 2  # folders above that of a list where its names may begin
Within = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None


@dataclass(frozen=True, slots=True)
class AudioFolder:
    """``within``: folders, local or URLs, ``/`` for all local ones; None where paths may lead anywhere."""

    root: str
    within: Within = None

    @classmethod
    def closed(cls, root: str, *more: Within) -> AudioFolder:
        """A folder that paths must stay in, or in one of ``more``."""
        return cls(
            root, tuple(dict.fromkeys((root, *(path for within in more for path in as_paths(within)))))
        )

    @property
    def roots(self) -> tuple[str, ...]:
        return as_paths(self.within)

    def find(self, path: str, field: str = "path") -> str:
        """Where ``path`` lies, links followed for the decision. Raises DataError for an escape."""
        path = _local(path)
        found = storage.join(self.root, path)
        roots = self.roots
        if self.within is None or any(is_under(found, root) for root in roots):
            return found
        real = storage.real(found)
        leads = f", which leads to {real}" if real != os.path.abspath(found) else ""
        reason = (
            f"field {field}: expected a path inside {' or '.join(roots)}, found {path}{leads}; where its "
            f"sound is wanted, allow its folder: --within {storage.parent(real)} (within)"
        )
        raise DataError(Defect(DefectKind.PATH_ESCAPE, "", reason=reason))


def as_paths(within: Within) -> tuple[str, ...]:
    """The folders as a tuple."""
    if within is None:
        return ()
    single = isinstance(within, str | os.PathLike)
    return tuple(map(os.fspath, (within,) if single else within))  # type: ignore[arg-type]


def is_under(path: str, folder: str) -> bool:
    """Does a path, its links and ``..`` resolved, lie in the folder?"""
    if storage.is_url(path) or storage.is_url(folder):
        return path.startswith(folder.rstrip("/") + "/") and ".." not in unquote(path).split("/")
    inside, outside = _real(path), _real_folder(folder)
    return inside == outside or inside.startswith(outside.rstrip(os.sep) + os.sep)


def _real(path: str) -> str:
    """``os.path.realpath`` of a file; that of its folder is asked for once, as thousands lie in each."""
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or os.path.islink(path):
        return os.path.realpath(path)
    return os.path.join(_real_folder(folder or "."), name)


@lru_cache(maxsize=4096)
def _real_in(folder: str, current: str) -> str:
    return os.path.realpath(os.path.join(current, folder))


def _real_folder(folder: str) -> str:
    return _real_in(folder, "" if os.path.isabs(folder) else os.getcwd())


def _local(path: str) -> str:
    """``file:///a/b`` is a local path like any other."""
    scheme, colon, _ = path.partition("://")
    return unquote(urlsplit(path).path) if colon and scheme.lower() in ("file", "local") else path


def root_of(list_path: str, names: Iterable[str]) -> str:
    """Where the names in a list begin: its folder, the working directory, or a folder above that holds them.

    Published lists are relative to the directory the trainer was started in, ours to their own.
    """
    candidates = [storage.parent(list_path)]
    if not storage.is_url(list_path):
        above = Path(list_path).absolute().parents[1 : 1 + _ABOVE]
        candidates += [".", *map(str, above)]
    return first_that_holds(candidates, [name for name, _ in zip(names, range(_TRIED))])


def first_that_holds(folders: Sequence[str], names: Sequence[str]) -> str:
    """The first of the folders in which one of the relative names lies; the first one where none does."""
    relative = [name for name in names if not os.path.isabs(name) and not storage.is_url(name)]
    for folder in folders:
        if any(storage.exists(storage.join(folder, name)) for name in relative):
            return folder
    return folders[0]


def save_roots(folder: str | os.PathLike[str], roots: Iterable[str]) -> None:
    """Save for this user that the lists echat wrote into ``folder`` name sound below ``roots``.

    They are saved in the user's own state folder, not beside the list, which may be untrusted.
    """
    outside = [root for root in map(storage.real, roots) if not is_under(root, os.fspath(folder))]
    roots_path = _roots_path(folder)
    with suppress(OSError):  # not writable: the option has to be given again
        if outside:
            with atomic_path(roots_path) as temporary:
                temporary.write_text(json.dumps({"folder": str(folder), "roots": outside}), "utf-8")
        else:
            roots_path.unlink(missing_ok=True)


def saved_roots(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """What was saved for the lists in a folder."""
    try:
        return tuple(map(str, json.loads(_roots_path(folder).read_text("utf-8"))["roots"]))
    except (OSError, ValueError, TypeError, LookupError):
        return ()


def _roots_path(folder: str | os.PathLike[str]) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    name = storage.real(os.fspath(folder))
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return state / "echat" / "audio_roots" / f"{digest}.json"
