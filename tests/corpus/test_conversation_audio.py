"""Kokoro: phonemes in its alphabet, silent edges cut, each text synthesised once whatever interrupts."""

import json
import re
import shutil

import numpy as np
import pytest

from echat.corpus import conversation_audio
from echat.corpus.conversation_audio import (
    LineSynthesizer,
    conversation_lines,
    filler_lines,
    run,
    training_voices,
)
from echat.corpus.en.spoken_form import kokoro_text
from echat.corpus.synthesis.kokoro import HELD_OUT_VOICES, RATE, KokoroVoice, phonemize, trim_silence
from echat.corpus.synthesis.tts_engines import VoiceError

CUES = """
- id: home-001
  topic: "leaking tap"
  say: ["The tap drips.", "Still dripping.", "Drip, drip."]
  answers:
    - {cue: "angry", tone: "comforting", thought: "...", reply: "Turn the valve."}
    - {cue: "neutral", tone: "neutral", thought: "...", reply: "Change the washer."}
"""
DIALOGUE = """
- id: dlg-001
  turns:
    - {user: "I start on Monday.", tone: "cheerful", reply: "How lovely."}
    - {user: "Hm, a b.", tone: "neutral", reply: "Turn the valve."}
"""
needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


class Sine:
    """A stand-in for Kokoro: 10 ms of a sine per character."""

    def __init__(self, voices):
        self.voices, self.said = voices, []

    def speak(self, text, voice, speed):
        self.said.append((text, voice.name))
        if "unsayable" in text:
            raise VoiceError("expected phonemes, found none")
        return np.sin(np.arange(len(text) * RATE // 100) * 0.1).astype(np.float32) * 0.5


@pytest.fixture
def folders(tmp_path):
    """Folders of texts and of voices."""
    for name in ("texts", "voices"):
        (tmp_path / name).mkdir()
    for name in ("af_heart", "af_bella", "bm_fable", "jf_alpha", *HELD_OUT_VOICES):
        (tmp_path / "voices" / f"{name}.bin").touch()
    (tmp_path / "texts" / "cues-home-01.yaml").write_text(CUES)
    return tmp_path


def rows(folders, role):
    return [json.loads(line) for line in (folders / "out" / role / "manifest.jsonl").read_text().splitlines()]


@needs_espeak
@pytest.mark.parametrize(
    ("language", "text", "phonemes"),
    [
        ("en-us", "my boy, wait!", "mI bˈY, wˈAt!"),
        ("en-us", "no house", "nˈO hˈWs"),
        ("en-gb", "no chair.", "nˈQ ʧˈɛː."),
        ("en-us", "church; judge?", "ʧˈɜɹʧ; ʤˈʌʤ?"),
        ("en-us", "I can't, I've said.", "ˌI kˈænt, ˌIv sˈɛd."),
        ("en-us", "my idea", "mI Idˈiə"),
    ],
)
def test_diphthongs_and_affricates_are_one_symbol(language, text, phonemes):
    assert phonemize(text, language) == phonemes


@needs_espeak
def test_pauses_stay_where_they_are():
    found = phonemize("Well... yes, I am: here! Or not?")
    assert re.sub(r"[^.,:!?]", "", found) == ".,:!?"


def test_quiet_edges_are_cut_but_for_a_margin():
    tone = np.sin(np.arange(RATE) * 0.3).astype(np.float32)
    padded = np.concatenate([np.zeros(RATE, np.float32), tone, np.zeros(2 * RATE, np.float32)])
    assert abs(len(trim_silence(padded, keep_seconds=0.1)) - 1.2 * RATE) <= RATE // 50
    assert len(trim_silence(np.zeros(RATE, np.float32))) == 0


def test_spoken_form_of_names_and_numbers():
    assert kokoro_text("Just echat, not Echatter") == "Just e chat, not Echatter."
    assert kokoro_text("Call 911 or 116 123") == "Call nine one one or one one six one two three."
    assert kokoro_text("It costs 9110 now!") == "It costs 9110 now!"


def test_held_out_voices_are_not_training_voices(folders):
    voices = training_voices(folders / "voices")
    assert voices == ("af_bella", "bm_fable")
    (folders / "texts" / "dialogues-01.yaml").write_text(DIALOGUE)
    lines = list(conversation_lines(folders / "texts", voices))
    assert {line.voice for line in lines if line.role == "answers"} == {"af_heart"}
    assert {line.voice for line in lines if line.role == "questions"} <= set(voices)
    assert all(0.8 <= line.speed <= 1.25 for line in lines)
    assert [KokoroVoice(name).gender for name in voices] == ["female", "male"]


def test_each_text_is_synthesised_once_also_after_an_interruption(folders):
    kokoro = Sine(folders / "voices")
    run(LineSynthesizer(kokoro, folders / "out"), folders / "texts", [], follow=False)
    assert (
        len(kokoro.said) == 5 and len(rows(folders, "answers")) == 2 and len(rows(folders, "questions")) == 3
    )
    manifest = folders / "out" / "answers" / "manifest.jsonl"
    manifest.write_text(manifest.read_text() + '{"key": "torn')  # killed while it wrote
    (folders / "texts" / "dialogues-01.yaml").write_text(DIALOGUE)
    run(LineSynthesizer(kokoro, folders / "out"), folders / "texts", [], follow=False)
    assert len(kokoro.said) == 8  # two questions and one reply are new
    answers = rows(folders, "answers")
    assert sorted(row["text"] for row in answers) == ["Change the washer.", "How lovely.", "Turn the valve."]
    for row in answers:
        assert (manifest.parent / row["audio"]).stat().st_size > 0
        assert row["duration_s"] == round(len(kokoro_text(row["text"])) / 100, 3)


def test_written_conversations_come_before_fillers(folders):
    fillers = folders / "fillers.jsonl"
    fillers.write_text('{"role": "answers", "text": "filler", "source": "x"}\n')
    kokoro = Sine(folders / "voices")
    run(
        LineSynthesizer(kokoro, folders / "out"),
        folders / "texts",
        filler_lines(fillers, ("af_bella",)),
        follow=False,
    )
    assert [row["text"] for row in rows(folders, "answers")][-1] == "filler"


def test_what_cannot_be_read_is_left_out(folders, capsys):
    (folders / "texts" / "cues-bad-01.yaml").write_text("- id: [unclosed")
    (folders / "texts" / "cues-odd-01.yaml").write_text(
        '- {id: "odd", say: ["unsayable", 7, "..."], answers: []}'
    )
    (folders / "texts" / "topics.yaml").write_text("home: [tap]")
    run(LineSynthesizer(Sine(folders / "voices"), folders / "out"), folders / "texts", [], follow=False)
    assert len(rows(folders, "answers")) == 2 and len(rows(folders, "questions")) == 3
    assert "cues-bad-01.yaml: expected YAML" in capsys.readouterr().err


def test_a_round_holds_so_many_of_each_role(folders, monkeypatch):
    monkeypatch.setattr(conversation_audio, "LINES_PER_ROUND", {"answers": 1, "questions": 2})
    synthesizer = LineSynthesizer(Sine(folders / "voices"), folders / "out")
    lines = list(conversation_lines(folders / "texts", training_voices(folders / "voices")))
    assert [line.role for line in synthesizer.next_round(lines)] == ["answers", "questions", "questions"]


def test_cues_follow_the_calm_questions_and_a_bad_file_does_not_end_the_run(folders, capsys):
    run(LineSynthesizer(Sine(folders / "voices"), folders / "out"), folders / "texts", [], False, events={})
    calm = {row["key"]: row for row in rows(folders, "questions")}
    cues = [row for row in rows(folders, "cues") if row["emotion"] == "angry"]
    assert [row["text"] for row in cues] == ["The tap drips.", "Still dripping.", "Drip, drip."]
    assert all(row["voice"] == calm[row["calm"]]["voice"] for row in cues)
    (folders / "texts" / "cues-bad-01.yaml").write_text("- id: [unclosed")
    run(LineSynthesizer(Sine(folders / "voices"), folders / "out"), folders / "texts", [], False, events={})
    assert "cues wait until it is mended: cues-bad-01.yaml" in capsys.readouterr().err
