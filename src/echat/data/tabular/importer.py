"""Import of tables and folders of sound as a manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from echat.audio.errors import AudioError
from echat.audio.speech_tokens import CODEC_SIZE
from echat.checkpoint import atomic_path
from echat.config import Config, nearest
from echat.data import storage
from echat.data.audio_loading import stored_seconds
from echat.data.defects import DataError, Defect, DefectKind, DefectReport, duplicate_key
from echat.data.formats.audio_encoding import suffix_of
from echat.data.formats.audio_folder import AudioFolder, save_roots, saved_roots
from echat.data.formats.manifest import FIELDS, MANIFEST, row_of, sample_of
from echat.data.formats.text_files import known_encoding, row_bytes, write_sums
from echat.data.sample import AudioRef, Sample
from echat.data.tabular import readers as tables
from echat.data.tabular.columns import key_shown, refuse_columns, renamed
from echat.data.tabular.delimited import TableRow
from echat.data.tabular.huggingface import EmbeddedAudio

_NUMBERS = ("duration_s", "start_seconds", "end_seconds")
_PEEKED = 200  # rows that are looked at before the first is written
_TRIED = 20  # rows whose sound is looked for beside the table


class ImportConfig(Config):
    """What to import, and how its columns are called."""

    source: str  # a CSV, TSV or JSON-lines file, a folder, or hf://NAME
    out: str  # folder of the manifest
    columns: dict[str, str] = {}  # our field -> column of the source; the usual names are known
    audio_root: str | None = None  # where relative audio paths begin; None: where the table lies
    within: str | tuple[str, ...] | None = None  # further folders that sound may lie in; "/": all
    encoding: str | None = None  # of text; None: UTF-8, or what a byte-order mark says
    name: str | None = None  # of the corpus; None: that of the folder
    split: str | None = None  # of all records, where no column says it
    lang: str | None = None
    codec_size: int = CODEC_SIZE


def import_corpus(
    config: ImportConfig, strict: bool = False, progress: Callable[[int], None] = lambda done: None
) -> tuple[int, DefectReport]:
    """Write ``manifest.jsonl`` into the folder; returns how many records, and what was left out and why.

    Sound in files and tars stays where it is; sound that a data set holds as bytes is written beside the
    manifest. Without a record nothing is written. Raises DataError where a column is named that is no field
    or is not there, where no column is known, or where ``strict`` meets a defect.
    """
    for field in config.columns:
        if field not in FIELDS:
            raise DataError(f"--map {field}=...: expected a field of a record, {nearest(field, FIELDS)}")
    known_encoding(config.encoding)
    found = tables.tables_of(config.source)
    path = Path(config.out) / MANIFEST
    storage.refuse_file(path, [table.path for table in found])
    report, count, digest = DefectReport(strict), 0, hashlib.sha256()
    lines = _lines(config, found, report)
    first = next(lines, None)
    if first is None:
        return 0, report
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for line in chain([first], lines):
            stream.write(line)
            digest.update(line)
            count += 1
            progress(count)
    write_sums(path, [(digest.hexdigest(), path.name)])
    save_roots(config.out, {root for table in found for root in _folder(table, config).roots})
    return count, report


def _lines(config: ImportConfig, found: list[tables.Table], report: DefectReport) -> Iterator[bytes]:
    """The lines of the manifest."""
    seen: set[str] = set()
    for table in found:
        rows = tables.table_rows(_with_audio_root(table, config), config.encoding)
        first = list(islice(rows, _PEEKED))
        refuse_columns(first, table.path, config.columns)
        table_importer = _TableImporter(_folder(table, config), table, config, first)
        for row in chain(first, rows):
            if isinstance(row, Defect):
                report.add(row)
                continue
            line = None
            with report.catch(row.file or table.path, row.place, key_shown(row.columns)):
                fields = table_importer.fields(row)
                if fields["key"] in seen:
                    raise DataError(duplicate_key("", "", fields["key"]))
                sample = _sample(fields, table_importer.folder, table_importer.name, config)
                line = row_bytes(row_of(sample, config.out))
                seen.add(sample.key)
            if line is not None:
                yield line


def _with_audio_root(table: tables.Table, config: ImportConfig) -> tables.Table:
    return table if config.audio_root is None else replace(table, folder=config.audio_root)


def _folder(table: tables.Table, config: ImportConfig) -> AudioFolder:
    """Where sound of a table may lie: where its audio begins, and where a manifest of ours says."""
    noted = saved_roots(tables.table_folder(table.path))
    root = os.path.abspath(_with_audio_root(table, config).folder)
    return AudioFolder.closed(root, config.within, noted)


class _TableImporter:
    """Rows of one table under our names, with their sound where it lies."""

    def __init__(
        self, folder: AudioFolder, table: tables.Table, config: ImportConfig, rows: list[TableRow | Defect]
    ) -> None:
        self.folder, self._table, self._config = folder, table, config
        self.name = config.name or os.path.basename(os.path.abspath(folder.root))
        self._beside = False  # is sound looked for in the usual folders beside the table?
        self._beside = any(self._is_beside(row) for row in rows[:_TRIED] if not isinstance(row, Defect))

    def fields(self, row: TableRow) -> dict[str, Any]:
        """The fields of a record; columns that are no field keep their own names."""
        fields = renamed(row.columns, self._config.columns)
        for field, value in (("split", self._config.split or self._table.split), ("lang", self._config.lang)):
            if value is not None:
                fields.setdefault(field, value)
        named = _key_of(fields.get("audio"), self._table.prefix) or row.key
        if self._beside:
            fields |= self._audio_beside(fields)
        return fields | {"key": str(fields.get("key", named))}

    def _audio_beside(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """Sounds that the record, or its key, names without their folder or suffix."""
        named = {"audio": fields.get("audio", fields.get("key")), "reply_audio": fields.get("reply_audio")}
        found = {
            field: tables.find_audio(self.folder.root, name)
            for field, name in named.items()
            if isinstance(name, str)
        }
        return {field: path for field, path in found.items() if path not in (None, named[field])}

    def _is_beside(self, row: TableRow) -> bool:
        return bool(self._audio_beside(renamed(row.columns, self._config.columns)))


def _key_of(sound: object, prefix: str) -> str | None:
    """A key from the name of a sound, as it stands in the table."""
    if not isinstance(sound, str):
        return None
    return prefix + os.path.splitext(os.path.relpath(sound) if os.path.isabs(sound) else sound)[0]


def _sample(fields: dict[str, Any], folder: AudioFolder, name: str, config: ImportConfig) -> Sample:
    """The finished sample. Raises DataError or AudioError for one that cannot be used."""
    for field in _NUMBERS:
        if isinstance(fields.get(field), str):
            fields[field] = float(fields[field])
    if isinstance(fields.get("speech_ids"), str):
        fields["speech_ids"] = fields["speech_ids"].strip("[]").replace(",", " ").split()
    stored: dict[str, Any] = {}
    for field, file in (("audio", fields["key"]), ("reply_audio", f"{fields['key']}.reply")):
        if isinstance(fields.get(field), EmbeddedAudio):
            stored[field] = AudioRef(_store(fields[field], file, Path(config.out)))
            fields[field] = None
    sample = replace(sample_of(fields, folder, name), **stored)
    problem = next(sample.defects(config.codec_size), None)
    if problem is not None:
        raise DataError(Defect(problem[0], "", reason=problem[1]))
    for audio in sample.audios():
        _refuse_missing(audio)
    if sample.audio is not None and sample.seconds is None:
        return replace(sample, seconds=round(stored_seconds(sample.audio), 6))
    return sample


def _store(sound: EmbeddedAudio, key: str, out: Path) -> str:
    ref = AudioRef(sound.name, data=sound.data)
    path = out.absolute() / "audio" / f"{storage.file_name(key)}{suffix_of(ref, sound.data)}"
    with atomic_path(path) as temporary:
        temporary.write_bytes(sound.data)
    return str(path)


def _refuse_missing(ref: AudioRef) -> None:
    if not storage.exists(ref.path):
        found = "no regular file" if os.path.exists(ref.path) else "nothing there"
        reason = f"expected an audio file, found {found}; say where such paths begin: --audio-root FOLDER"
        raise AudioError(f"{ref.path}: {reason}", "missing")


def remedy_of(report: DefectReport) -> str:
    """What to try where no record came in."""
    kinds = report.counts.keys()
    if not kinds:
        return "the table holds no row"
    if kinds <= {DefectKind.MISSING_AUDIO, DefectKind.PATH_ESCAPE}:
        return "name the folder that holds the sound: --audio-root FOLDER (--within FOLDER for one more)"
    if DefectKind.BAD_TEXT in kinds:
        return "name the encoding of the table (--encoding gbk), or save it as UTF-8"
    return "mend the rows named above, or say which column is which: --map text=COLUMN"
