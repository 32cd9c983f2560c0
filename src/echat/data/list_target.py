"""A conversion to a list: JSON lines, and the sound in files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from echat.data.corpus import MANIFEST, RAW_LIST
from echat.data.defects import DefectReport
from echat.data.encoding import Storage, encode
from echat.data.manifest import row_of
from echat.data.osum_format import to_record
from echat.data.output_files import (
    FINISHED,
    beside,
    join,
    once,
    row_bytes,
    write_rows,
    write_sums,
)
from echat.data.sample import AudioRef, Sample, Turn

_LONGEST_NAME = 120


class ListTarget:
    """A raw list or a manifest, with the sound in files. Sound in files of its own stays where it is."""

    def __init__(self, out: Path, audio: Storage, kind: Literal["raw", "manifest"], copy_audio: bool) -> None:
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
        for sample in once(samples, part, defects):
            row, sounds = None, dict[Path, bytes]()
            with defects.border(str(part), key=sample.key):
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
        """(checksum, name) of sounds, each written to its place."""
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
            path = folder / f"{file_name(sample.key)}{name}{suffix}"
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


def file_name(key: str) -> str:
    """A file name for any key, another one for every other key."""
    name = quote(key, safe=" ")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
