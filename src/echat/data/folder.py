"""Where the relative paths of a list begin, and the folder that they must not leave."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from echat.data import storage
from echat.data.defects import DataError, Defect, Kind

_TRIED = 20  # names of a list that are looked for before its folder is taken as given
_ABOVE = 2  # folders above that of a list where its names may begin


@dataclass(frozen=True, slots=True)
class Folder:
    """``within`` is None where paths may lead anywhere."""

    root: str
    within: str | None = None

    @classmethod
    def closed(cls, root: str) -> Folder:
        """A folder that paths must stay in."""
        return cls(root, root)

    def find(self, path: str, field: str = "path") -> str:
        """Where ``path`` lies; absolute paths and URLs stay as they are. Raises DataError for an escape."""
        found = storage.join(self.root, path)
        if self.within is not None and found != path and not is_under(found, self.within):
            reason = (
                f"field {field}: expected a path inside {self.within}, found {path}; "
                "where that is wanted, name the folder that holds all audio (within)"
            )
            raise DataError(Defect(Kind.PATH_ESCAPE, "", reason=reason))
        return found


def is_under(path: str, folder: str) -> bool:
    """Does a path, its ``..`` resolved, lie in the folder?"""
    if storage.is_url(path) or storage.is_url(folder):
        return path.startswith(folder.rstrip("/") + "/") and ".." not in path.split("/")
    inside, outside = os.path.abspath(path), os.path.abspath(folder)
    return os.path.commonpath([inside, outside]) == outside


def root_of(list_path: str, names: Iterable[str]) -> str:
    """Where the names in a list begin: its folder, the working directory, or a folder above, whichever fits.

    Published lists are relative to the directory the trainer was started in, ours to their own.
    """
    places = [storage.parent(list_path)]
    if not storage.is_url(list_path):
        above = Path(list_path).absolute().parents[1 : 1 + _ABOVE]
        places += [".", *map(str, above)]
    tried = [name for name, _ in zip(names, range(_TRIED))]
    relative = [name for name in tried if not os.path.isabs(name) and not storage.is_url(name)]
    for place in places:
        if any(storage.exists(storage.join(place, name)) for name in relative):
            return place
    return places[0]
