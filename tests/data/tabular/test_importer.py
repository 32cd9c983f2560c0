from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from echat.cli import app
from echat.data.defects import DataError, DefectKind
from echat.data.formats.audio_encoding import encode
from echat.data.formats.corpus import open_corpus
from echat.data.tabular.importer import ImportConfig, import_corpus


def wav(seconds: float = 0.5) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(round(16000 * seconds), 0.1), 16000, format="WAV")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "set" / "clips").mkdir(parents=True)
    for name in ("a.wav", "b.wav"):
        (tmp_path / "set" / "clips" / name).write_bytes(wav())
    return tmp_path / "set"


def imported(source, out, **more):
    count, report = import_corpus(ImportConfig(source=str(source), out=str(out), **more))
    return list(open_corpus(out, "manifest", within="/")) if count else [], report


def test_a_table_with_a_map(folder, tmp_path):
    lines = ['clip;sentence;mood;"note"', 'clips/a.wav;"hello; you";happy;""', "clips/b.wav;bye;bored;x"]
    (folder / "table.csv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    columns = {"audio": "clip", "text": "sentence", "emotion": "mood"}
    (one, two), report = imported(
        folder / "table.csv", tmp_path / "out", columns=columns, split="dev", lang="en"
    )
    assert not report and (one.key, one.text, one.seconds, one.split) == ("clips/a", "hello; you", 0.5, "dev")
    assert one.labels.emotion == "happy" and one.source == "set" and one.language == "en"
    assert two.extra == {"note": "x", "emotion": "bored"} and two.audio.read_bytes() == wav()


def test_usual_names_need_no_map(folder, tmp_path):
    rows = [{"id": 7, "path": "clips/a.wav", "sentence": "hi", "duration": 0.5, "speaker": "s", "n": [1]}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (sample,), _ = imported(folder, tmp_path / "out")
    assert (sample.key, sample.text, sample.seconds) == ("7", "hi", 0.5)
    assert sample.extra == {"speaker": "s", "n": [1]}


def test_a_folder_of_sound(folder, tmp_path):
    (folder / "clips" / "a.txt").write_text("spoken words\n")
    (one, two), _ = imported(folder, tmp_path / "out")
    assert [one.key, two.key] == ["clips/a", "clips/b"] and (one.text, two.text) == ("spoken words", None)


def test_recordings_of_phones_are_imported_decoded_and_stored(tmp_path):
    av = pytest.importorskip("av", reason="needs the media extra")
    (tmp_path / "set").mkdir()
    tone = (9000 * np.sin(np.arange(44_100) / 20)).astype(np.int16)
    with av.open(str(tmp_path / "set" / "memo.m4a"), "w", format="mp4") as file:
        track = file.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
        frame.rate = 44_100
        for part in [*av.AudioResampler("fltp", "mono", 44_100, 1024).resample(frame), None]:
            file.mux(track.encode(part))
    (tmp_path / "set" / "cut.m4a").write_bytes((tmp_path / "set" / "memo.m4a").read_bytes()[:-900])
    (sample,), report = imported(tmp_path / "set", tmp_path / "out")
    assert sample.key == "memo" and abs(sample.seconds - 1.0) < 0.05
    assert report.counts == {DefectKind.TRUNCATED_AUDIO: 1}
    assert encode(sample.audio)[1] == ".m4a"
    data, suffix = encode(replace(sample.audio, start_seconds=0.25, end_seconds=0.75))
    stored, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert (suffix, rate, len(stored)) == (".wav", 44_100, 22_050) and 8000 < abs(
        stored[5000:]
    ).max() < 10_000


def test_our_own_manifest_comes_in_as_it_is(manifest, tmp_path):
    samples, report = imported(manifest, tmp_path / "out")
    before = list(open_corpus(manifest))
    assert not report and [sample.labels for sample in samples] == [sample.labels for sample in before]
    assert [sample.speech_ids for sample in samples] == [sample.speech_ids for sample in before]


def test_bad_rows_are_named_and_left_out(folder, tmp_path):
    (folder / "clips" / "bad.wav").write_text("no sound at all")
    lines = [
        "path,text,duration",
        "clips/a.wav,a,0.5",
        "clips/a.wav,again,0.5",
        "../../x.wav,b,1",
        "gone.wav,c,",
    ]
    lines += ["clips/bad.wav,d,", "clips/b.wav,e,long", "too,many,1,2", "few"]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    samples, report = imported(folder / "t.csv", tmp_path / "out")
    assert [sample.text for sample in samples] == ["a"]
    assert report.counts == {
        DefectKind.DUPLICATE_KEY: 1,
        DefectKind.PATH_ESCAPE: 1,
        DefectKind.MISSING_AUDIO: 1,
        DefectKind.UNDECODABLE_AUDIO: 1,
        DefectKind.BAD_RECORD: 1,
        DefectKind.BAD_FIELD: 2,
    }
    assert report.first(DefectKind.MISSING_AUDIO)[0].place == "line 5"
    with pytest.raises(DataError, match="line 3, record clips/a"):
        import_corpus(ImportConfig(source=str(folder / "t.csv"), out=str(tmp_path / "x")), strict=True)
    assert not (tmp_path / "x" / "manifest.jsonl").exists()


def test_a_data_set_with_sound_inside(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"audio": [{"bytes": wav(), "path": "x.wav"}] * 2, "sentence": ["a", "b"], "emotion": [1, 0]}
    table = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    table = table.cast_column("emotion", datasets.ClassLabel(names=["sad", "happy"]))
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(str(tmp_path / "ds"))
    samples, report = imported(tmp_path / "ds", tmp_path / "out")
    assert not report and [sample.split for sample in samples] == ["train", "train", "test"]
    assert samples[0].key == "train-00000000" and samples[0].labels.emotion == "happy"
    assert all(sample.audio.read_bytes() == wav() for sample in samples)


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands(folder, tmp_path):
    (folder / "t.csv").write_text("path,said\nclips/a.wav,hello\nclips/gone.wav,x\n")
    done = run("data", "import", folder / "t.csv", "--map", "text=said", "--out", tmp_path / "m")
    assert done.exit_code == 0 and "1 records, 1 defects" in done.stdout and "line 3" in done.stderr
    done = run(
        "data", "convert", tmp_path / "m", "--to", "shard", "-o", tmp_path / "s", "--task", "asr", "--json"
    )
    assert json.loads(done.stdout)["records"] == 1
    done = run("data", "convert", tmp_path / "s", "--to", "raw", "-o", tmp_path / "r")
    assert done.exit_code == 0 and open_corpus(tmp_path / "r")[0].target == "hello"
    for arguments, says in (
        (
            ["convert", tmp_path / "gone", "--to", "raw", "-o", tmp_path / "x"],
            "gone: expected a list, found nothing",
        ),
        (["convert", tmp_path / "m", "--to", "shard", "-o", tmp_path / "x", "--task", "asd"], "did you mean"),
        (["import", folder / "t.csv", "-o", tmp_path / "x", "--map", "txt=said"], "did you mean 'text'"),
        (["import", folder / "t.csv", "-o", tmp_path / "x", "--map", "text"], "expected field=column"),
    ):
        failed = run("data", *arguments)
        assert failed.exit_code == 2 and says in failed.stderr and failed.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()
