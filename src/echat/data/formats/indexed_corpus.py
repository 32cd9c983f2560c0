"""Random access to the records of a corpus: the common base, and the two formats that are JSON-lines lists.

A corpus returns any record by number and refuses each bad one with its position. It holds indexes only, read
when first used, and is pickled as paths.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from typing import Any

from echat.audio.speech_tokens import CODEC_SIZE
from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind, defect_from
from echat.data.formats.audio_folder import AudioFolder
from echat.data.formats.jsonl import JsonLines
from echat.data.formats.manifest import SPEECH_IDS, SpeechIdSidecar, sample_of
from echat.data.formats.osum_record import from_record
from echat.data.formats.osum_text import without_transcript
from echat.data.sample import AudioRef, Sample
from echat.dialogue.tasks import TASKS

_COMPARED = 10_000  # keys that one not found is compared with: looking for a slip shall not take minutes
_SOUND = re.compile(r"(?:reply_|question_)?wav|wav_\d+")


@dataclass(frozen=True)
class ReadOptions:
    """How records are looked at, whatever their format."""

    codec_size: int = CODEC_SIZE
    """Speech ids from here up are refused."""
    without_transcript: bool = False
    """Words and one label become the label alone, transcript and reply the reply alone."""


@dataclass(slots=True)
class RecordRow:
    """One record before it is parsed."""

    fields: Mapping[str, Any]
    file: str
    place: str
    sounds: Mapping[str, AudioRef]

    @property
    def key(self) -> str | None:
        key = self.fields.get("key")
        return None if key is None else str(key)

    def refuse(self, kind: DefectKind, reason: str) -> DataError:
        return DataError(Defect(kind, self.file, self.place, self.key, reason))


class IndexedCorpus(ABC):
    """Records by number; subclasses say where a record lies and how it is read."""

    def __init__(self, name: str, options: ReadOptions) -> None:
        self.name = name
        self.options = options

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> RecordRow:
        """The record as stored. Raises an error when it cannot be read."""

    def defects(self) -> Iterator[Defect]:
        """What is wrong beside single records: missing shards, foreign members, damaged archives."""
        return iter(())

    def __getitem__(self, index: int, /) -> Sample:
        """The sample. Raises DataError for a bad record; its neighbours are not touched."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: expected a record number below {len(self)}, found {index}")
        row = None
        try:
            row = self.row(index)
            sample = self.parse(row)
            problem = next(self.problems(sample), None)
        except Exception as error:  # one data row: whatever is wrong with it is a defect
            where = (
                (row.file, row.place, row.key) if row is not None else (self.name, f"record {index}", None)
            )
            raise DataError(defect_from(error, *where)) from error
        if problem is not None:
            raise row.refuse(*problem)
        return without_transcript(sample) if self.options.without_transcript else sample

    @abstractmethod
    def keys(self) -> Iterator[tuple[int, str]]:
        """(number, key) of the records, as far as their keys can be got without reading them."""

    def find(self, key: str) -> int:
        """The number of the first record of that key. Raises DataError when there is none."""
        for number, known in self.keys():
            if known == key:
                return number
        near = get_close_matches(key, [known for _, known in islice(self.keys(), _COMPARED)], n=1)
        advice = f"did you mean {near[0]!r}?" if near else "echat data check lists what is wrong"
        reason = f"expected a record of that key among {len(self)}, found none; {advice}"
        raise DataError(Defect(DefectKind.MISSING_FIELD, self.name, key=key, reason=reason))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def parse(self, row: RecordRow) -> Sample:
        return from_record(row.fields, row.sounds, self.name)

    def problems(self, sample: Sample) -> Iterator[tuple[DefectKind, str]]:
        yield from sample.defects(self.options.codec_size)
        if sample.task is not None and TASKS[sample.task].input_modality == "audio" and sample.audio is None:
            yield (
                DefectKind.MISSING_AUDIO,
                f"field wav: expected sound for task {sample.task}, found none",
            )


class LineCorpus(IndexedCorpus):
    """JSON lines that name their audio."""

    def __init__(self, path: str, name: str, folder: AudioFolder, options: ReadOptions) -> None:
        super().__init__(name, options)
        self.path = path
        self.folder = folder
        self.lines = JsonLines(path)

    def __len__(self) -> int:
        return len(self.lines)

    def keys(self) -> Iterator[tuple[int, str]]:
        return self.lines.keyed()

    def row(self, index: int) -> RecordRow:
        fields, place = self.lines[index]
        return RecordRow(fields, self.path, place, {})


class ManifestCorpus(LineCorpus):
    """Our own manifest, with the speech ids beside it."""

    def __init__(self, path: str, name: str, folder: AudioFolder, options: ReadOptions) -> None:
        super().__init__(path, name, folder, options)
        self._sidecar = SpeechIdSidecar(storage.join(storage.parent(path), SPEECH_IDS))

    def parse(self, row: RecordRow) -> Sample:
        sample = sample_of(row.fields, self.folder, self.name)
        ids = self._sidecar.get(sample.key)
        return replace(sample, speech_ids=ids) if ids else sample

    def problems(self, sample: Sample) -> Iterator[tuple[DefectKind, str]]:
        return sample.defects(self.options.codec_size)


class RawCorpus(LineCorpus):
    """The published raw list."""

    def parse(self, row: RecordRow) -> Sample:
        fields = row.fields
        if not isinstance(fields.get("wav"), str):
            raise row.refuse(
                DefectKind.MISSING_FIELD, f"field wav: expected a path, found {fields.get('wav')!r}"
            )
        sounds = {
            name: AudioRef(self.folder.find(str(path), name))
            for name, path in fields.items()
            if path and _SOUND.fullmatch(name)
        }
        start, end = fields.get("start"), fields.get("end")
        if "wav" in sounds and (start, end) != (None, None):
            sounds["wav"] = replace(sounds["wav"], start_seconds=start, end_seconds=end)
        return from_record(fields, sounds, self.name)
