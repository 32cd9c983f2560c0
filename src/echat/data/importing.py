"""Tables of users, and folders of sound, as a manifest of ours."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from echat.audio.errors import AudioError
from echat.checkpoint import atomic_path
from echat.config import Config, nearest
from echat.data import tables
from echat.data.corpus import MANIFEST
from echat.data.defects import DataError, Defect, DefectReport, Kind, defect_of
from echat.data.encoding import suffix_of
from echat.data.folder import Folder
from echat.data.list_target import file_name
from echat.data.manifest import FIELDS, row_of, sample_of
from echat.data.output_files import write_sums
from echat.data.sample import CODEC_SIZE, AudioRef, Sample

ALIASES = {
    "key": ("id", "utt_id", "utterance_id", "uid"),
    "audio": ("path", "file", "file_name", "filename", "audio_path", "audio_file", "audio_filepath", "wav"),
    "text": ("sentence", "transcript", "transcription", "txt", "normalized_text"),
    "lang": ("language", "locale"),
    "duration_s": ("duration", "seconds"),
}
_NUMBERS = ("duration_s", "start_seconds", "end_seconds")


class ImportConfig(Config):
    """What to import, and how its columns are called."""

    source: str  # a CSV, TSV or JSON-lines file, a folder, or hf://NAME
    out: str  # folder of the manifest
    columns: dict[str, str] = {}  # our field -> column of the source; the usual names are known
    audio_root: str | None = None  # where relative audio paths begin; None: where the table lies
    name: str | None = None  # of the corpus; None: that of the folder
    split: str | None = None  # of all records, where no column says it
    lang: str | None = None
    codec_size: int = CODEC_SIZE


def import_corpus(
    config: ImportConfig, strict: bool = False, progress: Callable[[int], None] = lambda done: None
) -> tuple[int, DefectReport]:
    """Write ``manifest.jsonl`` into the folder; returns how many records, and what was left out and why.

    Sound in files stays where it is; sound that a data set holds as bytes is written beside the manifest.
    Raises DataError where a column is named that is no field, or ``strict`` meets a defect.
    """
    for field in config.columns:
        if field not in FIELDS:
            raise DataError(f"--map {field}=...: expected a field of a record, {nearest(field, FIELDS)}")
    report, count, digest = DefectReport(strict), 0, hashlib.sha256()
    path = Path(config.out) / MANIFEST
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for sample in _samples(config, report):
            line = json.dumps(row_of(sample, config.out), ensure_ascii=False).encode() + b"\n"
            stream.write(line)
            digest.update(line)
            count += 1
            progress(count)
    write_sums(path, [(digest.hexdigest(), path.name)])
    return count, report


def _samples(config: ImportConfig, report: DefectReport) -> Iterator[Sample]:
    root = config.audio_root or tables.table_folder(config.source)
    folder = Folder.closed(os.path.abspath(root))
    name = config.name or os.path.basename(os.path.abspath(root))
    seen: set[str] = set()
    for row in tables.rows_of(config.source, root):
        if isinstance(row, Defect):
            report.add(row)
            continue
        fields = _fields(row.columns, config)
        try:
            sample = _sample(fields, folder, name, config)
            if sample.key in seen:
                reason = "expected a key of its own, found that of an earlier record; the first one is kept"
                raise DataError(Defect(Kind.DUPLICATE_KEY, "", reason=reason))
        except Exception as error:  # the border of one data row
            key = fields.get("key")
            report.add(defect_of(error, config.source, row.place, None if key is None else str(key)))
            continue
        seen.add(sample.key)
        yield sample


def _fields(columns: Mapping[str, Any], config: ImportConfig) -> dict[str, Any]:
    """The row under our names; columns that are no field keep their own."""
    fields = dict(columns)
    wanted = {field: (name,) for field, name in config.columns.items()}
    for field, names in {**{f: n for f, n in ALIASES.items() if f not in columns}, **wanted}.items():
        found = next((name for name in names if name in columns), None)
        if found is not None:
            fields.pop(found, None)
            fields[field] = columns[found]
    for field, value in (("split", config.split), ("lang", config.lang)):
        if value is not None:
            fields.setdefault(field, value)
    return fields


def _sample(fields: dict[str, Any], folder: Folder, name: str, config: ImportConfig) -> Sample:
    """The finished sample. Raises DataError or AudioError for one that cannot be used."""
    sound = fields.get("audio")
    if "key" not in fields and isinstance(sound, str):
        fields["key"] = os.path.splitext(os.path.relpath(sound) if os.path.isabs(sound) else sound)[0]
    fields["key"] = str(fields.get("key", ""))
    for field in _NUMBERS:
        if isinstance(fields.get(field), str):
            fields[field] = float(fields[field])
    if isinstance(fields.get("speech_ids"), str):
        fields["speech_ids"] = fields["speech_ids"].strip("[]").replace(",", " ").split()
    if isinstance(sound, tables.Sound):
        fields["audio"] = _store(sound, fields["key"], Path(config.out))
    sample = sample_of(fields, folder, name)
    problem = next(sample.defects(config.codec_size), None)
    if problem is not None:
        raise DataError(Defect(problem[0], "", reason=problem[1]))
    if sample.audio is not None and sample.seconds is None:
        fields["duration_s"] = _seconds(sample.audio)
        sample = sample_of(fields, folder, name)
    return sample


def _store(sound: tables.Sound, key: str, out: Path) -> str:
    ref = AudioRef(sound.name, data=sound.data)
    path = out.absolute() / "audio" / f"{file_name(key)}{suffix_of(ref, sound.data)}"
    with atomic_path(path) as temporary:
        temporary.write_bytes(sound.data)
    return str(path)


def _seconds(ref: AudioRef) -> float:
    """Length as the header of the file says it."""
    import soundfile

    from echat.audio.decoding import seconds_of

    if not os.path.isfile(ref.path):
        raise AudioError(
            f"{ref.path}: expected an audio file, found nothing there; check the path", "missing"
        )
    if not os.path.getsize(ref.path):
        raise AudioError(f"{ref.path}: expected an audio file, found 0 bytes", "empty")
    try:
        whole = seconds_of(ref.path)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{ref.path}: expected sound, found: {error}", "undecodable") from error
    end = whole if ref.end_seconds is None else min(ref.end_seconds, whole)
    return round(end - (ref.start_seconds or 0.0), 6)
