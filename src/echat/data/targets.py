"""What a conversion writes: shards, combines, and lists with audio files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from echat.checkpoint import atomic_path
from echat.data.corpus import COMBINES_LIST, COMBINES_TAR_ROOT, ONLY_META, RAW_LIST, SHARDS_LIST
from echat.data.defects import DefectReport
from echat.data.encoding import Storage, encode
from echat.data.osum_format import to_record
from echat.data.output_files import (
    FINISHED,
    beside,
    join,
    once,
    row_bytes,
    write_lines,
    write_rows,
    write_sums,
)
from echat.data.sample import Sample
from echat.data.shards import open_shard
from echat.data.tar_writer import TarWriter, shard_extra, shard_members
from echat.dialogue.labels import tag

PREFIX = "shards"  # of shard names, as in the published example


class Target(Protocol):
    """Where jobs put their records."""

    def marker(self, number: int) -> Path:
        """The file that says that a job is finished."""

    def write(self, number: int, samples: Iterable[Sample], defects: DefectReport) -> int:
        """Write the records of a job; returns how many. What cannot be written is counted."""

    def finish(self, numbers: Sequence[int]) -> None:
        """Write the lists, given the jobs that have records."""


class ShardTarget:
    """Tars named by number, with checksum and index beside each."""

    def __init__(self, out: Path, audio: Storage) -> None:
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
            for sample in once(samples, path, defects):
                members = _members(sample, self._encode, path, defects)
                writer.write(*members)
                count += bool(members)
            writer.close()
        write_sums(path, [(writer.sha256.hexdigest(), path.name)])
        open_shard(str(path))  # leaves the index beside it
        return count

    def finish(self, numbers: Sequence[int]) -> None:
        write_lines(self.out / SHARDS_LIST, (self.tar(number).name for number in numbers))


class CombineTarget(ShardTarget):
    """Whole shards, and their metadata once more as JSON lines that can be edited."""

    def __init__(self, out: Path, audio: Storage) -> None:
        super().__init__(out, audio)
        self.folder = out / "tars"

    def marker(self, number: int) -> Path:
        return beside(self._rows(number), FINISHED)

    def write(self, number: int, samples: Iterable[Sample], defects: DefectReport) -> int:
        rows: list[bytes] = []
        keys: list[str] = []
        count = super().write(number, _noted(samples, self.tar(number), rows, keys, defects), defects)
        written = set(open_shard(str(self.tar(number))).keys())
        write_rows(self._rows(number), [row for key, row in zip(keys, rows) if key in written])
        return count

    def finish(self, numbers: Sequence[int]) -> None:
        names = [self._rows(number).name for number in numbers]
        write_combine_lists(self.out, names, os.path.relpath(self.folder, self.out))

    def _rows(self, number: int) -> Path:
        return self.out / f"{self.tar(number).stem}.list"


class ReusingTarget:
    """Metadata beside tars that are there already."""

    def __init__(self, out: Path, tars: Sequence[str]) -> None:
        self.out = out
        self.tars = [Path(tar) for tar in tars]

    def marker(self, number: int) -> Path:
        return beside(self._rows(number), FINISHED)

    def write(self, number: int, samples: Iterable[Sample], defects: DefectReport) -> int:
        rows: list[bytes] = []
        first = once(samples, self._rows(number), defects)
        for _ in _noted(first, self.tars[number], rows, [], defects):
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
    with defects.border(ref.path if ref else str(path), key=sample.key):
        members = shard_members(sample, encode)
    return members


def _noted(
    samples: Iterable[Sample], tar: Path, rows: list[bytes], keys: list[str], defects: DefectReport
) -> Iterator[Sample]:
    """The samples themselves, each with its combine row put aside."""
    for sample in samples:
        row = None
        with defects.border(str(tar), key=sample.key):
            row = row_bytes(combine_row(sample, tar.stem))
        if row is not None:
            rows.append(row)
            keys.append(sample.key)
            yield sample


def combine_row(sample: Sample, stem: str) -> dict[str, Any]:
    """The line of a combine list, for a record whose sound is in the tar of that stem.

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
