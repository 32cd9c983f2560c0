"""Rows of Hugging Face data sets: from the hub, as save_to_disk leaves them, and as Parquet files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from echat.data.defects import DataError, Defect, DefectKind
from echat.data.formats.audio_encoding import is_sound
from echat.data.tabular.delimited import TableRow

HUB = "hf://"


class EmbeddedAudio:
    """A sound that a data set holds as bytes."""

    __slots__ = ("data", "name")

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name = data, name


def is_saved_set(path: Path) -> bool:
    """Is the folder one of save_to_disk?"""
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def dataset_rows(source: str) -> Iterator[TableRow | Defect]:
    """Every row of a data set of the hub (``hf://NAME``) or of a folder of save_to_disk."""
    import datasets

    if source.startswith(HUB):
        found = datasets.load_dataset(source.removeprefix(HUB))
    else:
        found = datasets.load_from_disk(source)
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
    for split, table in splits.items():
        names = {name: kind.names for name, kind in table.features.items() if hasattr(kind, "int2str")}
        for name, kind in table.features.items():
            if isinstance(kind, datasets.Audio):
                table = table.cast_column(name, datasets.Audio(decode=False))
        more = {"split": split} if split else {}
        for number, row in enumerate(table):
            key = f"{split or 'row'}-{number:08d}"
            yield TableRow({**more, **_columns(row, names)}, f"row {number}", source, key, tuple(row))


def parquet_rows(path: str) -> Iterator[TableRow | Defect]:
    """Every row of a Parquet file; a damaged stretch of rows is named and left out."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, ValueError) as error:
        reason = f"expected a Parquet file, found: {error}; download it again"
        raise DataError(Defect(DefectKind.UNREADABLE_FILE, path, reason=reason)) from error
    classes = _classes(file.schema_arrow.metadata or {})
    number = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(batch_size=64, row_groups=[group]):
                for row in batch.to_pylist():
                    key = f"{Path(path).stem}-{number:08d}"
                    yield TableRow(_columns(row, classes), f"row {number}", path, key, tuple(row))
                    number, rows = number + 1, rows - 1
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            reason = f"expected {rows} rows more, found: {error}; download the file again"
            yield Defect(DefectKind.UNREADABLE_FILE, path, f"row {number}", reason=reason)
            number += rows


def _classes(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes by column, as data sets note them in their files."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def _columns(row: dict[str, Any], classes: dict[str, list[str]]) -> dict[str, Any]:
    found = {name: _plain(value, classes.get(name)) for name, value in row.items()}
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: Any, names: list[str] | None) -> Any:
    """A sound as a path or as bytes, a class by its name, anything else as JSON can hold it."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        data, path = value["bytes"], value["path"] or ""
        return (path or None) if data is None else EmbeddedAudio(data, os.path.basename(path))
    if isinstance(value, bytes):
        return EmbeddedAudio(value, "") if is_sound(value) else None
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value
