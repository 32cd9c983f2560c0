"""Tables as they are published and as programs export them come in whole; a bad row costs itself."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from echat.cli import app
from echat.data.defects import DataError, DefectKind
from echat.data.formats.corpus import open_corpus
from echat.data.tabular.delimited import TableRow, delimited_rows
from echat.data.tabular.importer import ImportConfig, import_corpus
from echat.data.tools.check import CheckConfig, check


def wav(seconds: float = 0.25, kind: str = "WAV") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(round(8000 * seconds), 0.1), 8000, format=kind)
    return stream.getvalue()


def sounds(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {".flac": "FLAC", ".mp3": "MP3"}.get(Path(name).suffix, "WAV")
        (folder / name).write_bytes(wav(kind=kind))
    return folder


def imported(source: Path, out: Path, **more):
    count, report = import_corpus(ImportConfig(source=str(source), out=str(out), **more))
    return list(open_corpus(out, "manifest")) if count else [], report


def run(*arguments: object):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_common_voice_comes_in_as_published(tmp_path):
    """Splits beside clips/, nothing quoted, its own words for people."""
    folder = sounds(tmp_path / "cv", *(f"clips/{n}.mp3" for n in "abcd"))
    head = "client_id\tpath\tsentence\tage\tgender\tlocale\n"
    lines = ['x\ta.mp3\t"Hello, he said\ttwenties\tmale_masculine\ten', 'x\tb.mp3\t"No" and "yes"\t\t\ten']
    (folder / "train.tsv").write_text(head + "\n".join(lines) + "\n")
    (folder / "dev.tsv").write_text(head + "y\tc.mp3\t''\tsixties\tfemale_feminine\ten\n")
    (folder / "test.tsv").write_text(head + "y\td.mp3\tlast\tteens\t\ten\n")
    samples, report = imported(folder, tmp_path / "o")
    assert not report
    found = {
        sample.key: (sample.split, sample.text, sample.labels.age, sample.labels.gender) for sample in samples
    }
    assert found == {
        "a": ("train", '"Hello, he said', "adult", "male"),
        "b": ("train", '"No" and "yes"', None, None),
        "c": ("dev", "''", "old", "female"),
        "d": ("test", "last", None, None),
    }
    assert all(sample.audio.path == str(folder / "clips" / f"{sample.key}.mp3") for sample in samples)
    assert samples[0].extra["client_id"] == "x"
    alone, _ = imported(folder / "train.tsv", tmp_path / "p")
    assert [sample.key for sample in alone] == ["a", "b"]


@pytest.mark.parametrize("columns", [2, 3])
def test_ljspeech_comes_in_as_published(tmp_path, columns):
    """No names of columns, bars between, quotation marks that mean nothing, wavs/ID.wav."""
    folder = sounds(tmp_path / "lj", "wavs/LJ1.wav", "wavs/LJ2.wav")
    rows = [("LJ1", 'a "b, c', "a b, c"), ("LJ2", "Dr. X, Mr. Y", "doctor X")]
    (folder / "metadata.csv").write_text("".join("|".join(row[:columns]) + "\n" for row in rows))
    samples, report = imported(folder, tmp_path / "o")
    assert not report and [(s.key, s.text, s.seconds) for s in samples] == [
        ("LJ1", 'a "b, c', 0.25),
        ("LJ2", "Dr. X, Mr. Y", 0.25),
    ]
    assert [sample.extra.get("normalized_text") for sample in samples] == [
        row[2] if columns == 3 else None for row in rows
    ]


def test_a_table_without_names_may_name_files(tmp_path):
    folder = sounds(tmp_path / "kss", "1/a.wav", "1/b.flac")
    (folder / "t.csv").write_text("1/a.wav,hi\n1/b.flac,you\n")
    samples, _ = imported(folder / "t.csv", tmp_path / "o")
    assert [(sample.key, sample.text) for sample in samples] == [("1/a", "hi"), ("1/b", "you")]


def test_folders_of_splits_keep_their_keys_apart(tmp_path):
    for split in ("train", "test"):
        folder = sounds(tmp_path / "set" / split, "1.wav")
        (folder / "metadata.csv").write_text("file_name,transcription\n1.wav,hi\n")
    samples, report = imported(tmp_path / "set", tmp_path / "o")
    assert not report and [(s.key, s.split) for s in samples] == [("train/1", "train"), ("test/1", "test")]


def parquet(path: Path, **more) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = {
        "audio": [{"bytes": wav(), "path": "x.wav"}] * 2,
        "text": ["hi", "you"],
        "gender": [1, -1],
        **more,
    }
    features = {"gender": {"names": ["male", "female"], "_type": "ClassLabel"}}
    table = pyarrow.table(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def test_parquet_files_come_in_as_the_hub_lays_them_out(tmp_path):
    pytest.importorskip("pyarrow")
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        parquet(tmp_path / "set" / "data" / f"{name}.parquet")
    samples, report = imported(tmp_path / "set", tmp_path / "o")
    assert not report and len({sample.key for sample in samples}) == 6
    assert [sample.split for sample in samples] == ["test"] * 2 + ["train"] * 4
    assert samples[0].labels.gender == "female" and samples[0].audio.read_bytes() == wav()
    parquet(tmp_path / "one.parquet", id=["k1", "k2"])
    assert [s.key for s in imported(tmp_path / "one.parquet", tmp_path / "p")[0]] == ["k1", "k2"]
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "one.parquet").read_bytes()[:500])
    failed = run("import", tmp_path / "cut.parquet", "-o", tmp_path / "q")
    assert (
        failed.exit_code == 2
        and "expected a Parquet file" in failed.stderr
        and failed.stderr.count("\n") == 1
    )


def webdataset(path: Path, *samples: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for sample in samples:
            for name, data in sample.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_tars_of_json_and_sound_come_in(tmp_path):
    samples = (
        {"d/a.json": b'{"text": "hi", "path": "/home/x/a.wav", "speaker": 3}', "d/a.wav": wav()},
        {"d/b.json": b'{"text": ', "d/b.wav": wav()},
        {"d/c.flac": wav(kind="FLAC"), "d/c.txt": "grüß".encode(), "d/c.lang": b"de"},
        {"d/d.mp3": wav(kind="MP3"), "d/d.txt": b"\xff"},
    )
    source = webdataset(tmp_path / "set" / "train-000.tar", *samples)
    found, report = imported(source, tmp_path / "o")
    assert [(s.key, s.text, s.language, s.split) for s in found] == [
        ("d/a", "hi", None, None),
        ("d/c", "grüß", "de", None),
    ]
    assert report.counts == {DefectKind.BAD_JSON: 1, DefectKind.BAD_TEXT: 1}
    assert (
        found[0].audio.read_bytes() == wav() and found[0].seconds == 0.25 and found[0].extra["speaker"] == 3
    )
    assert check(CheckConfig(source=str(tmp_path / "o"))).totals.records == 2
    assert [sample.split for sample in imported(tmp_path / "set", tmp_path / "p")[0]] == ["train"] * 2
    assert "echat data import" in str(check(CheckConfig(source=str(source))).defects)


def test_a_tar_is_found_by_a_relative_path_too(tmp_path, monkeypatch):
    source = webdataset(tmp_path / "set" / "a.tar", {"d/a.txt": b"hi", "d/a.wav": wav()})
    monkeypatch.chdir(tmp_path)
    found, report = imported(source.relative_to(tmp_path), tmp_path / "o")
    assert [sample.text for sample in found] == ["hi"] and not report.counts
    assert found[0].audio.read_bytes() == wav()


def test_a_published_shard_is_no_table(published, tmp_path):
    for source in (next((published / "shard").glob("*.tar")), published / "raw" / "data.list"):
        failed = run("import", source, "-o", tmp_path / "o")
        assert failed.exit_code == 2 and "echat data check and convert read it" in failed.stderr


@pytest.mark.parametrize("sound", [True, False])
def test_questions_and_answers_are_sound_or_text_by_what_they_hold(tmp_path, sound):
    folder = sounds(tmp_path / "set", "q.wav", "a.wav")
    cells = ("q.wav", "a.wav") if sound else ("how are you", "fine")
    (folder / "t.csv").write_text(f"Question, Answer \n{','.join(cells)}\n")
    ((sample,), _) = imported(folder / "t.csv", tmp_path / "o")
    if sound:
        assert (sample.audio.path, sample.reply_audio.path) == (str(folder / "q.wav"), str(folder / "a.wav"))
    else:
        assert (sample.text, sample.reply, sample.audio) == ("how are you", "fine", None)


def test_an_array_of_objects_is_a_table(tmp_path):
    rows = [{"id": n, "sentence": f"s{n}"} for n in range(3)]
    (tmp_path / "t.json").write_text(json.dumps(rows, indent=2))
    assert [(s.key, s.text) for s in imported(tmp_path / "t.json", tmp_path / "o")[0]] == [
        ("0", "s0"),
        ("1", "s1"),
        ("2", "s2"),
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "gbk", "utf-16", "utf-8-sig", "shift-jis"])
def test_a_table_in_another_encoding_is_read_or_named(tmp_path, encoding):
    word = {"gbk": "你好", "shift-jis": "表示"}.get(encoding, "café")
    (tmp_path / "t.csv").write_bytes(f"id,text\na,plain\nb,{word}\nc,last\n".encode(encoding))
    samples, report = imported(tmp_path / "t.csv", tmp_path / "o", encoding=encoding)
    assert not report and [sample.text for sample in samples] == ["plain", word, "last"]
    samples, report = imported(tmp_path / "t.csv", tmp_path / "p")
    if encoding.startswith("utf"):
        assert not report and len(samples) == 3
    else:
        assert [sample.text for sample in samples] == ["plain", "last"]
        (defect,) = report
        assert (defect.kind, defect.file, defect.place) == (
            DefectKind.BAD_TEXT,
            str(tmp_path / "t.csv"),
            "line 3",
        )
        assert "--encoding" in defect.reason


def test_words_beside_a_sound_may_be_in_any_encoding(tmp_path):
    folder = sounds(tmp_path / "set", "a.wav", "b.wav")
    (folder / "a.txt").write_bytes("\ufeffcafé\r\n".encode())
    (folder / "b.txt").write_bytes("café".encode("latin-1"))
    samples, report = imported(folder, tmp_path / "o")
    assert [sample.text for sample in samples] == ["café"] and report.counts == {DefectKind.BAD_TEXT: 1}
    assert len(imported(folder, tmp_path / "p", encoding="latin-1")[0]) == 2


def rows(path: Path):
    return list(delimited_rows(str(path), None, lambda cells: None))


@pytest.mark.parametrize("bad", ['b,"open, and left', 'b,"x" y', "b,\xff", "b", "b,1,2"])
def test_a_bad_row_of_a_table_takes_no_other_with_it(tmp_path, bad):
    lines = ["id,text", *(f"r{n},t{n}" for n in range(9)), bad, *(f's{n},"t ""{n}"""' for n in range(300))]
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode("latin-1"))
    found = rows(tmp_path / "t.csv")
    good = [row for row in found if isinstance(row, TableRow)]
    assert len(good) == 309 and good[-1].columns == {"id": "s299", "text": 't "299"'}
    assert [row.place for row in found if not isinstance(row, TableRow)] == ["line 11"]


