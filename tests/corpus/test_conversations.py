"""Records of written conversations: each wording with each answer, labels of cues, audio joined by text."""

import json

import pytest

from echat.cli import main
from echat.corpus.conversations import (
    ClipIndex,
    ConversationError,
    labels_of,
    manifest_rows,
    split_of,
    with_audio,
    write_records,
)
from echat.corpus.manifests import reply_audio_key
from echat.data.eligibility import can_serve
from echat.data.formats.manifest import read_manifest
from echat.dialogue.tasks import get_task

CUES = """
- id: home-001
  topic: "leaking tap"
  say: ["The tap drips.", "Still dripping.", "Drip, drip."]
  answers:
    - {cue: "child, fear", tone: "comforting", thought: "A small voice.", reply: "Show it to a grown-up."}
    - {cue: "neutral", tone: "neutral", thought: "A calm voice.", reply: "Change the washer."}
"""
DIALOGUE = """
- id: dlg-001
  turns:
    - {user: "I start on Monday.", cue: "happy", tone: "cheerful", reply: "How lovely."}
    - {user: "Thanks!", tone: "neutral", thought: "A plain voice.", reply: "You're welcome."}
"""


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "cues-home-01.yaml").write_text(CUES)
    (folder / "dialogues-mixed-01.yaml").write_text(DIALOGUE)
    (folder / "topics.yaml").write_text("home: [tap]")
    return folder


def test_every_wording_meets_every_answer(texts):
    rows = list(manifest_rows(texts))
    assert len(rows) == 3 * 2 + 1 and len({row["key"] for row in rows}) == 7
    child = next(row for row in rows if row["age"] == "child")
    assert (child["emotion"], child["gender"], child["reply_emotion"]) == ("fear", None, "安慰鼓励")
    assert child["thought"] == 'The user says: "The tap drips.". A small voice.'
    dialogue = rows[-1]
    assert dialogue["history"] == [{"text": "I start on Monday.", "reply": "How lovely."}]
    assert (dialogue["text"], dialogue["emotion"], dialogue["sound_event"]) == ("Thanks!", "neutral", "none")


def test_wordings_of_a_conversation_are_in_one_split(texts):
    assert len({row["split"] for row in manifest_rows(texts) if row["key"].startswith("home-001")}) == 1
    sides = [split_of(f"home-{number:03d}") for number in range(500)]
    assert 5 < sides.count("dev") < 50


def test_records_serve_the_tasks_of_text(texts, tmp_path, capsys):
    path = tmp_path / "out" / "text.jsonl"
    main(["corpus", "conversation-records", str(texts), str(tmp_path / "out")], standalone=False)
    assert capsys.readouterr().out == f"{path}: 7 records\n"
    samples = read_manifest(path)
    for name in ("s2t", "s2t_think_label", "s2t_think_language", "understand", "asr"):
        assert all(can_serve(sample, get_task(name), True) for sample in samples), name
    typed = [sample.reply for sample in samples if can_serve(sample, get_task("t2t"))]
    assert sorted(set(typed)) == [
        "Change the washer.",
        "You're welcome.",
    ]  # not for labels that only audio has


CLIPS = [
    ("questions", {"key": "question-1", "text": "Still dripping.", "gender": "male", "voice": "v"}),
    ("questions", {"key": "question-2", "text": "Thanks!", "gender": "female", "voice": "w"}),
    ("questions", {"key": "question-3", "text": "I start on Monday.", "gender": "male", "voice": "v"}),
]
REPLIES = ("Change the washer.", "Show it to a grown-up.", "You're welcome.", "How lovely.")


@pytest.fixture
def clips(tmp_path):
    """A corpus folder that is being made."""
    answers = [("answers", {"key": reply_audio_key(text), "text": text}) for text in REPLIES]
    for role, row in CLIPS + answers:
        path = tmp_path / "corpus" / role / "manifest.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as out:
            out.write(json.dumps(row | {"audio": f"audio/0000/{row['key']}.flac", "duration_s": 1.0}) + "\n")
    with (tmp_path / "corpus" / "questions" / "manifest.jsonl").open("a") as out:
        out.write('{"key": "torn')
    return tmp_path / "corpus"


