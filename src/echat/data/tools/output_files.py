"""Files that a conversion leaves: whole or not at all, with checksums beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from echat.checkpoint import atomic_path
from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind, DefectReport
from echat.data.formats.indexed_corpus import IndexedCorpus, LineCorpus
from echat.data.formats.manifest import SPEECH_IDS
from echat.data.formats.tar_corpora import CombineCorpus, ShardCorpus
from echat.data.sample import Sample

FINISHED, SHA256 = ".finished", ".sha256"


def drop_duplicates(samples: Iterable[Sample], path: Path, defects: DefectReport) -> Iterator[Sample]:
    """The first sample of each key."""
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            reason = "expected a key of its own within one file, found it twice; the first one is kept"
            defects.add(Defect(DefectKind.DUPLICATE_KEY, str(path), key=sample.key, reason=reason))
        else:
            seen.add(sample.key)
            yield sample


def row_bytes(row: dict[str, Any]) -> bytes:
    """A row as a JSON line. Raises ValueError, TypeError or RecursionError for what JSON cannot hold."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def write_rows(path: Path, rows: Iterable[bytes], more: Iterable[tuple[str, str]] = ()) -> None:
    """JSON lines and their checksum, with those of files that belong to them."""
    data = b"".join(rows)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    write_sums(path, [(hashlib.sha256(data).hexdigest(), path.name), *more])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))  # names of files may be any bytes


def write_sums(path: Path, sums: Iterable[tuple[str, str]]) -> None:
    """As ``sha256sum --check`` reads them."""
    write_lines(beside(path, SHA256), (f"{digest}  {name}" for digest, name in sums))


def join(parts: Iterable[Path], whole: Path) -> str:
    """All parts in one file; returns its SHA-256."""
    digest = hashlib.sha256()
    with atomic_path(whole) as temporary, temporary.open("wb") as stream:
        for part in parts:
            data = part.read_bytes()
            stream.write(data)
            digest.update(data)
    return digest.hexdigest()


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def remove_temporaries(out: Path) -> None:
    """Siblings that writing whole files leaves in a result when it is killed: ``.xxxxxxxx.name``."""
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
