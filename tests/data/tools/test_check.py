"""A thousand records, a hundred of them spoilt in twenty-four ways: each is found, and only those."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echat.data.audio_loading import AudioLoader
from echat.data.batching import PooledBatches
from echat.data.defects import Defect, DefectKind
from echat.data.examples import CachedTokenizer, DialogueBuilder
from echat.data.formats.corpus import open_corpus
from echat.data.sources import SourceConfig, mixture
from echat.data.tools.check import CheckConfig, Findings, check
from echat.data.tools.cleaning import clean
from echat.model.speech_encoder import EncoderConfig

SHARDS, PER_SHARD = 9, 110
SPOILT = range(10, PER_SHARD, 11)  # records of each shard
S2S = b"<S2TCHAT> <TEXT2TOKEN>"


def tone(seconds: float = 0.2, rate: int = 8000, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    samples = 0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)
    return encoded(samples, rate, subtype, kind)


def encoded(samples: np.ndarray, rate: int = 8000, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, subtype=subtype, format=kind)
    return stream.getvalue()


TONE = tone()
NOT_A_NUMBER = encoded(np.array([0.1, np.nan] * 800), subtype="FLOAT")
HALF_AN_HOUR = encoded(np.full(1_800_000, 0.1), 1000, kind="FLAC")
SILENCE = encoded(np.zeros(1600))


@dataclass
class Record:
    key: str
    members: dict[str, bytes] = field(
        default_factory=lambda: {"txt": b"one two", "wav": TONE, "task": b"<TRANSCRIBE>", "extra": b"{}"}
    )

    def spoil(self, **changed: bytes) -> str:
        """Change members; returns the place of the first one changed."""
        self.members |= changed
        return f"member {self.key}.{next(iter(changed))}"


def spoil(record: Record, kind: DefectKind) -> tuple[str, str | None]:
    """Plant a defect in the members of a record; returns place and key that a report shall name."""
    sounds = {
        DefectKind.EMPTY_AUDIO: b"",
        DefectKind.UNDECODABLE_AUDIO: b"\1\2\3" * 99,
        DefectKind.TRUNCATED_AUDIO: TONE[: len(TONE) // 2],
        DefectKind.SAMPLE_RATE: TONE[:24] + struct.pack("<I", 1) + TONE[28:],
        DefectKind.NOT_FINITE: NOT_A_NUMBER,
        DefectKind.SILENT_AUDIO: SILENCE,
        DefectKind.TOO_SHORT: tone(0.01),
    }
    first = f"member {record.key}.txt"
    if kind in sounds:
        return record.spoil(wav=sounds[kind]), record.key
    if kind is DefectKind.TOO_LONG:
        del record.members["wav"]
        return record.spoil(flac=HALF_AN_HOUR), record.key
    if kind is DefectKind.MISSING_AUDIO:
        del record.members["wav"]
    elif kind is DefectKind.MISSING_FIELD:
        del record.members["txt"]
        first = f"member {record.key}.wav"
    elif kind is DefectKind.DURATION:
        record.members["duration"] = b"9.5"
    elif kind is DefectKind.BAD_JSON:
        return record.spoil(extra=b'{"age": '), record.key
    elif kind is DefectKind.BAD_TEXT:
        return record.spoil(txt=b"\xff\xfe"), record.key
    elif kind is DefectKind.UNKNOWN_TASK:
        record.spoil(task=b"<JUGGLE>")
    elif kind is DefectKind.BAD_FIELD:
        record.spoil(extra=b'{"speech_token": "1 2 3"}')
    elif kind is DefectKind.SPEECH_ID_RANGE:
        record.spoil(task=S2S, extra=b'{"speech_token": [1, 2, 3, 4096, 5]}')
    elif kind is DefectKind.SPEECH_TOO_SHORT:
        record.spoil(task=S2S, txt=b"far more words than ids", extra=b'{"speech_token": [1, 2]}')
    elif kind is DefectKind.PATH_ESCAPE:
        record.key = f"../{record.key}"
        first = f"member {record.key}.txt"
    elif kind is DefectKind.FOREIGN_MEMBER:
        record.members = {"": b"no field"}
        return f"member {record.key}", None
    return first, record.key


IN_RECORDS = (
    *(
        DefectKind.EMPTY_AUDIO,
        DefectKind.UNDECODABLE_AUDIO,
        DefectKind.TRUNCATED_AUDIO,
        DefectKind.SAMPLE_RATE,
        DefectKind.NOT_FINITE,
    ),
    *(
        DefectKind.SILENT_AUDIO,
        DefectKind.TOO_SHORT,
        DefectKind.TOO_LONG,
        DefectKind.MISSING_AUDIO,
        DefectKind.MISSING_FIELD,
    ),
    *(
        DefectKind.DURATION,
        DefectKind.BAD_JSON,
        DefectKind.BAD_TEXT,
        DefectKind.UNKNOWN_TASK,
        DefectKind.BAD_FIELD,
        DefectKind.DUPLICATE_KEY,
    ),
    *(
        DefectKind.SPEECH_ID_RANGE,
        DefectKind.SPEECH_TOO_SHORT,
        DefectKind.PATH_ESCAPE,
        DefectKind.FOREIGN_MEMBER,
    ),
)


@dataclass
class Planted:
    """The set, what is wrong with it, and the keys of what is not."""

    shards: Path
    defects: Counter[tuple[str, str, str, str | None]] = field(default_factory=Counter)
    good: set[str] = field(default_factory=set)

    def note(self, kind: DefectKind, path: Path, place: str = "", key: str | None = None) -> None:
        self.defects[kind.value, path.name, place, key] += 1


def plant(folder: Path) -> Planted:
    """1,000 records in 19 shards, 100 defects that spoil one record each."""
    folder.mkdir(parents=True, exist_ok=True)
    planted = Planted(folder / "shards_list.txt")
    kinds = cycle(IN_RECORDS)
    names = [_plant_shard(folder, number, planted, kinds) for number in range(SHARDS)]
    for number in range(10):
        path = folder / f"single_{number}.tar"
        names.append(path.name)
        if number < 4:
            planted.note(DefectKind.MISSING_FILE, path)
        elif number < 7:
            path.mkdir()
            planted.note(DefectKind.UNREADABLE_FILE, path)
        else:
            _write_tar(path, [Record(f"single{number}")])
            path.write_bytes(gzip.compress(path.read_bytes()))
            planted.note(DefectKind.NOT_AN_ARCHIVE, path)
    planted.shards.write_text("".join(f"{name}\n" for name in names))
    return planted


def _plant_shard(folder: Path, number: int, planted: Planted, kinds: cycle[DefectKind]) -> str:
    path = folder / f"set_{number}.tar"
    records = [Record(f"s{number}r{place:03d}") for place in range(PER_SHARD)]
    cut, damaged = number < 3, 3 <= number < 6
    for place, record in enumerate(records):
        in_archive = (cut and place == SPOILT[-1]) or (damaged and place == SPOILT[4])
        if place not in SPOILT:
            planted.good.add(record.key)
        elif not in_archive:
            kind = next(kinds)
            if kind is DefectKind.DUPLICATE_KEY:  # of a record before it, in this shard or in an earlier one
                record.key = f"s{number % 2 * number}r{place - 3:03d}"
            planted.note(kind, path, *spoil(record, kind))
    offsets = _write_tar(path, records)
    data = bytearray(path.read_bytes())
    if cut:
        last = records[-1]
        planted.note(DefectKind.TRUNCATED_ARCHIVE, path, f"member {last.key}.extra", last.key)
        path.write_bytes(data[: offsets[f"{last.key}.extra"] + 513])
    if damaged:
        hurt = records[SPOILT[4]]
        header = offsets[f"{hurt.key}.wav"]
        data[header : header + 4] = b"oops"
        planted.note(DefectKind.DAMAGED_ARCHIVE, path, f"byte {header}", hurt.key)
        path.write_bytes(data)
    return path.name


def _write_tar(path: Path, records: list[Record]) -> dict[str, int]:
    """Where the header of each member lies."""
    offsets = {}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            for name, data in record.members.items():
                info = tarfile.TarInfo(f"{record.key}.{name}" if name else record.key)
                info.size = len(data)
                offsets[info.name] = tar.offset
                tar.addfile(info, io.BytesIO(data))
    return offsets


def reported(found: Findings) -> Counter[tuple[str, str, str, str | None]]:
    return Counter((d.kind.value, Path(d.file).name, d.place, d.key) for d in found.defects)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def found(planted) -> Findings:
    return check(CheckConfig(source=str(planted.shards)))


def test_each_planted_defect_is_reported_with_its_place_and_kind(planted, found):
    assert planted.defects.total() == 100 and len({kind for kind, *_ in planted.defects}) >= 24
    assert found.defects.total == 100
    assert reported(found) == planted.defects
    assert len(planted.good) == found.totals.records == 900
    assert found.totals.words["task"] == {"asr": 900} and found.totals.seconds["question"] == pytest.approx(
        180
    )


@pytest.mark.slow
def test_ray_reports_the_same_of_the_planted_set(planted, found):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'echat-speech[ray]'")
    through_ray = check(CheckConfig(source=str(planted.shards)), engine="ray")
    assert reported(through_ray) == planted.defects
    assert through_ray.as_dict() == found.as_dict()


def test_good_records_are_delivered_as_they_are(planted, found, tokenizer, vocabulary):
    corpus = open_corpus(planted.shards)
    good = [corpus[n] for n in range(len(corpus)) if n not in set(found.bad)]
    assert {sample.key for sample in good} == planted.good
    assert all(sample.target == "one two" and sample.audio.read_bytes() == TONE for sample in good)
    build = DialogueBuilder(CachedTokenizer(tokenizer), vocabulary, AudioLoader(), EncoderConfig())
    stream = mixture([SourceConfig(path=str(planted.shards), format="shard")], 0, epochs=1)
    batches = PooledBatches(stream, build, list, 2000, 64)
    delivered = Counter(example.key for batch in batches for example in batch)
    assert planted.good <= delivered.keys()
    others = delivered - Counter(planted.good)  # can be trained on in spite of defects
    assert sum(others.values()) == sum(
        count
        for (kind, file, _, key), count in planted.defects.items()
        if kind == DefectKind.DURATION
        or (kind == DefectKind.DUPLICATE_KEY and not file.endswith(f"{key[1]}.tar"))
    )


def test_a_cleaned_set_has_no_defects_and_the_same_good_records(planted, found, tmp_path):
    clean(CheckConfig(source=str(planted.shards)), found.bad, tmp_path / "clean")
    again = check(CheckConfig(source=str(tmp_path / "clean")))
    assert not again.defects and not again.bad
    assert again.totals.as_dict() == found.totals.as_dict()
    assert {sample.key for sample in open_corpus(tmp_path / "clean")} == planted.good


def test_strict_stops_at_the_first(planted):
    found = check(CheckConfig(source=str(planted.shards)), strict=True)
    assert found.defects.total == 1


@pytest.fixture
def listed(tmp_path) -> Path:
    """A manifest in which line 2 names no file, line 4 a sound of another length, line 5 is no JSON."""
    (tmp_path / "a.wav").write_bytes(TONE)
    rows = [
        {"key": "a", "audio": "a.wav", "text": "one", "speech_ids": [1, 2, 3], "gender": "female"},
        {"key": "b", "audio": "b.wav", "text": "two"},
        {"key": "c", "text": "three", "reply": "four", "thought": "five", "more": 6},
        {"key": "d", "audio": "a.wav", "duration_s": 3.0},
    ]
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    return path


def test_defects_of_lists_are_named_by_their_lines(listed):
    found = check(CheckConfig(source=str(listed), job_size=2))
    assert [(d.kind, d.place, d.key) for d in found.defects] == [
        (DefectKind.BAD_JSON, "line 5", None),
        (DefectKind.MISSING_AUDIO, "line 2", "b"),
        (DefectKind.DURATION, "line 4", "d"),
    ]
    assert "b.wav" in found.defects.first(DefectKind.MISSING_AUDIO)[0].reason
    assert found.totals.words["gender"] == {"female": 1, "not known": 1}


def test_a_cleaned_list_is_at_home_in_any_folder(listed, tmp_path):
    config = CheckConfig(source=str(listed))
    clean(config, check(config).bad, tmp_path / "far" / "away")
    before, after = open_corpus(listed), list(open_corpus(tmp_path / "far" / "away", within="/"))
    assert [sample.key for sample in after] == ["a", "c"]
    assert after[0].speech_ids == before[0].speech_ids and after[0].audio.read_bytes() == TONE
    assert after[1].extra == {"more": 6}
    assert not check(CheckConfig(source=str(tmp_path / "far" / "away"), within="/")).defects


def test_cleaned_combines_keep_their_tars(published, tmp_path):
    rows = (published / "combine" / "shards_000000000.list").read_text().splitlines()
    (published / "combine" / "shards_000000000.list").write_text("\n".join(["{", *rows[1:]]))
    config = CheckConfig(source=str(published / "combine"))
    found = check(config)
    assert found.bad and all(isinstance(defect, Defect) for defect in found.defects)
    clean(config, found.bad, tmp_path / "clean")
    assert not check(CheckConfig(source=str(tmp_path / "clean"))).bad
    assert not list((tmp_path / "clean").glob("*.tar"))
    assert len(open_corpus(tmp_path / "clean")) == found.totals.records
