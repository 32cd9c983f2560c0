"""Any format to any other: equal samples, the same bytes, whatever interrupts."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echat.data.defects import DataError, DefectKind
from echat.data.formats.audio_encoding import encode
from echat.data.formats.corpus import open_corpus
from echat.data.sample import AudioRef, Sample
from echat.data.tools.conversion import ConversionConfig, assign, convert, run_job, write_plan
from echat.dialogue.labels import Labels

FORMATS = ("manifest", "raw", "shard", "combine")


def bare(sample: Sample) -> Sample:
    """Without the paths of sounds."""
    turns = tuple(replace(turn, audio=None) for turn in sample.history)
    return replace(sample, audio=None, reply_audio=None, history=turns)


def contents(path) -> list[tuple[Sample, list[bytes]]]:
    return [(bare(sample), [ref.read_bytes() for ref in sample.audios()]) for sample in open_corpus(path)]


def files(folder: Path) -> dict[str, str]:
    """Checksums of everything that is data."""
    kept = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".index")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def to(source, out, kind: str, **more) -> Path:
    report = convert(ConversionConfig(source=str(source), out=str(out), to=kind, **more))
    assert not report.defects, str(report.defects)
    return out


def test_raw_shard_combine_raw(published):
    raw = published / "raw" / "data.list"
    shard = to(raw, published / "s", "shard", shard_size=4)
    combine = to(shard, published / "c", "combine")
    again = to(combine, published / "r", "raw", shard_size=5)
    assert contents(raw) == contents(shard) == contents(combine) == contents(again)
    assert not list((published / "c").rglob("*.tar"))  # the sound stays in the tars of the shards


@pytest.mark.parametrize("source", FORMATS)
def test_any_format_to_any_other(published, source):
    begin = to(published / "raw" / "data.list", published / "begin", source)
    for kind in FORMATS:
        assert contents(to(begin, published / f"to-{kind}", kind, shard_size=4)) == contents(begin)


def test_our_shard_is_the_published_one_but_for_the_order_inside_extra(published):
    import tarfile

    ours = to(published / "raw" / "data.list", published / "s", "shard") / "shards_000000000.tar"
    with tarfile.open(ours) as one, tarfile.open(published / "shard/shards_000000000.tar") as two:
        assert one.getnames() == two.getnames()
        for name in one.getnames():
            if not name.endswith(".extra"):
                assert one.extractfile(name).read() == two.extractfile(name).read()


def test_our_combine_rows_are_the_published_ones(published):
    out = to(published / "shard", published / "c", "combine")
    ours = [json.loads(line) for line in (out / "shards_000000000.list").read_text("utf-8").splitlines()]
    lines = (published / "combine/shards_000000000.list").read_text("utf-8").splitlines()
    for row, wanted in zip(ours, map(json.loads, lines), strict=True):
        if "speech_token" in wanted["extra"]:
            wanted["extra"]["speech_token"] = [int(code) for code in wanted["extra"]["speech_token"]]
        assert row == wanted


def test_a_manifest_keeps_its_tasks_open(manifest, tmp_path):
    for kind in ("shard", "combine", "raw"):
        out = to(manifest, tmp_path / kind, kind, shard_size=10, codec_size=32)
        assert contents(out) == contents(manifest) and open_corpus(out)[0].task is None
    shard = to(manifest, tmp_path / "asr", "shard", task="asr_emotion")
    assert {sample.task for sample in open_corpus(shard)} == {"asr_emotion"}
    assert open_corpus(shard)[1].target.endswith("<SAD>")


def test_jobs_in_any_order_and_any_process_give_the_same_bytes(manifest, tmp_path):
    one = to(manifest, tmp_path / "one" / "out", "shard", shard_size=5)
    config = ConversionConfig(
        source=str(manifest), out=str(tmp_path / "two" / "out"), to="shard", shard_size=5
    )
    for number in reversed(range(write_plan(config))):
        run_job(config, number)
    convert(config)
    config = config.model_copy(update={"out": str(tmp_path / "three" / "out")})
    convert(config, workers=2)
    assert files(one) == files(tmp_path / "two" / "out") == files(tmp_path / "three" / "out")


@pytest.mark.parametrize("kind", ["shard", "raw"])
def test_a_killed_conversion_is_resumed(manifest, tmp_path, kind):
    settings = (
        f"source={str(manifest)!r}, out={str(tmp_path / 'out')!r}, to={kind!r}, shard_size=2, copy_audio=True"
    )
    code = f"from echat.data.tools.conversion import *; import time; convert(ConversionConfig({settings}), "
    code += "progress=lambda done, total: time.sleep(0.15))"
    process = subprocess.Popen([sys.executable, "-c", code])
    while len(list(tmp_path.rglob("*.finished"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.finished")}
    assert 3 <= len(finished) < 12
    folder = next(iter(finished)).parent
    (folder / ".0123abcd.shards_000000011.tar").write_bytes(b"half a shard")
    out = to(manifest, tmp_path / "out", kind, shard_size=2, copy_audio=True)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert files(out) == files(to(manifest, tmp_path / "whole" / "out", kind, shard_size=2, copy_audio=True))


def test_checksums_are_those_of_the_files(manifest, tmp_path):
    for kind in ("shard", "raw"):
        out = to(manifest, tmp_path / kind, kind, audio="flac", shard_size=10)
        sums = list(out.rglob("*.sha256"))
        lines = [(path.parent, *line.split("  ")) for path in sums for line in path.read_text().splitlines()]
        assert len(lines) >= (3 if kind == "shard" else 24)
        for folder, digest, name in lines:
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_other_settings_do_not_mix_with_what_is_there(manifest, tmp_path):
    to(manifest, tmp_path / "out", "shard", shard_size=10)
    with pytest.raises(
        DataError, match=r"expected to go on with shard_size = 10, found 20; .* another folder"
    ):
        to(manifest, tmp_path / "out", "shard", shard_size=20)


def test_bad_records_are_left_out_and_named_and_strict_stops(published, tmp_path):
    settings = {"source": str(published / "edge" / "shards_list.txt"), "to": "shard", "audio": "flac"}
    report = convert(ConversionConfig(out=str(tmp_path / "a"), **settings))
    assert report.records == 9 and report.defects.counts == {
        DefectKind.UNDECODABLE_AUDIO: 1,
        DefectKind.SPEECH_TOO_SHORT: 1,
        DefectKind.MISSING_FIELD: 1,
    }
    assert report.defects.first(DefectKind.UNDECODABLE_AUDIO)[0].key == "e3_badwav"
    assert json.loads((tmp_path / "a" / "report.json").read_text())["records"] == 9
    again = convert(ConversionConfig(out=str(tmp_path / "a"), **settings))
    assert str(again.defects) == str(report.defects)
    with pytest.raises(DataError, match="e3_badwav"):
        convert(ConversionConfig(out=str(tmp_path / "b"), **settings), strict=True)
    assert not list((tmp_path / "b").glob("*.tar"))


@pytest.mark.parametrize("key", ["../../escape", "/absolute", "a//b", "a\nb"])
def test_keys_that_would_leave_the_tar_are_refused(tmp_path, key):
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"key": key, "text": "a"}) + '\n{"key": "fine/1.2", "text": "b"}\n'
    )
    report = convert(
        ConversionConfig(source=str(tmp_path / "m.jsonl"), out=str(tmp_path / "out"), to="shard")
    )
    assert report.records == 1 and report.defects.total == 1
    assert [sample.key for sample in open_corpus(tmp_path / "out")] == ["fine/1.2"]


def test_keys_become_file_names_one_to_one(tmp_path):
    data = io.BytesIO()
    soundfile.write(data, np.ones(800) * 0.1, 16000, format="WAV")
    keys = ["../a", "a/b", "a%2Fb", "键" * 60, "键" * 61, "x" * 300]
    (tmp_path / "a.wav").write_bytes(data.getvalue())
    rows = [{"key": key, "audio": "a.wav"} for key in keys]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = to(tmp_path / "m.jsonl", tmp_path / "out", "manifest", copy_audio=True)
    stored = [path for path in (out / "audio").rglob("*") if path.is_file()]
    assert len(stored) == len(keys) and contents(out) == contents(tmp_path / "m.jsonl")


@pytest.mark.parametrize(("subtype", "kind"), [("PCM_16", "int16"), ("PCM_24", "int32")])
def test_flac_loses_nothing(subtype, kind):
    noise = np.random.default_rng(0).integers(-30000, 30000, (4000, 2)).astype(np.int16)
    stream = io.BytesIO()
    soundfile.write(stream, noise, 22050, format="WAV", subtype=subtype)
    data, suffix = encode(AudioRef("a.wav", data=stream.getvalue()), "flac")
    before, _ = soundfile.read(io.BytesIO(stream.getvalue()), dtype=kind)
    after, rate = soundfile.read(io.BytesIO(data), dtype=kind)
    assert suffix == ".flac" and rate == 22050 and np.array_equal(before, after)
    assert encode(AudioRef("a.flac", data=data), "flac") == (data, ".flac")


@pytest.mark.slow
def test_opus_is_the_same_every_time():
    stored = {16000: 16000, 22050: 24000, 96000: 48000}
    refs = {}
    for rate in stored:
        stream = io.BytesIO()
        soundfile.write(stream, 0.1 * np.sin(np.arange(rate) / 20), rate, format="WAV")
        refs[rate] = AudioRef("a.wav", data=stream.getvalue())
    made = {rate: encode(ref, "opus") for rate, ref in refs.items()}
    time.sleep(1.1)  # the encoder takes the stream number from the clock of the C library
    for rate, (data, suffix) in made.items():
        assert (data, suffix) == (encode(refs[rate], "opus")[0], ".opus")
        info = soundfile.info(io.BytesIO(data))
        assert (info.samplerate, info.duration) == (stored[rate], 1.0)


@pytest.mark.parametrize(
    ("task", "says"),
    [("asr", "expected words"), ("emotion", "expected a known label"), ("s2s", "expected a reply")],
)
def test_a_task_needs_its_input_and_target(task, says):
    sample = Sample("k", audio=AudioRef("a.wav"), labels=Labels(age="old"))
    with pytest.raises(DataError, match=says):
        assign(sample, task)
    with pytest.raises(DataError, match="expected sound, found none"):
        assign(replace(sample, audio=None, text="a"), "asr")
    assert assign(sample, "age").target == "<OLD>"
    assert assign(replace(sample, task="gender"), "asr").task == "gender"