def test_audio_is_joined_to_neutral_adult_rows(texts, clips, tmp_path):
    rows = list(manifest_rows(texts))
    row, dialogue = with_audio(rows, ClipIndex.of(clips, tmp_path / "out"))
    assert row["audio"] == "../corpus/questions/audio/0000/question-1.flac"
    assert row["reply_audio"] == f"../corpus/answers/audio/0000/{reply_audio_key('Change the washer.')}.flac"
    assert (row["text"], row["gender"], row["emotion"]) == ("Still dripping.", "male", "neutral")
    assert (dialogue["text"], dialogue["gender"]) == ("Thanks!", "female")
    assert "audio" not in dialogue["history"][0]  # a man says it


def test_past_turns_have_the_audio_of_like_voices(texts, clips, tmp_path):
    manifest = clips / "questions" / "manifest.jsonl"
    more = [
        {"key": f"q-{voice}", "text": "I start on Monday.", "audio": f"{voice}.flac"}
        | {"gender": "female", "voice": voice}
        for voice in ("other", "w")
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in more) + manifest.read_text())
    index = ClipIndex.of(clips, tmp_path / "out")
    dialogue = list(with_audio(list(manifest_rows(texts)), index))[-1]
    assert dialogue["history"][0]["audio"] == "../corpus/questions/w.flac"
    turn = {"text": "I start on Monday.", "reply": "How lovely."}
    assert (
        index.asked(turn, {"voice": "new", "gender": "female"})["audio"] == "../corpus/questions/other.flac"
    )


def test_replies_have_their_speech_ids_also_past_ones(texts, clips, tmp_path):
    ids = {"Change the washer.": [1, 2], "You're welcome.": [3], "How lovely.": [4, 5]}
    lines = (
        json.dumps({"key": reply_audio_key(text), "speech_ids": one}) + "\n" for text, one in ids.items()
    )
    (clips / "answers" / "speech_ids.jsonl").write_text("".join(lines))
    counts = write_records(texts, tmp_path / "out", clips)
    assert list(counts.values()) == [7, 2, 3]
    written = [json.loads(line) for line in (tmp_path / "out" / "text.jsonl").read_text().splitlines()]
    assert [row.get("speech_ids") for row in written] == [None, [1, 2]] * 3 + [[3]]
    assert written[-1]["history"][0]["speech_ids"] == [4, 5]
    for path in counts:
        samples = read_manifest(path)
        serving = [
            sample for sample in samples if can_serve(sample, get_task("s2s"), path.name == "text.jsonl")
        ]
        assert len(serving) == {"text.jsonl": 4, "spoken.jsonl": 2, "questions.jsonl": 0}[path.name]


def test_labels_of_cues():
    assert labels_of("sigh", "x") | {"gender": None} == {
        "emotion": "neutral", "age": "adult", "gender": None, "sound_event": "sigh",
    }  # fmt: skip
    assert {labels_of(None, f"seed {number}")["gender"] for number in range(20)} == {"male", "female"}
    with pytest.raises(ValueError, match=r"cue: expected one of neutral, .*, found 'merry'"):
        labels_of("merry", "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- id: [", r"cues-bad-01.yaml: expected YAML"),
        (
            '- {id: "b-1", say: ["Hm."], answers: [{cue: "sad", tone: "loud", reply: "Oh."}]}',
            "tone: expected one of",
        ),
        ('- {id: "b-1", answers: []}', r"cues-bad-01.yaml, conversation b-1: 'say'"),
    ],
)
def test_what_breaks_the_format_is_named(texts, content, message):
    (texts / "cues-bad-01.yaml").write_text(content)
    with pytest.raises(ConversationError, match=message):
        list(manifest_rows(texts))
