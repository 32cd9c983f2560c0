"""No bad record stops a corpus, whatever its bytes: it is named, and its neighbours are what they were."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from echat.cli import app
from echat.data.defects import DataError, Defect, DefectKind
from echat.data.formats import shard_index as shards
from echat.data.formats.corpus import open_corpus
from echat.data.formats.tar_members import Member, members
from echat.data.formats.tar_writer import TarWriter, member_bytes
from echat.data.tools.check import CheckConfig, check
from echat.data.tools.conversion import ConversionConfig, convert


def tone() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, 0.3 * np.sin(0.2 * np.arange(1600)), 8000, format="WAV", subtype="PCM_16")
    return stream.getvalue()


TONE = tone()
FORMATS = ("manifest", "raw", "shard", "combine")


def manifest(folder: Path, *rows: dict | bytes, name: str = "manifest.jsonl") -> Path:
    (folder / "a.wav").write_bytes(TONE)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder / name


def row(key: str, **more: object) -> dict:
    return {"key": key, "audio": "a.wav", "text": "hi", **more}


def fields(key: str) -> dict[str, bytes]:
    return {f"{key}.txt": b"hi", f"{key}.wav": TONE, f"{key}.task": b"<TRANSCRIBE>", f"{key}.extra": b"{}"}


def tar(path: Path, *blocks: bytes) -> Path:
    with path.open("wb") as stream:
        writer = TarWriter(stream)
        writer.write(*blocks)
        writer.close()
    return path


def record(key: str) -> bytes:
    return b"".join(member_bytes(name, data) for name, data in fields(key).items())


def header(name: str = "x", size: bytes = b"", kind: bytes = b"0") -> bytes:
    """A header with any size field and a checksum that fits."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT)[:512])
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


