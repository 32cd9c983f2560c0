"""Random access to a corpus, whatever its format and wherever it lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, Protocol, get_args

from echat.audio.speech_tokens import CODEC_SIZE
from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind
from echat.data.formats.audio_folder import AudioFolder, Within, root_of, saved_roots
from echat.data.formats.indexed_corpus import IndexedCorpus, ManifestCorpus, RawCorpus, ReadOptions
from echat.data.formats.jsonl import first_rows
from echat.data.formats.manifest import MANIFEST
from echat.data.formats.osum_record import (
    COMBINES_LIST,
    COMBINES_TAR_ROOT,
    ONLY_META,
    RAW_LIST,
    SHARDS_LIST,
)
from echat.data.formats.tar_corpora import CombineCorpus, ShardCorpus
from echat.data.formats.text_files import text_lines
from echat.data.sample import Sample

Format = Literal["manifest", "raw", "shard", "combine"]
FormatOrAuto = Literal["auto", "manifest", "raw", "shard", "combine"]  # "auto": detected


class Records(Protocol):
    """Samples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """Raises DataError for a bad record; its neighbours are not touched."""


def open_corpus(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    root: str | os.PathLike[str] | None = None,
    within: Within = None,
    tar_root: str | os.PathLike[str] | None = None,
    codec_size: int = CODEC_SIZE,
    without_transcript: bool = False,
) -> IndexedCorpus:
    """Open a manifest, a raw list, a list of shards or combines, a single tar, or a folder that holds one.

    ``path`` is local or a URL for fsspec. Relative names in a list begin at ``root``; by default at
    the folder of the list, the working directory or a folder above, whichever holds them. Sound must lie
    there, in a folder of ``within``, or where echat noted it when it wrote the list: see
    :class:`echat.data.formats.audio_folder.AudioFolder`. ``tar_root`` is the folder of the tars where no
    ``combines_tar_root.txt`` names it. For the other options see
    :class:`echat.data.formats.indexed_corpus.ReadOptions`. Raises DataError when there is no such corpus;
    what is wrong inside shows in ``defects()`` and record by record.
    """
    list_path = _inside(os.fspath(path))
    base = os.fspath(root) if root is not None else None
    kind = _format_of(list_path) if format == "auto" else _known(format)
    options = ReadOptions(codec_size, without_transcript)
    name = os.path.basename(storage.parent(storage.absolute(list_path)))
    if kind == "shard":
        return ShardCorpus(list_path, name, _tars(list_path, base), options)
    if kind == "combine":
        return CombineCorpus(list_path, name, _pairs(list_path, base, _fspath(tar_root)), options)
    _need_list(list_path)
    field = "wav" if kind == "raw" else "audio"
    start = base if base is not None else root_of(list_path, _named(list_path, field))
    folder = AudioFolder.closed(start, within, saved_roots(storage.parent(list_path)))
    return (RawCorpus if kind == "raw" else ManifestCorpus)(list_path, name, folder, options)


def _fspath(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _known(format: str) -> str:
    if format not in get_args(Format):
        expected = ", ".join(get_args(FormatOrAuto))
        raise DataError(f"format: expected one of {expected}, found {format!r}")
    return format


def _inside(path: str) -> str:
    """The list in a folder; a file is taken as it is."""
    if storage.is_url(path) or not os.path.isdir(path):
        return path
    lists = (COMBINES_LIST, SHARDS_LIST, MANIFEST, RAW_LIST)
    for name in lists:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise DataError(f"{path}: expected a folder with one of {', '.join(lists)}, found none of them")


def _format_of(path: str) -> Format:
    if COMBINES_LIST in os.path.basename(path):
        return "combine"
    if path.lower().endswith(".tar"):
        return "shard"
    _need_list(path)
    line, rows = _first_line(path), first_rows(path)
    if not rows and not line.startswith(("{", "[")):
        left, bar, _ = line.partition("|")
        return "combine" if bar and left != "-" else "shard"
    named = [row["wav"] for row in rows if "wav" in row]
    if not named or 2 * len(named) < len(rows):  # a few odd rows do not say what the others are
        return "manifest"
    return "combine" if ONLY_META in named else "raw"


def _need_list(path: str) -> None:
    if not storage.exists(path):
        found = "a folder" if os.path.isdir(path) else "nothing"
        what = "a JSON-lines file" if path.endswith((".jsonl", ".json", ".list")) else "a list"
        reason = f"expected {what}, found {found}; check the path in the recipe"
        raise DataError(Defect(DefectKind.MISSING_FILE, path, reason=reason))


def _first_line(path: str) -> str:
    line = next(filter(None, map(str.strip, text_lines(path))), None)
    if line is None:
        raise DataError(f"{path}: expected records or names of shards, found an empty list")
    return line


def _named(path: str, field: str) -> Iterator[str]:
    """Paths that the first rows of a list name."""
    values = (row.get(field) for row in first_rows(path))
    return (value for value in values if isinstance(value, str) and value)


def _list_lines(path: str) -> list[str]:
    _need_list(path)
    lines = (line.strip().removeprefix("-|") for line in text_lines(path))
    return [line for line in lines if line]


def _tars(path: str, root: str | None) -> list[str]:
    if path.lower().endswith(".tar"):
        return [path]
    names = _list_lines(path)
    base = root if root is not None else root_of(path, names)
    tars = [storage.join(base, name) for name in names]
    if not any(name.lower().endswith(".tar") for name in names) and not any(map(storage.exists, tars)):
        reason = (
            f"expected the names of tars or JSON lines, found {names[0]!r}; "
            "a table or a folder of sound comes in by echat data import"
        )
        raise DataError(Defect(DefectKind.BAD_TEXT, path, reason=reason))
    return tars


def _pairs(path: str, root: str | None, tar_root: str | None) -> list[tuple[str, str]]:
    """(JSON lines, tar) of a combine list, of one pair, or of an internal list of ``lines|tar``."""
    if COMBINES_LIST not in os.path.basename(path) and _first_line(path).startswith("{"):
        names = [storage.absolute(path)]
    else:
        names = _list_lines(path)
    if all("|" in name for name in names):
        both = [name.partition("|") for name in names]
        base = root if root is not None else root_of(path, (left for left, _, _ in both))
        return [(storage.join(base, left), storage.join(base, right)) for left, _, right in both]
    base = root if root is not None else root_of(path, names)
    folder = tar_root if tar_root is not None else _tar_root(path, base)
    return [
        (storage.join(base, name), f"{folder}/{os.path.splitext(os.path.basename(name))[0]}.tar")
        for name in names
    ]


def _tar_root(path: str, base: str) -> str:
    """The folder that the companion of a combine list names on its first line."""
    name = os.path.basename(path)
    companion = name.replace(COMBINES_LIST, COMBINES_TAR_ROOT) if COMBINES_LIST in name else COMBINES_TAR_ROOT
    lines = _list_lines(storage.join(storage.parent(path), companion))
    if not lines:
        raise DataError(f"{companion} beside {path}: expected the folder of the tars, found an empty file")
    return storage.join(base, lines[0]).rstrip("/")
