"""The folder of a result: apart from its source, without repeated keys and leftovers of killed runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from echat.data import storage
from echat.data.defects import DataError, DefectReport, duplicate_key
from echat.data.formats.indexed_corpus import IndexedCorpus, LineCorpus
from echat.data.formats.manifest import SPEECH_IDS
from echat.data.formats.tar_corpora import CombineCorpus, ShardCorpus
from echat.data.sample import Sample


def drop_duplicates(samples: Iterable[Sample], path: Path, defects: DefectReport) -> Iterator[Sample]:
    """The first sample of each key."""
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            defects.add(duplicate_key(str(path), "", sample.key))
        else:
            seen.add(sample.key)
            yield sample


def remove_temporaries(out: Path) -> None:
    """Remove temporary files of atomic writes (``.xxxxxxxx.name``) that a killed run left."""
    for folder in (out, out / "parts", out / "tars"):
        for path in folder.glob(".????????.*") if folder.is_dir() else ():
            path.unlink(missing_ok=True)


# --- Source and result of a command kept apart, before anything is written.

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

    Links and hard links to a source count as the source.
    """
    folders = [os.path.join(out, name) for name in _WRITTEN_IN]
    real = {os.path.realpath(folder) for folder in folders}
    there = {identity for folder in folders for identity in _identities(folder)}
    audio = os.path.realpath(os.path.join(out, "audio")) + os.sep
    for source in sources:
        real_path = os.path.realpath(source)
        if (
            os.path.dirname(real_path) in real
            or real_path.startswith(audio)
            or storage.identity(source) in there
        ):
            raise DataError(
                f"{option} {out}: expected a folder apart from the source, found {source} in it, which the "
                "result could overwrite; name another folder"
            )


def _identities(folder: str) -> Iterator[tuple[int, int]]:
    if os.path.isdir(folder):
        found = (storage.identity(path) for path in Path(folder).iterdir() if not path.is_dir())
        yield from (one for one in found if one is not None)
