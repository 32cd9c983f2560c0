"""The scenario grammar: what ships is valid, broken files are named, sampling is even and repeats."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from echat.corpus.en.scenario_grammar import (
    REPLY_EMOTION,
    Dialogue,
    ScenarioError,
    appropriate_reply,
    load_scenarios,
    sample_cue_pairs,
    sample_dialogues,
)
from echat.corpus.en.situation import CUES, Situation
from echat.corpus.en.thought_template import (
    EMOTION_ADJECTIVES,
    RESPONSE_PLANS,
    SOUND_EVENT_VERBS,
    SPEAKER_NOUNS,
    DescribedUtterance,
    read_thought,
    write_thought,
)
from echat.corpus.synthesis.prosody import EMOTIONS


@pytest.fixture(scope="module")
def situations() -> list[Situation]:
    return load_scenarios()


@pytest.fixture(scope="module")
def train() -> list[Dialogue]:
    return list(sample_dialogues("train", 8000, seed=1))


def _row() -> dict[str, Any]:
    return {
        "id": "lost_things",
        "topic": "home",
        "gist": "has lost something",
        "slots": {"thing": ["keys", "hat", "ring"], "place": ["at work", "in town"]},
        "patterns": [
            f"{word} i lost my {{thing}} {{place}}"
            for word in ["yes", "no", "oh", "so", "well", "now", "and", "but", "then", "ah"]
        ],
        "held_out": [f"{word} my {{thing}} got lost {{place}}" for word in ["again", "today", "maybe"]],
        "emotions": ["neutral", "sad", "angry", "happy"],
        "replies": {
            cue: f"this reply is for {cue}"
            for cue in ("neutral", "distress", "angry", "bright", "child", "old", "cough", "laugh")
        },
    }


def _load_rows(folder: Path, *rows: dict[str, Any]) -> list[Situation]:
    (folder / "some.yaml").write_text(yaml.safe_dump(list(rows)), encoding="utf-8")
    return load_scenarios(folder)


def test_at_least_sixty_situations_ship(situations: list[Situation]) -> None:
    assert len(situations) >= 60
    assert len({situation.id for situation in situations}) == len(situations)


def test_every_reply_is_said_once(situations: list[Situation]) -> None:
    counts = Counter(reply for situation in situations for reply in situation.replies.values())
    assert [reply for reply, count in counts.items() if count > 1] == []


def test_no_sentence_belongs_to_two_situations_or_two_splits(situations: list[Situation]) -> None:
    owners: dict[str, set[tuple[str, str]]] = {}
    for situation in situations:
        for split in ("train", "dev", "test"):
            for made in situation.wordings(split).values():
                for sentence in made:
                    owners.setdefault(sentence, set()).add((situation.id, split))
    assert {sentence: who for sentence, who in owners.items() if len(who) > 1} == {}


def test_held_out_wordings_share_a_rare_word_with_their_situation(situations: list[Situation]) -> None:
    words = {s.id: {word for text in s.sentences("patterns") for word in text.split()} for s in situations}
    usage = Counter(word for known in words.values() for word in known)
    for situation in situations:
        for sentence in situation.sentences("held_out"):
            shared = set(sentence.split()) & words[situation.id]
            assert any(usage[word] <= 15 for word in shared), (situation.id, sentence)


def test_training_has_many_sentences_and_even_labels(
    train: list[Dialogue], situations: list[Situation]
) -> None:
    assert len({one.text for one in train}) >= 3000
    emotions = Counter(one.emotion for one in train)
    assert (
        set(emotions) == set(EMOTIONS) and max(emotions.values()) - min(emotions.values()) <= len(train) / 100
    )
    used = Counter(one.situation for one in train)
    assert set(used) == {situation.id for situation in situations}
    assert max(used.values()) <= 2 * min(used.values())
    assert sum(one.sound_event is None for one in train) / len(train) == pytest.approx(0.55, abs=0.03)
    assert sum(one.age == "adult" for one in train) / len(train) == pytest.approx(0.5, abs=0.03)
    assert all((one.gender is None) == (one.age == "child") for one in train)


def test_splits_share_neither_sentence_nor_held_out_pattern(train: list[Dialogue]) -> None:
    dev, test = list(sample_dialogues("dev", 500)), list(sample_dialogues("test", 500))
    known = {one.text for one in train}
    assert not known & {one.text for one in dev}
    assert not known & {one.text for one in test}
    assert not {one.pattern for one in train + dev} & {one.pattern for one in test}


def test_same_arguments_give_same_dialogues_and_seeds_differ() -> None:
    assert list(sample_dialogues("train", 50, seed=3)) == list(sample_dialogues("train", 80, seed=3))[:50]
    assert [one.text for one in sample_dialogues("train", 50, seed=3)] != [
        one.text for one in sample_dialogues("train", 50, seed=4)
    ]
    assert list(sample_cue_pairs("test", 20, seed=3)) == list(sample_cue_pairs("test", 20, seed=3))


def test_keys_are_unique(train: list[Dialogue]) -> None:
    both = [one.key for pair in sample_cue_pairs("train", 100, seed=1) for one in pair] + [
        one.key for one in train
    ]
    assert len(set(both)) == len(both)


def test_the_record_agrees_with_itself(train: list[Dialogue], situations: list[Situation]) -> None:
    by_id = {situation.id: situation for situation in situations}
    for one in train:
        assert one.reply == by_id[one.situation].replies[one.cue]
        assert one.accepted == [one.reply]
        assert one.reply_emotion == REPLY_EMOTION[one.cue]
        assert one.sound_event in (None, one.cue)
        assert read_thought(one.thought) == DescribedUtterance(
            one.text, one.age, one.gender, one.emotion, one.sound_event
        )
        assert len(one.thought.split()) <= 35


def test_pairs_say_the_same_and_need_different_replies() -> None:
    changed = Counter[str]()
    for first, second in sample_cue_pairs("test", 300):
        assert (first.text, first.pattern, first.situation) == (second.text, second.pattern, second.situation)
        assert (
            first.cue != second.cue
            and first.reply not in second.accepted
            and second.reply not in first.accepted
        )
        differs = [
            name
            for name in ("emotion", "age", "sound_event")
            if getattr(first, name) != getattr(second, name)
        ]
        assert len(differs) == 1
        changed.update(differs)
    assert set(changed) == {"emotion", "age", "sound_event"}


def test_precedence_is_sound_then_age_then_emotion() -> None:
    situation = Situation.model_validate(_row())
    spoken = DescribedUtterance("i lost my keys", "child", None, "sad", "cough")
    assert appropriate_reply(situation, spoken) == ("cough", "this reply is for cough", "安慰鼓励")
    assert appropriate_reply(situation, replace(spoken, sound_event=None))[0] == "child"
    assert appropriate_reply(situation, replace(spoken, sound_event="sneeze"))[0] == "child"
    assert appropriate_reply(situation, replace(spoken, sound_event=None, age="old"))[0] == "old"
    grown = replace(spoken, sound_event=None, age="adult")
    cues = [appropriate_reply(situation, replace(grown, emotion=emotion))[0] for emotion in EMOTIONS]
    assert cues == ["neutral", "bright", "distress", "angry", "distress", "bright"]


def test_an_emotion_without_reply_gets_the_neutral_one() -> None:
    row = _row() | {"emotions": ["neutral", "sad", "fear", "happy"]}
    del row["replies"]["angry"]
    angry = DescribedUtterance("i lost my keys", "adult", "male", "angry", None)
    assert appropriate_reply(Situation.model_validate(row), angry)[0] == "neutral"


def test_thoughts_are_read_back_for_every_label() -> None:
    for age, gender in SPEAKER_NOUNS:
        for emotion in EMOTION_ADJECTIVES:
            for sound in (None, *SOUND_EVENT_VERBS):
                for cue in RESPONSE_PLANS:
                    utterance = DescribedUtterance("i lost my keys who sighs", age, gender, emotion, sound)
                    assert read_thought(write_thought(utterance, "has lost something", cue)) == utterance
    assert read_thought("The user says something else.") is None
    assert set(RESPONSE_PLANS) == set(CUES)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": "Lost Keys"}, "id"),
        ({"gist": "one two three four five six seven eight nine"}, "gist"),
        ({"topik": "home"}, "topik"),
        ({"slots": {"thing": ["keys", True], "place": ["at work", "in town"]}}, "slots"),
        ({"slots": {"thing": ["keys"], "place": ["at work", "in town"]}}, "slots"),
        ({"slots": {"thing": ["keys", "hat"], "place": ["at work", "in town"]}}, "patterns"),
        ({"patterns": _row()["patterns"][:9]}, "patterns"),
        ({"patterns": [*_row()["patterns"], "i lost my {item}"]}, "patterns"),
        ({"patterns": [*_row()["patterns"], "I lost my {thing}!"]}, "patterns"),
        ({"patterns": [*_row()["patterns"], "my {thing}"]}, "patterns"),
        ({"held_out": _row()["held_out"][:2]}, "held_out"),
        ({"held_out": [*_row()["held_out"][:2], _row()["patterns"][0]]}, "held_out"),
        ({"emotions": ["neutral", "sad", "fear"]}, "emotions"),
        ({"emotions": ["neutral", "sad", "angry", "bored"]}, "emotions"),
        ({"emotions": ["happy", "sad", "angry", "surprise"]}, "emotions"),
        ({"emotions": ["neutral", "sad", "fear", "happy"]}, "replies"),
        ({"replies": {**_row()["replies"], "cough": "No, that is wrong!"}}, "replies"),
        ({"replies": {**_row()["replies"], "cough": "too short"}}, "replies"),
        ({"replies": {k: v for k, v in _row()["replies"].items() if k != "child"}}, "replies"),
        ({"replies": {k: v for k, v in _row()["replies"].items() if k != "laugh"}}, "replies"),
    ],
)
def test_a_broken_rule_names_file_situation_and_field(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    row = _row() | change
    with pytest.raises(ScenarioError) as caught:
        _load_rows(tmp_path, row)
    message = str(caught.value)
    assert "some.yaml" in message and str(row["id"]) in message and field in message


def test_a_sound_row_loads_and_needs_no_sound_it_has_no_reply_for(tmp_path: Path) -> None:
    known = _load_rows(tmp_path, _row())
    sampled = list(sample_dialogues("train", 200, situations=known))
    assert {one.sound_event for one in sampled} == {None, "cough", "laugh"}
    assert {one.emotion for one in sampled} == {"neutral", "sad", "angry", "happy"}


def test_repeated_ids_replies_and_sentences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="new id"):
        _load_rows(tmp_path, _row(), _row())
    other = _row() | {"id": "other_things"}
    (tmp_path / "replies").mkdir()
    with pytest.raises(ScenarioError, match=r"other_things, replies\.angry: expected a new reply"):
        _load_rows(tmp_path / "replies", _row(), other)
    (tmp_path / "sentences").mkdir()
    other["replies"] = {cue: f"another {reply}" for cue, reply in other["replies"].items()}
    with pytest.raises(ScenarioError, match="other_things, patterns: expected a new sentence"):
        _load_rows(tmp_path / "sentences", _row(), other)


def test_files_that_are_no_scenarios_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="found none"):
        load_scenarios(tmp_path)
    (tmp_path / "some.yaml").write_text("key: [", encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"some\.yaml: expected YAML"):
        load_scenarios(tmp_path)
    (tmp_path / "some.yaml").write_text("just: words", encoding="utf-8")
    with pytest.raises(ScenarioError, match="expected a list of situations"):
        load_scenarios(tmp_path)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        next(sample_dialogues("exam", 1))
