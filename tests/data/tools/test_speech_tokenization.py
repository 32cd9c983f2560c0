"""Records get the speech ids they lack, and nothing else about them changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echat.data.defects import DataError, DefectKind
from echat.data.formats.corpus import open_corpus
from echat.data.sample import AudioRef, Sample
from echat.data.tools.conversion import ConversionConfig, convert
from echat.data.tools.speech_tokenization import TokenizeConfig, audio_for_speech_ids, tokenize

LONGEST = 0.8  # seconds that the stand-in takes


class Lengths:
    """A stand-in whose ids say how long the sound is, and that notes what it was given."""

    batches: list[list[int]] = []

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def encode(self, waveforms):
        sizes = [len(waveform) for waveform in waveforms]
        self.batches.append(sizes)
        if max(sizes) > LONGEST * 16000:
            raise ValueError(f"expected at most {LONGEST} s, found more; cut the clip")
        return [[size % 4096] * (size // 640) for size in sizes]


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Six reading voices, one of them too long, one with ids; a typed question whose reply has sound."""
    rows = []
    for number, seconds in enumerate((0.5, 0.2, 0.9, 0.3, 0.4, 0.6)):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * np.sin(np.arange(int(seconds * 8000))), 8000)
        rows.append({"key": f"k{number}", "audio": f"{number}.wav", "text": "yes"})
    rows[4]["speech_ids"] = [7, 8, 9]
    rows.append({"key": "typed", "text": "how?", "reply": "so", "reply_audio": "0.wav"})
    rows.append({"key": "question", "audio": "1.wav", "text": "how?", "reply": "so"})
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(corpus: Path, out: Path, **changes):
    Lengths.batches = []
    settings = {"source": str(corpus), "out": str(out), "tokenizer": "here", "shard_size": 5, **changes}
    return tokenize(TokenizeConfig(**settings), Lengths)


def ids(out: Path) -> dict[str, tuple[int, ...] | None]:
    return {sample.key: sample.speech_ids for sample in open_corpus(out)}


def expected(seconds: float) -> tuple[int, ...]:
    samples = round(seconds * 16000)
    return (samples % 4096,) * (samples // 640)


def test_ids_are_computed_where_absent(corpus, tmp_path):
    report = run(corpus, tmp_path / "out")
    wanted = {"k0": 0.5, "k1": 0.2, "k3": 0.3, "k5": 0.6, "typed": 0.5}
    assert ids(tmp_path / "out") == {
        **{key: expected(seconds) for key, seconds in wanted.items()},
        "k4": (7, 8, 9),
        "question": None,  # no sound of the reply
    }
    assert report.records == 7 and report.defects.counts == {DefectKind.BAD_RECORD: 1}
    (defect,) = report.defects
    assert defect.key == "k2" and defect.file.endswith("2.wav") and "at most 0.8 s" in defect.reason


def test_all_else_stays(corpus, tmp_path):
    plain = tmp_path / "plain"
    convert(ConversionConfig(source=str(corpus), out=str(plain), to="shard"))
    run(corpus, tmp_path / "out")
    before = {sample.key: sample for sample in open_corpus(plain)}
    for sample in open_corpus(tmp_path / "out"):
        known = before[sample.key]
        assert sample.audio is None or sample.audio.read_bytes() == known.audio.read_bytes()
        unsaid = {"audio": None, "reply_audio": None, "speech_ids": None, "source": "", "task": None}
        assert replace(sample, **unsaid) == replace(known, **unsaid)


def test_again_computes_all(corpus, tmp_path):
    run(corpus, tmp_path / "out", again=True)
    assert ids(tmp_path / "out")["k4"] == expected(0.4)


def test_sounds_of_like_length_are_encoded_together_and_once(corpus, tmp_path):
    run(corpus, tmp_path / "out", shard_size=100)
    assert Lengths.batches[0] == sorted(Lengths.batches[0]) and len(Lengths.batches[0]) == 5
    assert Lengths.batches[0].count(8000) == 1  # k0, and the reply that is the same file


def test_what_is_finished_is_not_encoded_again(corpus, tmp_path):
    run(corpus, tmp_path / "out")
    before = ids(tmp_path / "out")
    next((tmp_path / "out").glob("*000.tar.finished")).unlink()
    report = run(corpus, tmp_path / "out")
    assert len({size for batch in Lengths.batches for size in batch}) == 4 and report.records == 7
    assert ids(tmp_path / "out") == before
    with pytest.raises(DataError, match="expected to go on with tokenizer = 'here'"):
        run(corpus, tmp_path / "out", tokenizer="elsewhere")


def test_which_sound_the_ids_stand_for():
    question, answer = AudioRef("q.wav"), AudioRef("a.wav")
    assert audio_for_speech_ids(Sample("k", question, reply="so", reply_audio=answer)) == answer
    assert audio_for_speech_ids(Sample("k", question, text="words")) == question
    assert audio_for_speech_ids(Sample("k", question, reply="so")) is None
    assert audio_for_speech_ids(Sample("k", question, text="words", task="asr")) is None
    assert audio_for_speech_ids(Sample("k", reply="so", reply_audio=answer, task="tts")) == answer
