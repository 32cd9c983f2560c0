"""Source and result of a command kept apart, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from echat.data import storage
from echat.data.corpora import IndexedCorpus, LineCorpus
from echat.data.defects import DataError
from echat.data.manifest import SPEECH_IDS
from echat.data.tar_corpora import CombineCorpus, ShardCorpus

_WRITTEN_IN = ("", "parts", "tars")  # of a result: the folders whose files are written by name


def files_of(corpus: IndexedCorpus) -> Iterator[str]:
    """The local files that a corpus is read from, without sound in files of its own."""
    files: list[str] = []
    if isinstance(corpus, LineCorpus):
        files = [corpus.path, storage.join(storage.parent(corpus.path), SPEECH_IDS)]
    elif isinstance(corpus, ShardCorpus | CombineCorpus):
        files = [corpus.path, *(file for part in corpus.parts.parts for file in part.files)]
    return (file for file in files if not storage.is_url(file))


def refuse_folder(out: str | os.PathLike[str], sources: Iterable[str], option: str = "--output") -> None:
    """Raise DataError where a result in folder ``out`` could replace a file it is made from.

    Spelling does not matter: links and hard links to a source count as the source.
    """
    folders = [os.path.join(out, name) for name in _WRITTEN_IN]
    real = {os.path.realpath(folder) for folder in folders}
    there = {identity for folder in folders for identity in _identities(folder)}
    audio = os.path.realpath(os.path.join(out, "audio")) + os.sep
    for source in sources:
        place = os.path.realpath(source)
        if os.path.dirname(place) in real or place.startswith(audio) or _identity(source) in there:
            raise DataError(
                f"{option} {out}: expected a folder apart from the source, found {source} in it, which the "
                "result could overwrite; name another folder"
            )


def refuse_file(path: str | os.PathLike[str], sources: Iterable[str], option: str = "--output") -> None:
    """Raise DataError where a file about to be written is one of the sources, by whatever name."""
    place, identity = os.path.realpath(path), _identity(path)
    for source in sources:
        if os.path.realpath(source) == place or (identity is not None and _identity(source) == identity):
            raise DataError(
                f"{option}: expected a place apart from the source, found that {path} is {source} itself; "
                "name another one"
            )


def _identities(folder: str) -> Iterator[tuple[int, int]]:
    if os.path.isdir(folder):
        found = (_identity(path) for path in Path(folder).iterdir() if not path.is_dir())
        yield from (identity for identity in found if identity is not None)


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