HUGE = b"\x80\0\0" + (1 << 63).to_bytes(9, "big")
ODD_ROWS = {
    "digits": b'{"key": "b", "text": "x", "n": ' + b"9" * 5000 + b"}",
    "digits inside": b'{"key": "b", "text": "x", "extra": {"n": [' + b"1" * 5000 + b"]}}",
    "half a character": b'{"key": "b", "text": "x", "note": "\\ud800"}',
    "half a character in a name": b'{"key": "b", "text": "x", "\\udfff": 1}',
    "half a character as bytes": b'{"key": "b", "text": "\xed\xa0\x80"}',
    "no text": b'{"key": "b", "text": "\xff\xfe"}',
    "zero byte": b'{"key": "b", "audio": "a\\u0000.wav"}',
    "deep": b'{"key": "b", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long duration": b'{"key": "b", "audio": "a.wav", "duration_s": 1' + b"0" * 4000 + b"}",
    "far offset": b'{"key": "b", "audio": {"path": "a.wav", "offset": 1' + b"0" * 40 + b', "size": 5}}',
    "much to read": b'{"key": "b", "audio": {"path": "a.wav", "offset": 0, "size": 1' + b"0" * 16 + b"}}",
    "fields": b'{"key": "b", "text": "x", "fields": [1]}',
    "start": b'{"key": "b", "audio": "a.wav", "start_seconds": 1e308}',
    **{
        f"URL of {protocol}": f'{{"key": "b", "audio": "{protocol}://h/x.wav"}}'.encode()
        for protocol in ("http", "ftp", "github", "s3", "nosuch", "memory", "zip::http")
    },
}


@pytest.mark.parametrize("odd", ODD_ROWS.values(), ids=ODD_ROWS)
def test_an_odd_row_costs_itself(tmp_path, odd):
    source = manifest(tmp_path, row("a"), odd, row("c"))
    found = check(CheckConfig(source=str(source)))
    assert (found.records, found.bad, found.totals.records) == (3, [1], 2)
    (defect,) = found.defects
    assert defect.file == str(source) and "line 2" in str(defect) and str(defect).isprintable()
    for to in FORMATS:
        out = tmp_path / to
        report = convert(ConversionConfig(source=str(source), out=str(out), to=to, task="asr"))
        assert report.records == 2 and report.defects.total == 1
        assert [sample.key for sample in open_corpus(out, within="/")] == ["a", "c"]


ODD_BLOCKS = {
    "a folder of 2^87 bytes": header("d/", HUGE, b"5"),
    "a global header of 2^87 bytes": header("g", HUGE, b"g"),
    "a file of 2^87 bytes": header("b.txt", HUGE),
    "a long name of 2^87 bytes": header("l", HUGE, b"L"),
    "a size below zero": header("b.txt", b"-0000001000"),
    "a size in letters": header("b.txt", b"zzzz"),
    "a pax size of 5000 digits": header("p", b"12000", b"x")
    + (b"5011 size=" + b"9" * 5000 + b"\n").ljust(5120, b"\0")
    + member_bytes("b.txt", b"hi"),
    "zeros": bytes(512),
    "noise": b"\xa5" * 512,
}


@pytest.mark.parametrize("odd", ODD_BLOCKS.values(), ids=ODD_BLOCKS)
def test_an_odd_block_of_a_tar_costs_nothing_else(tmp_path, odd):
    source = tar(tmp_path / "s.tar", record("a"), odd, record("c"))
    found = check(CheckConfig(source=str(source)))
    assert [sample.key for sample in open_all(source) if sample is not None] == ["a", "c"]
    assert found.totals.records == 2 and found.defects.total >= 1
    report = convert(ConversionConfig(source=str(source), out=str(tmp_path / "o"), to="manifest"))
    assert report.records == 2


def open_all(source: Path):
    corpus = open_corpus(source)
    for number in range(len(corpus)):
        try:
            yield corpus[number]
        except DataError:
            yield None


def test_a_pax_length_of_many_digits_is_no_field(tmp_path):
    pax = header("p", b"12000", b"x") + (b"9" * 5000 + b" size=1\n").ljust(5120, b"\0")
    source = tar(tmp_path / "s.tar", record("a"), pax, record("c"))
    assert [sample.key for sample in open_all(source)] == ["a", "c"]


def test_a_first_block_that_is_damaged_leaves_the_others(tmp_path):
    data = bytearray(tar(tmp_path / "s.tar", record("a"), record("b")).read_bytes())
    data[:512] = b"\xa5" * 512
    (tmp_path / "s.tar").write_bytes(data)
    assert [sample.key for sample in open_all(tmp_path / "s.tar") if sample is not None] == ["b"]


@pytest.mark.parametrize("name", [b"b\xff", b"\xed\xa0\x80"])
def test_a_name_that_is_no_text_is_refused_by_check_and_convert_alike(tmp_path, name):
    called = os.fsdecode(name)
    source = tar(tmp_path / "s.tar", record("a"), record(called), record("c"))
    found = check(CheckConfig(source=str(source)))
    assert found.defects.counts == {DefectKind.BAD_TEXT: 1} and found.totals.records == 2
    for to in FORMATS[:3]:
        report = convert(ConversionConfig(source=str(source), out=str(tmp_path / to), to=to))
        assert (report.records, report.defects.counts) == (2, {DefectKind.BAD_TEXT: 1})
        json.dumps(report.as_dict(), ensure_ascii=False).encode()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    (
        *("txt", "txt_1", "wav", "wav_1", "extra", "echat", "task", "speaker", "gender", "lang", "duration"),
        *("start", "end", "fields", "split", "reply", "history", "speech_ids", "speech_token", "q_txt"),
        *("question", "reply_wav", "tar_path_key", "thought", "prompt", "target", "audio", "note"),
    )
)


@settings(max_examples=25)
@given(st.dictionaries(NAMES, JSON, max_size=4))
@example({"extra": 5})
@example({"txt_1": 5, "wav_1": "x"})
@example({"extra": {"echat": 5}})
@example({"fields": {"key": 5}})
def test_what_check_passes_convert_writes_and_reads_back(more):
    with tempfile.TemporaryDirectory() as folder:
        rows = [row("a"), {"key": "b", "text": "x", **more}, row("c")]
        source = manifest(Path(folder), *rows)
        found = check(CheckConfig(source=str(source)))
        assert found.records == 3 and set(found.bad) <= {1}
        good = {key for number, key in enumerate("abc") if number not in found.bad}
        for to in FORMATS:
            out = Path(folder) / to
            report = convert(ConversionConfig(source=str(source), out=str(out), to=to))
            assert good <= {sample.key for sample in open_corpus(out, within="/")}, report.defects


