"""What a conversion writes: shards, combines, and lists with audio files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from echat.checkpoint import atomic_path
from echat.data import storage
from echat.data.defects import DefectReport
from echat.data.formats.audio_encoding import AudioStorage, encode
from echat.data.formats.manifest import MANIFEST, row_of
from echat.data.formats.osum_record import (
    COMBINES_LIST,
    COMBINES_TAR_ROOT,
    ONLY_META,
    RAW_LIST,
    SHARDS_LIST,
    to_record,
)
from echat.data.formats.shard_index import open_shard
from echat.data.formats.tar_writer import TarWriter, shard_extra, shard_members
from echat.data.formats.text_files import (
    FINISHED,
    beside,
    join,
    row_bytes,
    write_lines,
    write_rows,
    write_sums,
)
from echat.data.sample import AudioRef, Sample, Turn
from echat.data.tools.output_files import drop_duplicates
from echat.dialogue.labels import tag

PREFIX = "shards"  # of shard names, as in the published example


class CorpusWriter(Protocol):
    """Writer of one output format, job by job."""

    def marker(self, number: int) -> Path:
        """The file that says that a job is finished."""

    def write(self, number: int, samples: Iterable[Sample], defects: DefectReport) -> int:
        """Write the records of a job; returns how many. What cannot be written is counted."""

    def finish(self, numbers: Sequence[int]) -> None:
        """Write the lists, given the jobs that have records."""


class ShardWriter:
    """Tars named by number, with checksum and index beside each."""

    def __init__(self, out: Path, audio: AudioStorage) -> None:
        self.out = out
        self.folder = out
        self._encode = partial(encode, how=audio)

    def tar(self, number: int) -> Path:
        return self.folder / f"{PREFIX}_{number:09d}.tar"

    def marker(self, number: int) -> Path:
        return beside(self.tar(number), FINISHED)

    def write(self, number: int, samples: Iterable[Sample], defects: DefectReport) -> int:
        path, count = self.tar(number), 0
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            writer = TarWriter(stream)
            for sample in drop_duplicates(samples, path, defects):
                members = _members(sample, self._encode, path, defects)
                writer.write(*members)
                count += bool(members)
            writer.close()
        write_sums(path, [(writer.sha256.hexdigest(), path.name)])
        open_shard(str(path))  # leaves the index beside it
        return count

    def finish(self, numbers: Sequence[int]) -> None:
        write_lines(self.out / SHARDS_LIST, (self.tar(number).name for number in numbers))


class CombineWriter(ShardWriter):
    """Whole shards, and their metadata once more as JSON lines that can be edited."""

    def __init__(self, out: Path, audio: AudioStorage) -> None:
        super().__init__(out, audio)
        self.folder = out / "tars"

    def marker(self, number: int) -> Path:
        return beside(self._rows(number), FINISHED)

    def write(self, number: int, samples: Iterable[Sample], defects: DefectReport) -> int:
        rows: list[bytes] = []
        keys: list[str] = []
        count = super().write(number, _with_rows(samples, self.tar(number), rows, keys, defects), defects)
        written = set(open_shard(str(self.tar(number))).keys())
        write_rows(self._rows(number), [row for key, row in zip(keys, rows) if key in written])
        return count

    def finish(self, numbers: Sequence[int]) -> None:
        names = [self._rows(number).name for number in numbers]
        write_combine_lists(self.out, names, os.path.relpath(self.folder, self.out))

    def _rows(self, number: int) -> Path:
        return self.out / f"{self.tar(number).stem}.list"


class MetadataWriter:
    """Metadata beside tars that are there already."""

    def __init__(self, out: Path, tars: Sequence[str]) -> None:
        self.out = out
        self.tars = [Path(tar) for tar in tars]

    def marker(self, number: int) -> Path:
        return beside(self._rows(number), FINISHED)

    def write(self, number: int, samples: Iterable[Sample], defects: DefectReport) -> int:
        rows: list[bytes] = []
        first = drop_duplicates(samples, self._rows(number), defects)
        for _ in _with_rows(first, self.tars[number], rows, [], defects):
            pass
        write_rows(self._rows(number), rows)
        return len(rows)

    def finish(self, numbers: Sequence[int]) -> None:
        names = [self._rows(number).name for number in numbers]
        write_combine_lists(self.out, names, os.path.abspath(self.tars[0].parent) if self.tars else ".")

    def _rows(self, number: int) -> Path:
        return self.out / f"{self.tars[number].stem}.list"


def _members(sample: Sample, encode: Any, path: Path, defects: DefectReport) -> list[bytes]:
    """All members of a record, or none where one of them cannot be."""
    ref = sample.audio or sample.reply_audio
    members: list[bytes] = []
    with defects.catch(ref.path if ref else str(path), key=sample.key):
        members = shard_members(sample, encode)
    return members


def _with_rows(
    samples: Iterable[Sample], tar: Path, rows: list[bytes], keys: list[str], defects: DefectReport
) -> Iterator[Sample]:
    """The samples themselves, each with its combine row put aside."""
    for sample in samples:
        row = None
        with defects.catch(str(tar), key=sample.key):
            row = row_bytes(combine_row(sample, tar.stem))
        if row is not None:
            rows.append(row)
            keys.append(sample.key)
            yield sample


def combine_row(sample: Sample, stem: str) -> dict[str, Any]:
    """The line of a combine list, for a record whose sound is in the tar of that name.

    As published, what only a member says is repeated where readers of the lines look for it.
    """
    record, _ = to_record(sample)
    extra = shard_extra(record)
    extra.pop("duration", None)
    question = extra.get("question")
    if question is not None and sample.text == question and sample.target is None:
        extra.setdefault("q_txt", question)
    if "gender" in record and sample.labels.gender is not None:
        extra.setdefault("gender", tag("gender", sample.labels.gender))
    head = {"key": sample.key, "txt": record["txt"], "wav": ONLY_META, "extra": extra}
    return {**head, "tar_path_key": stem, "task": record["task"]}


def write_combine_lists(out: Path, names: Sequence[str], tar_root: str) -> None:
    join([out / name for name in names], out / RAW_LIST)
    write_lines(out / COMBINES_TAR_ROOT, [tar_root])
    write_lines(out / COMBINES_LIST, names)


# --- A conversion to a list: JSON lines, and the sound in files.


class ListWriter:
    """A raw list or a manifest, with the sound in files. Sound in files of its own stays where it is."""

    def __init__(
        self, out: Path, audio: AudioStorage, kind: Literal["raw", "manifest"], copy_audio: bool
    ) -> None:
        self.out = out
        self.kind = kind
        self._encode = partial(encode, how=audio)
        self._stores_all = copy_audio or audio != "keep"

    def marker(self, number: int) -> Path:
        return beside(self._part(number), FINISHED)

    def write(self, number: int, samples: Iterable[Sample], defects: DefectReport) -> int:
        part = self._part(number)
        folder = self.out / "audio" / part.stem
        shutil.rmtree(folder, ignore_errors=True)
        sums: list[tuple[str, str]] = []
        rows: list[bytes] = []
        for sample in drop_duplicates(samples, part, defects):
            row, sounds = None, dict[Path, bytes]()
            with defects.catch(str(part), key=sample.key):
                row = row_bytes(self._row(self._with_files(sample, folder, sounds)))
            if row is not None:
                rows.append(row)
                sums += self._stored(sounds)
        write_rows(part, rows, sums)
        return len(rows)

    def finish(self, numbers: Sequence[int]) -> None:
        whole = self.out / (RAW_LIST if self.kind == "raw" else MANIFEST)
        digest = join([self._part(number) for number in numbers], whole)
        write_sums(whole, [(digest, whole.name)])

    def _part(self, number: int) -> Path:
        return self.out / "parts" / f"{number:09d}.list"

    def _row(self, sample: Sample) -> dict[str, Any]:
        if self.kind == "manifest":
            return row_of(sample, self.out)
        record, sounds = to_record(sample)
        paths = {name: _relative(ref, self.out) for name, ref in sounds.items()}
        row = {"key": record["key"], "wav": paths.pop("wav", ""), "txt": record["txt"], **paths, **record}
        main = sounds.get("wav")
        for name in ("start", "end"):
            seconds = getattr(main, f"{name}_seconds", None)
            row |= {} if seconds is None else {name: seconds}
        return row

    def _stored(self, sounds: dict[Path, bytes]) -> Iterator[tuple[str, str]]:
        """(checksum, name) of sounds, each written to its file."""
        for path, data in sounds.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            yield hashlib.sha256(data).hexdigest(), os.path.relpath(path, self.out / "parts")

    def _with_files(self, sample: Sample, folder: Path, sounds: dict[Path, bytes]) -> Sample:
        """The sample with its sounds in files; what these files shall hold is put into ``sounds``."""

        def stored(ref: AudioRef | None, name: str) -> AudioRef | None:
            if ref is None or (ref.is_file and not self._stores_all):
                return ref
            data, suffix = self._encode(ref)
            path = folder / f"{storage.file_name(sample.key)}{name}{suffix}"
            sounds[path] = data
            return AudioRef(str(path))

        def turn_with_file(number: int, turn: Turn) -> Turn:
            return replace(turn, audio=stored(turn.audio, f".turn{number}"))

        return replace(
            sample,
            audio=stored(sample.audio, ""),
            reply_audio=stored(sample.reply_audio, ".reply"),
            history=tuple(turn_with_file(n, turn) for n, turn in enumerate(sample.history, 1)),
        )


def _relative(ref: AudioRef, out: Path) -> str:
    inside = Path(ref.path).absolute()
    return str(inside.relative_to(out.absolute())) if inside.is_relative_to(out.absolute()) else str(inside)
