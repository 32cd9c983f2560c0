"""Rows of whatever users have: CSV, TSV, JSON, Parquet, tars of samples, a folder of sound, a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from echat.audio.containers import SOUND_SUFFIXES
from echat.audio.media_decoding import readable_suffixes
from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind
from echat.data.formats.audio_folder import is_under
from echat.data.formats.jsonl import JsonLines, first_rows
from echat.data.formats.text_files import text_lines, whole_text
from echat.data.tabular.delimited import TableRow, delimited_rows
from echat.data.tabular.huggingface import HUB, dataset_rows, is_saved_set, parquet_rows
from echat.data.tabular.webdataset import tar_rows

TABLES = ("manifest.jsonl", "metadata.jsonl", "manifest.csv", "metadata.csv", "manifest.tsv", "metadata.tsv")
SPLITS = ("train", "dev", "test", "validation", "valid", "eval")  # names of tables that are a part of a set
SOUND_FOLDERS = ("", "clips", "wavs", "wav", "audio")  # beside a table: where published sets keep their sound
_PUBLISHED = {"key", "wav", "txt", "task"}
_UNNAMED = ("key", "text", "normalized_text")  # columns of LJSpeech, whose table names none


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a source; ``folder`` is where its audio begins, ``prefix`` makes its keys unique."""

    path: str
    folder: str
    split: str | None = None
    prefix: str = ""


def rows_of(source: str, folder: str, encoding: str | None = None) -> Iterator[TableRow | Defect]:
    """Every row of a table, or every sound file of a folder; a bad row is yielded as a defect.

    ``folder`` is where audio lies, for a source that is no table. Raises DataError for a source of no known
    kind.
    """
    return chain.from_iterable(table_rows(replace(t, folder=folder), encoding) for t in tables_of(source))


def table_folder(source: str) -> str:
    """Where relative audio paths of a source begin."""
    return source if os.path.isdir(source) else os.path.dirname(source) or "."


def tables_of(source: str) -> list[Table]:
    """The tables of a source, in order: one file, or those that a folder holds. Raises DataError."""
    path = Path(source)
    if source.startswith(HUB) or is_saved_set(path) or path.is_file():
        return [Table(source, table_folder(source))]
    if not path.is_dir():
        reason = "expected a table or a folder, found nothing"
        raise DataError(Defect(DefectKind.MISSING_FILE, source, reason=reason))
    whole = next((path / name for name in TABLES if (path / name).is_file()), None)
    if whole is not None:
        return [Table(str(whole), source)]
    return _parts(path) or [Table(source, source)]


def _parts(folder: Path) -> list[Table]:
    """A table for each split, in the folder (Common Voice) or in one of its own; Parquet files; tars."""
    found = [
        Table(str(path), str(folder), split)
        for split in SPLITS
        for path in (folder / f"{split}{suffix}" for suffix in (".tsv", ".csv", ".jsonl"))
        if path.is_file()
    ]
    found = found or [
        Table(str(path), str(folder / split), split, f"{split}/")
        for split in SPLITS
        for path in (folder / split / name for name in TABLES)
        if path.is_file()
    ]
    for suffix in (".parquet", ".tar"):
        files = sorted(path for path in folder.rglob(f"*{suffix}") if path.is_file())
        found = found or [Table(str(path), str(folder), _split_of(path.name)) for path in files]
    return found


def _split_of(name: str) -> str | None:
    """``train-00000-of-00001.parquet`` is a part of ``train``."""
    return next((split for split in SPLITS if name.startswith((f"{split}-", f"{split}.", f"{split}_"))), None)


def table_rows(table: Table, encoding: str | None = None) -> Iterator[TableRow | Defect]:
    """Every row of one table."""
    path = Path(table.path)
    if table.path.startswith(HUB) or is_saved_set(path):
        return dataset_rows(table.path)
    if path.is_dir():
        return _folder_rows(Path(table.folder), encoding)
    kind = path.suffix.lower()
    if kind in (".parquet", ".tar"):
        return parquet_rows(table.path) if kind == ".parquet" else tar_rows(table.path)
    first = "" if kind in (".csv", ".tsv") else _first_character(table.path, encoding)
    if first in ("{", "[") or kind in (".json", ".jsonl", ".list"):
        return _json_rows(table.path)
    return delimited_rows(table.path, encoding, partial(_names, table.folder))


def _names(folder: str, cells: Sequence[str]) -> Sequence[str] | None:
    """Names for the columns of a table whose first line is a record: its first cell names a sound."""
    if len(cells) < 2 or not find_audio(folder, cells[0]):
        return None
    first = "audio" if Path(cells[0]).suffix.lower().lstrip(".") in SOUND_SUFFIXES else "key"
    more = [f"column {number}" for number in range(len(_UNNAMED) + 1, len(cells) + 1)]
    return [first, *_UNNAMED[1:], *more][: len(cells)]


def find_audio(folder: str, name: str) -> str | None:
    """The sound that a table names beside its folder, as a path below it: ``wavs/LJ001.wav`` of ``LJ001``."""
    suffixes = ("", *(f".{suffix}" for suffix in SOUND_SUFFIXES))
    for folder_name in SOUND_FOLDERS:
        for suffix in suffixes:
            inside = os.path.join(folder_name, name + suffix)
            if name and storage.exists(storage.join(folder, inside)):
                return inside
    return None


def _first_character(path: str, encoding: str | None) -> str:
    return next((line.strip()[0] for line in text_lines(path, encoding) if line.strip()), "")


def _json_rows(path: str) -> Iterator[TableRow | Defect]:
    lines, rows = JsonLines(path), first_rows(path)
    if len(lines) and not rows:
        reason = "expected JSON lines or an array of objects, found neither among the first lines"
        raise DataError(Defect(DefectKind.BAD_JSON, path, reason=reason))
    if any(row.keys() >= _PUBLISHED and str(row["task"]).startswith("<") for row in rows):
        reason = "expected a table, found a published list; echat data check and convert read it as it is"
        raise DataError(Defect(DefectKind.BAD_RECORD, path, reason=reason))
    for number in range(len(lines)):
        try:
            columns, place = lines[number]
            yield TableRow(columns, place, path, place.replace(" ", "-"))
        except DataError as error:
            yield error.defect


def _folder_rows(folder: Path, encoding: str | None) -> Iterator[TableRow | Defect]:
    """Files in the order of their names; ``x.txt`` beside ``x.wav`` holds the words."""
    found = False
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower().lstrip(".") in SOUND_SUFFIXES and path.is_file():
            found = True
            columns: dict[str, Any] = {"audio": str(path.relative_to(folder))}
            words = path.with_suffix(".txt")
            try:
                if words.is_file() and is_under(str(words), str(folder)):
                    columns["text"] = whole_text(str(words), encoding).strip()
            except (DataError, OSError) as error:
                reason = error.defect.reason if isinstance(error, DataError) else str(error)
                yield Defect(DefectKind.BAD_TEXT, str(words), key=columns["audio"], reason=reason)
            else:
                yield TableRow(columns, "", str(path))
    if not found:
        expected = f"sound files ({', '.join(readable_suffixes())}) or one of {', '.join(TABLES)}"
        raise DataError(
            Defect(DefectKind.MISSING_FILE, str(folder), reason=f"expected {expected}, found none")
        )