MUTATIONS = st.lists(
    st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=6), st.booleans()), max_size=4
)


def mutated(data: bytes, begin: int, end: int, changes: list[tuple[float, bytes, bool]]) -> bytes:
    """The data with some bytes between two places overwritten, or, in lines, put in."""
    middle = bytearray(data[begin:end])
    for place, new, insert in changes:
        at = int(place * len(middle))
        middle[at : at if insert else at + len(new)] = new
    return data[:begin] + bytes(middle) + data[end:]


@settings(max_examples=60)
@given(MUTATIONS)
def test_any_bytes_in_a_row_leave_its_neighbours(changes):
    with tempfile.TemporaryDirectory() as folder:
        source = manifest(Path(folder), row("a"), row("b", speech_ids=[1] * 30, extra={"n": 1}), row("c"))
        data = source.read_bytes()
        begin = data.index(b"\n") + 1
        source.write_bytes(mutated(data, begin, data.index(b"\n", begin), changes))
        found = check(CheckConfig(source=str(source)))
        report = convert(ConversionConfig(source=str(source), out=f"{folder}/o", to="shard", task="asr"))
        keys = [sample.key for sample in open_corpus(Path(folder) / "o")]
        assert {"a", "c"} <= set(keys) and found.totals.records >= 2
        assert report.records == len(keys)


def test_zeros_are_not_taken_for_the_end_of_a_tar_with_more_behind(tmp_path):
    source = tar(tmp_path / "s.tar", record("a"), bytes(4096), record("c"))
    with source.open("rb") as stream:
        found = list(members(stream, source.stat().st_size))
    assert sum(isinstance(item, Member) for item in found) == 8 and len(found) == 9


@settings(max_examples=60)
@given(MUTATIONS)
def test_any_bytes_in_a_tar_leave_the_neighbours(changes):
    changes = [(place, new, False) for place, new, _ in changes]
    with tempfile.TemporaryDirectory() as folder:
        source = tar(Path(folder) / "s.tar", record("a"), record("b"), record("c"))
        data, size = source.read_bytes(), len(record("a"))
        source.write_bytes(mutated(data, size, 2 * size, changes)[: len(data)])
        found = check(CheckConfig(source=str(source)))
        report = convert(ConversionConfig(source=str(source), out=f"{folder}/o", to="manifest"))
        keys = {sample.key for sample in open_corpus(f"{folder}/o")} if report.records else set()
        assert {"a", "c"} <= keys and found.totals.records >= 2, (found.defects, report.defects)


def test_a_damaged_index_is_made_anew(tmp_path):
    source = tar(tmp_path / "s.tar", record("a"), record("b"))
    assert len(open_corpus(source)) == 2
    index = tmp_path / "s.tar.index"
    data = index.read_bytes()
    for at in range(0, len(data), 7):
        index.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
        shards._opened.clear()
        assert [sample.key for sample in open_corpus(source)] == ["a", "b"]


def test_what_a_report_shows_cannot_move_the_cursor():
    defect = Defect(DefectKind.BAD_TEXT, "f", "member \x1b[2J\ud800", "k\n" + "x" * 5000, "found \u2028")
    assert str(defect).isprintable() and len(str(defect)) < 700 and "\\x1b[2J\\ud800" in str(defect)
    json.dumps(defect.as_dict(), ensure_ascii=False).encode()


def test_urls_without_their_package_are_one_line(tmp_path):
    for url, says in (("s3://b/x.list", "s3fs"), ("http://127.0.0.1:1/x.list", "aiohttp")):
        if find_spec(says) is not None:
            continue
        failed = CliRunner().invoke(app, ["data", "check", url])
        assert failed.exit_code == 2 and failed.stderr.count("\n") == 1 and says in failed.stderr