CELL = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=6)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5), st.sampled_from(",;"), st.booleans())
def test_reading_undoes_writing_with_quotation(tmp_path_factory, table, delimiter, multiline):
    import csv

    path = tmp_path_factory.mktemp("t") / "t.csv"
    table = [(a + "\n" + a if multiline else a, b) for a, b in table]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([("id", "text"), *table])
    found = [(row.columns.get("id", ""), row.columns.get("text", "")) for row in rows(path)]
    assert found == table


def test_a_table_says_its_separator_itself(tmp_path):
    for text in ("sep=;\nid;text\na;b,c\n", "id;text\na;b,c\n", "id,text\na,b;c\nd,e\n"):
        (tmp_path / "t.csv").write_text(text)
        assert rows(tmp_path / "t.csv")[0].columns["text"] in ("b,c", "b;c")


def test_columns_that_are_not_there_or_not_known_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"--map text=c: expected one of the columns a, b, found no c"):
        imported(tmp_path / "t.csv", tmp_path / "o", columns={"text": "c"})
    with pytest.raises(DataError, match=r"found a, b; say which is which, such as --map text=a"):
        imported(tmp_path / "t.csv", tmp_path / "o")
    assert not (tmp_path / "o").exists()
    assert [s.text for s in imported(tmp_path / "t.csv", tmp_path / "o", columns={"text": "b"})[0]] == ["2"]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("path,text\ngone.wav,hi\n", "--audio-root"),
        ("id,text\n", "holds no row"),
        ("id,text\na,\xe9\n", "--encoding"),
    ],
)
def test_a_table_without_a_usable_record_ends_with_1_and_the_remedy(tmp_path, text, remedy):
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    done = run("import", tmp_path / "t.csv", "-o", tmp_path / "o")
    assert done.exit_code == 1 and remedy in done.stderr.splitlines()[-1]
    assert not (tmp_path / "o" / "manifest.jsonl").exists()
