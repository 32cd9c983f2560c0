"""Rows of whatever users have: CSV, TSV, JSON lines, a folder of sound, a Hugging Face data set."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echat.audio.containers import SOUND_SUFFIXES
from echat.audio.media import readable_suffixes
from echat.data.defects import DataError, Defect, Kind
from echat.data.lines import Lines

TABLES = ("manifest.jsonl", "metadata.jsonl", "manifest.csv", "metadata.csv", "manifest.tsv", "metadata.tsv")
_DELIMITERS = ",\t;|"
HUB = "hf://"


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound that a data set holds as bytes."""

    data: bytes
    name: str


@dataclass(frozen=True, slots=True)
class TableRow:
    """Columns by name, and where the row stands."""

    columns: dict[str, Any]
    place: str


def rows_of(source: str, folder: str) -> Iterator[TableRow | Defect]:
    """Every row of a table, or every sound file of a folder; a bad row is named in its place.

    ``folder`` is where audio lies, for a source that is no table. Raises DataError for a source of no known
    kind.
    """
    path = Path(source)
    if (
        source.startswith(HUB)
        or (path / "dataset_info.json").is_file()
        or (path / "dataset_dict.json").is_file()
    ):
        return _dataset(source)
    if path.is_dir():
        table = next((path / name for name in TABLES if (path / name).is_file()), None)
        return rows_of(str(table), folder) if table else _sounds(Path(folder))
    if not path.is_file():
        raise DataError(
            Defect(Kind.MISSING_FILE, source, reason="expected a table or a folder, found nothing")
        )
    if path.suffix.lower() in (".csv", ".tsv"):
        return _delimited(path)
    return _json_rows(path)


def table_folder(source: str) -> str:
    """Where relative audio paths of a source begin."""
    return source if os.path.isdir(source) else os.path.dirname(source) or "."


def _json_rows(path: Path) -> Iterator[TableRow | Defect]:
    lines = Lines(str(path))
    for number in range(len(lines)):
        try:
            yield TableRow(*lines[number])
        except DataError as error:
            yield error.defect


def _delimited(path: Path) -> Iterator[TableRow | Defect]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as stream:
        head = stream.readline()
        stream.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=head.count)
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        rows = iter(reader)
        while True:
            place = (
                f"line {max(1, reader.line_num) + 1}"  # the names of the columns are read with the first row
            )
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield Defect(
                    Kind.BAD_TEXT, str(path), place, reason=f"expected a row of {path.suffix}, {error}"
                )
                continue
            if None in row or None in row.values():
                found = "more" if None in row else "fewer"
                reason = (
                    f"expected {len(reader.fieldnames or ())} columns as in the first line, found {found}"
                )
                yield Defect(Kind.BAD_FIELD, str(path), place, reason=reason)
            else:
                yield TableRow({name: value for name, value in row.items() if value != ""}, place)


def _sounds(folder: Path) -> Iterator[TableRow | Defect]:
    """Files in the order of their names; ``x.txt`` beside ``x.wav`` holds the words."""
    found = False
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower().lstrip(".") in SOUND_SUFFIXES and path.is_file():
            found = True
            columns = {"audio": str(path.relative_to(folder))}
            words = path.with_suffix(".txt")
            if words.is_file():
                columns["text"] = words.read_text("utf-8").strip()
            yield TableRow(columns, "")
    if not found:
        expected = f"sound files ({', '.join(readable_suffixes())}) or one of {', '.join(TABLES)}"
        raise DataError(Defect(Kind.MISSING_FILE, str(folder), reason=f"expected {expected}, found none"))


def _dataset(source: str) -> Iterator[TableRow | Defect]:
    import datasets

    if source.startswith(HUB):
        found = datasets.load_dataset(source.removeprefix(HUB))
    else:
        found = datasets.load_from_disk(source)
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
    for split, table in splits.items():
        sounds = [name for name, kind in table.features.items() if isinstance(kind, datasets.Audio)]
        names = {name: kind for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
        for name in sounds:
            table = table.cast_column(name, datasets.Audio(decode=False))
        for number, row in enumerate(table):
            columns = {} if not split else {"split": split}
            for name, value in row.items():
                columns[name] = _plain(value, name in sounds, names.get(name))
            columns.setdefault("key", f"{split or 'row'}-{number:08d}")
            yield TableRow(
                {name: value for name, value in columns.items() if value is not None}, f"row {number}"
            )


def _plain(value: Any, is_sound: bool, names: Any) -> Any:
    """A sound as a path or as bytes, a class by its name, anything else as JSON can hold it."""
    if is_sound and value is not None:
        data, path = value.get("bytes"), value.get("path") or ""
        return path if data is None else Sound(data, os.path.basename(path))
    if names is not None and isinstance(value, int):
        return names.int2str(value) if value >= 0 else None
    try:
        json.dumps(value)
    except TypeError:
        return str(value)
    return value
