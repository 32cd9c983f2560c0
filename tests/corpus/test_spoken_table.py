"""A written table becomes sound: every row a question and an answer, or an error that names the row."""

from __future__ import annotations

import json
import shutil

import pytest

from echat.audio.waveform import read
from echat.corpus.en.thought_template import read_thought
from echat.corpus.en.voices import voices
from echat.corpus.spoken_table import speak_table

needs_voices = pytest.mark.skipif(
    shutil.which("espeak-ng") is None or shutil.which("flite") is None, reason="no speech engines here"
)


@needs_voices
def test_rows_become_pairs_that_can_be_imported(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "text,reply,emotion,age,gender,gist,split\n"
        "the kite is stuck,let us fetch a ladder,sad,child,,has lost a kite,train\n"
        "the kite is flying,how high it goes,happy,adult,male,is flying a kite,test\n"
    )
    path = speak_table(table, tmp_path / "spoken")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        for name in ("question", "answer"):
            waveform, rate = read(path.parent / row[name])
            assert rate == 16_000 and 0.5 < len(waveform) / rate < 6
    utterance = read_thought(rows[0]["thought"])
    assert utterance is not None and (utterance.emotion, utterance.age, utterance.gender) == (
        "sad",
        "child",
        None,
    )
    assert rows[1]["voice"] in {voice.name for voice in voices("test")}
    again = speak_table(table, tmp_path / "again")
    assert (again.parent / rows[0]["question"]).read_bytes() == (
        path.parent / rows[0]["question"]
    ).read_bytes()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("hello,,sad", "line 2: expected words in column reply"),
        ("hello,hi,sadd", "line 2, column emotion: expected one of neutral"),
    ],
)
def test_a_row_that_cannot_be_spoken_is_named(tmp_path, row, says):
    table = tmp_path / "table.csv"
    table.write_text(f"text,reply,emotion\n{row}\n")
    with pytest.raises(ValueError, match=says):
        speak_table(table, tmp_path / "spoken")
    assert not (tmp_path / "spoken" / "metadata.jsonl").exists()
