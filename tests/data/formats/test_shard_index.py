"""Tars read at random: what is whole is given, what is not is named, in a damaged archive as well."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import read
from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind, DefectReport, defect_from
from echat.data.formats.corpus import open_corpus
from echat.data.formats.shard_index import open_shard
from echat.data.formats.tar_members import Member, members
from echat.data.formats.tar_writer import TarWriter
from echat.data.sample import AudioRef

RNG = np.random.default_rng(0)


def sound(samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV", subtype=subtype)
    return stream.getvalue()


GOOD = sound(RNG.uniform(-0.5, 0.5, 800))
NAN = sound(np.array([0.1] * 400 + [np.nan] * 400, np.float32), subtype="FLOAT")
HALF_AN_HOUR = sound(RNG.uniform(-0.5, 0.5, 1_800_000), 1000, "PCM_U8")


def rated(rate: int) -> bytes:
    return GOOD[:24] + struct.pack("<I", rate) + GOOD[28:]


def whole(key: str, **changes: bytes | None) -> list[tuple[str, bytes]]:
    """The members of a good record, some of them changed or (None) left out."""
    members = {"txt": b"hello", "wav": GOOD, "task": b"<S2TCHAT> <TEXT2TOKEN>"}
    members |= {"extra": b'{"speech_token": [1, 2, 3, 4, 5]}', **changes}
    return [(f"{key}.{name}", data) for name, data in members.items() if data is not None]


def write(path: Path, records: list[list[tuple[str, bytes]]]) -> Path:
    with path.open("wb") as stream:
        writer = TarWriter(stream)
        for record in records:
            for name, data in record:
                writer.add(name, data)
        writer.close()
    return path


PLANTED = {
    DefectKind.MISSING_FIELD: {"txt": None},
    DefectKind.BAD_TEXT: {"txt": b"\xff\xfe\xff"},
    DefectKind.UNKNOWN_TASK: {"task": b"<SING>"},
    DefectKind.BAD_JSON: {"extra": b'{"speech_token": ['},
    DefectKind.BAD_FIELD: {"extra": b'{"speech_token": "1 2 3"}'},
    DefectKind.SPEECH_ID_RANGE: {"extra": b'{"speech_token": [1, 2, 3, 4096]}'},
    DefectKind.SPEECH_TOO_SHORT: {"txt": b"a b c d e f g h i j k l"},
    DefectKind.MISSING_AUDIO: {"wav": None},
    DefectKind.EMPTY_AUDIO: {"wav": b""},
    DefectKind.UNDECODABLE_AUDIO: {"wav": b"this is no sound"},
    DefectKind.TRUNCATED_AUDIO: {"wav": GOOD[:900]},
    DefectKind.NOT_FINITE: {"wav": NAN},
    DefectKind.SAMPLE_RATE: {"wav": rated(4_000_000_000)},
    DefectKind.TOO_LONG: {"wav": HALF_AN_HOUR},
    DefectKind.TOO_SHORT: {"wav": sound(RNG.uniform(-0.5, 0.5, 40))},
    DefectKind.SILENT_AUDIO: {"wav": sound(np.zeros(800))},
}


def planted_set(folder: Path, shards: int = 4, per_shard: int = 250, bad: int = 25) -> dict[str, DefectKind]:
    """A shard set with defects of all kinds at random positions; key -> kind."""
    kinds = [*PLANTED, DefectKind.DUPLICATE_KEY, DefectKind.PATH_ESCAPE]
    truth: dict[str, DefectKind] = {}
    for shard in range(shards):
        positions = set(RNG.choice(np.arange(1, per_shard - 1), bad - 1, replace=False).tolist())
        records = []
        for number in range(per_shard):
            key, before = f"s{shard}-{number:03d}", f"s{shard}-{number - 1:03d}"
            kind = kinds[len(truth) % len(kinds)] if number in positions else None
            if kind is DefectKind.DUPLICATE_KEY:
                key = next(k for k in (f"s{shard}-{n:03d}" for n in range(number)) if k not in truth)
                truth[f"{key} again {before}"] = kind
            elif kind is DefectKind.PATH_ESCAPE:
                key = f"../../{key}"
                truth[key] = kind
            elif kind is not None:
                truth[key] = kind
            records.append(whole(key, **PLANTED.get(kind, {})))
        path = write(folder / f"shards_{shard:09d}.tar", records)
        last = f"s{shard}-{per_shard - 1:03d}"
        truth[last] = DefectKind.TRUNCATED_ARCHIVE
        with tarfile.open(path) as tar:
            cut = tar.getmember(f"{last}.wav").offset_data + 100
        os.truncate(path, cut)
    names = sorted(path.name for path in folder.glob("*.tar"))
    (folder / "shards_list.txt").write_text("\n".join(names) + "\n")
    return truth


def test_planted_defects_are_found_and_the_others_delivered(tmp_path):
    truth = planted_set(tmp_path)
    corpus, good, found = open_corpus(tmp_path), [], []
    for index in range(len(corpus)):
        try:
            sample = corpus[index]
            for ref in sample.audios():
                read(ref.read_bytes(), SAMPLE_RATE, name=ref.where)
        except ValueError as error:
            found.append(defect_from(error, "", key=sample.key))
        else:
            good.append(sample)
    assert (len(corpus), len(good), len(found)) == (1000, 900, 100)
    assert not list(corpus.defects())
    assert (
        Counter(defect.kind for defect in found) == Counter(truth.values()) and len(set(truth.values())) >= 18
    )
    named = {defect.key: defect.kind for defect in found if defect.kind is not DefectKind.DUPLICATE_KEY}
    assert named == {key: kind for key, kind in truth.items() if kind is not DefectKind.DUPLICATE_KEY}
    assert all(sample.text is None and sample.reply == "hello" for sample in good)
    assert len({sample.key for sample in good}) == 900 and not {s.key for s in good} & truth.keys()


@pytest.mark.parametrize("cut", [100, 512, 1024, 1500, 2600, 3000, 5000])
def test_a_truncated_tar_gives_what_is_whole(tmp_path, cut):
    path = write(tmp_path / "a.tar", [whole("a"), whole("b"), whole("c")])
    with tarfile.open(path) as tar:
        start = tar.getmember("b.txt").offset
    os.truncate(path, start + cut)
    corpus = open_corpus(path)
    assert corpus[0].key == "a"
    found = list(corpus.defects())
    for index in range(1, len(corpus)):
        with pytest.raises(DataError) as caught:
            corpus[index]
        found.append(caught.value.defect)
    assert [(defect.kind, defect.file) for defect in found] == [(DefectKind.TRUNCATED_ARCHIVE, str(path))]


@pytest.mark.parametrize("hit", ["b.txt", "b.wav", "b.task", "b.extra"])
def test_a_damaged_header_hurts_its_own_record_only(tmp_path, hit):
    path = write(tmp_path / "a.tar", [whole("a"), whole("b"), whole("c")])
    with tarfile.open(path) as tar:
        offset = tar.getmember(hit).offset
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xde\xad" * 100)
    corpus = open_corpus(path)
    assert [corpus[0].key, corpus[2].key] == ["a", "c"]
    with pytest.raises(DataError, match=r"damaged|expected a member header at byte") as caught:
        corpus[1]
    assert (caught.value.defect.kind, caught.value.defect.key) == (DefectKind.DAMAGED_ARCHIVE, "b")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "0 bytes"), (b"text" * 500, "something else"), (b"\x1f\x8b" * 400, "compressed")],
)
def test_what_is_no_tar_is_named(tmp_path, content, says):
    (tmp_path / "a.tar").write_bytes(content)
    corpus = open_corpus(tmp_path / "a.tar")
    (defect,) = corpus.defects()
    assert len(corpus) == 0 and defect.kind is DefectKind.NOT_AN_ARCHIVE and says in defect.reason


def test_missing_and_closed_shards_do_not_hide_the_others(tmp_path):
    write(tmp_path / "a.tar", [whole("a")])
    (tmp_path / "b.tar").mkdir()
    (tmp_path / "shards_list.txt").write_text("gone.tar\n\nb.tar\na.tar\n")
    corpus = open_corpus(tmp_path)
    assert [sample.key for sample in corpus] == ["a"]
    assert [defect.kind for defect in corpus.defects()] == [
        DefectKind.MISSING_FILE,
        DefectKind.UNREADABLE_FILE,
    ]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_forms_of_names_are_read(tmp_path, format):
    names = ["k.txt", "a/long/" * 12 + "k.txt"]
    names += ["x" * 180 + ".txt", "键.txt"] if format != tarfile.USTAR_FORMAT else []
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(b"z" * len(name)))
    with (tmp_path / "a.tar").open("rb") as stream:
        found = list(members(stream, (tmp_path / "a.tar").stat().st_size))
    assert [(item.name, item.size) for item in found if isinstance(item, Member)] == [
        (n, len(n)) for n in names
    ]


def test_an_index_is_made_once_and_again_when_the_tar_changes(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tar", [whole("a")])
    assert open_corpus(path)[0].key == "a" and (tmp_path / "a.tar.index").is_file()
    monkeypatch.setattr("echat.data.formats.shard_index._opened", OrderedDict())
    monkeypatch.setattr("echat.data.formats.shard_index.members", lambda *_: pytest.fail("scanned again"))
    assert len(open_shard(str(path))) == 1
    monkeypatch.undo()
    write(path, [whole("b"), whole("c")])
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))
    assert [sample.key for sample in open_corpus(path)] == ["b", "c"]


def test_a_closed_folder_is_left_alone(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    path = write(folder / "a.tar", [whole("a")])
    folder.chmod(0o555)
    try:
        assert len(open_corpus(path)) == 1 and os.listdir(folder) == ["a.tar"]
    finally:
        folder.chmod(0o755)


def test_a_corpus_travels_as_paths(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.tar", [whole(f"{number}-{n}") for n in range(5)])
    (tmp_path / "shards_list.txt").write_text("0.tar\n1.tar\n2.tar\n")
    corpus = open_corpus(tmp_path)
    assert [sample.key for sample in corpus] == [f"{s}-{n}" for s in range(3) for n in range(5)]
    packed = pickle.dumps(corpus)
    assert len(packed) < 2000 and pickle.loads(packed)[7] == corpus[7]
    with pytest.raises(IndexError, match="below 15, found 15"):
        corpus[15]


def test_descriptors_are_few_and_a_new_file_of_the_name_is_seen(tmp_path):
    paths = [tmp_path / str(number) for number in range(storage.OPEN_FILES + 9)]
    for path in paths:
        path.write_bytes(path.name.encode() * 2)
        assert storage.read_range(str(path), 0, 99) == path.name.encode() * 2
    assert len(storage._files) <= storage.OPEN_FILES
    (tmp_path / "new").write_bytes(b"other")
    os.replace(tmp_path / "new", paths[-1])
    assert storage.read_range(str(paths[-1]), 1, 3) == b"the"


def test_sound_in_memory_and_in_a_tar_opens_alike(tmp_path):
    path = write(tmp_path / "a.tar", [whole("a")])
    ref = open_corpus(path)[0].audio
    assert ref.read_bytes() == ref.open().read() == AudioRef("x.wav", data=GOOD).open().read() == GOOD
    assert hash(ref) == hash(open_corpus(path)[0].audio) and ref.suffix == ".wav"
    with pytest.raises(DataError, match="no such file") as caught:
        AudioRef(str(tmp_path / "gone.wav")).read_bytes()
    assert caught.value.defect.kind is DefectKind.MISSING_AUDIO


def test_a_report_counts_all_and_keeps_ten():
    report, other = DefectReport(), DefectReport()
    for number in range(12):
        report.add(Defect(DefectKind.BAD_JSON, "a.list", f"line {number}", reason="broken"))
    other.add(Defect(DefectKind.BAD_JSON, "b.list", "line 1"))
    other.add(Defect(DefectKind.TOO_LONG, "b.list", "line 2", "k"))
    report.merge(other)
    assert report.total == 14 and len(report.first(DefectKind.BAD_JSON)) == 10 and "and 3 more" in str(report)
    again = DefectReport.from_dict(report.as_dict())
    assert (again.counts, str(again)) == (report.counts, str(report))
    with pytest.raises(DataError, match=r"b\.list, line 1"):
        DefectReport(strict=True).extend(other)
    error = pickle.loads(pickle.dumps(DataError(Defect(DefectKind.TOO_LONG, "a", key="k"))))
    assert error.defect == Defect(DefectKind.TOO_LONG, "a", key="k")
