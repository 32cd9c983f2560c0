from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.audio.augmentation import AugmentConfig
from echat.audio.features import N_MELS, log_mel
from echat.audio.waveform import read
from echat.data.audio_loading import AudioLoader
from echat.data.defects import DataError
from echat.data.eligibility import can_serve
from echat.data.examples import (
    AUDIO,
    IGNORE,
    SPEECH,
    TEXT,
    CachedTokenizer,
    DialogueBuilder,
    build_conversation,
)
from echat.data.formats.audio_folder import AudioFolder
from echat.data.formats.manifest import sample_of
from echat.data.mixture import SampledItem
from echat.data.sample import Turn
from echat.data.speech_examples import SpeechBuilder, normalize_text
from echat.dialogue.labels import Labels
from echat.dialogue.rendering import AudioSegment, TextSegment, render
from echat.dialogue.tasks import TASKS, get_task
from echat.dialogue.turns import Conversation
from echat.model.speech_encoder import EncoderConfig

ENCODER = EncoderConfig()
LOUD = AugmentConfig(
    vtlp_bands=0.1,
    eq_db=6.0,
    speed=0.2,
    pitch=0.1,
    vtlp=0.1,
    gain_db=6,
    time_stretch=0.1,
    noise=1.0,
    time_masks=1,
    mel_masks=1,
    substitutions=1,
)


@pytest.fixture
def builder(tokenizer, vocabulary) -> DialogueBuilder:
    return DialogueBuilder(CachedTokenizer(tokenizer), vocabulary, AudioLoader(), ENCODER)


SERVED = [n for n in TASKS if n not in ("asr_timestamps", "asr_punctuation", "style", "asr_style", "t2t")]


@pytest.mark.parametrize("task", SERVED)
def test_labels_are_the_next_position_and_only_what_the_assistant_writes(builder, samples, vocabulary, task):
    sample = samples[1]
    if not can_serve(sample, get_task(task)):
        pytest.skip("the sample lacks a label")
    example = builder(SampledItem(sample, task, 0, 7))
    is_target = example.labels != IGNORE
    next_kind, next_id = example.kinds[1:][is_target[:-1]], example.ids[1:][is_target[:-1]]
    expected = np.where(next_kind == SPEECH, next_id + vocabulary.text_size, next_id)
    assert np.array_equal(example.labels[is_target], expected)
    assert not is_target[-1] and (next_kind != AUDIO).all()
    assert example.writes_speech == bool((example.labels >= vocabulary.text_size).any())


@pytest.mark.parametrize("task", ["asr", "s2s_think_label", "s2s", "tts"])
def test_the_inference_prompt_is_a_prefix_of_the_example(builder, samples, tokenizer, vocabulary, task):
    sample = samples[3]
    example = builder(SampledItem(sample, task, 0, 7))
    audio = example.mels[0] if example.mels else None
    question = Conversation(build_conversation(sample, get_task(task), audio).turns[:-1])
    prompt = render(question, task, tokenizer, vocabulary)
    ids: list[int] = []
    for segment in prompt:
        ids += (
            [0] * ENCODER.llm_frames(len(segment.audio))
            if isinstance(segment, AudioSegment)
            else list(segment.ids)
        )
    assert example.ids[: len(ids)].tolist() == ids
    begins = np.flatnonzero(example.labels != IGNORE)[0]
    assert begins in (len(ids) - 1, len(ids) - 2)  # reading aloud is prompted with its first id


def test_sound_takes_as_many_positions_as_the_encoder_gives_vectors(builder, samples):
    example = builder(SampledItem(samples[0], "asr", 0, 7))
    assert (example.kinds == AUDIO).sum() == ENCODER.llm_frames(len(example.mels[0]))


def test_without_augmentation_the_mel_is_that_of_inference(builder, samples):
    waveform, _ = read(samples[0].audio.path, 16000)
    example = builder(SampledItem(samples[0], "asr", 0, 7))
    np.testing.assert_allclose(example.mels[0], log_mel(waveform, N_MELS).numpy(), atol=2e-3)


def test_randomness_comes_from_the_sampled_item_alone(builder, samples):
    loud = replace(builder, augment=LOUD)
    first, other, again = (loud(SampledItem(samples[0], "asr", 0, seed)).mels[0] for seed in (7, 8, 7))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_pseudo_audio_has_labels_and_words_instead_of_sound(builder, samples, tokenizer):
    example = builder(SampledItem(samples[1], "s2t", 0, 7, pseudo_audio=True))
    assert not example.mels and (example.kinds != AUDIO).all()
    read_text = tokenizer.decode(example.ids[example.kinds == TEXT].tolist())
    assert f"sad old male cough:{samples[1].text}" in read_text


def test_spread_text_is_the_same_text_between_blanks(builder, samples, tokenizer):
    blank = tokenizer.encode("<|endoftext|>")[0]
    spread_builder = replace(builder, blanks_per_id=2.0, blank=blank)
    lengths = set()
    for seed in range(8):
        item = SampledItem(samples[1], "s2t", 0, seed, pseudo_audio=True)
        ids = spread_builder(item).ids
        assert ids[ids != blank].tolist() == builder(item).ids.tolist()
        lengths.add(len(ids))
    assert len(lengths) > 2


def test_the_ctc_target_of_a_sound_is_what_stands_in_its_place(builder, samples, tokenizer):
    with_ctc = replace(builder, ctc_languages=("en",))
    (target,) = with_ctc(SampledItem(samples[1], "asr", 0, 7)).ctc_targets
    assert tokenizer.decode(list(target.ids)) == f"sad old male cough:{samples[1].text}"
    assert (
        tokenizer.decode(list(target.ids[: target.label_len])) == "sad old male cough"
        and target.has_transcript
    )


def test_of_a_language_without_ctc_the_labels_alone_are_known(builder, samples, tokenizer):
    with_ctc = replace(builder, ctc_languages=("en",))
    (target,) = with_ctc(SampledItem(replace(samples[1], language="pl"), "asr", 0, 7)).ctc_targets
    assert tokenizer.decode(list(target.ids)) == "sad old male cough"
    assert target.label_len == len(target.ids) and not target.has_transcript


def test_what_follows_an_unknown_label_is_a_target_after_any_label(builder, samples, tokenizer):
    """Left alone, the model writes some label there; an id that it never writes would teach it nothing."""
    child = replace(samples[0], labels=Labels(age="child", emotion="sad", sound_event="none"))
    seen = set()
    for seed in range(8):
        example = builder(SampledItem(child, "understand", 0, seed))
        ids = example.ids[example.kinds == TEXT].tolist()
        assert builder.vocabulary.unknown not in ids
        seen |= {gender for gender in ("<MALE>", "<FEMALE>") if gender in tokenizer.decode(ids)}
        targets = tokenizer.decode([int(i) for i in example.labels if i != IGNORE])
        assert "MALE" not in targets and "<CHILD><><NONE>" in targets.replace("<SAD>", "")
    assert seen == {"<MALE>", "<FEMALE>"}


def test_history_comes_before_the_question(builder, samples):
    past = Turn(samples[2].audio, samples[2].text, "yes", (1, 2, 3))
    example = builder(SampledItem(replace(samples[0], history=(past,)), "s2s", 0, 7))
    alone = builder(SampledItem(samples[0], "s2s", 0, 7))
    assert len(example.mels) == 2 and np.array_equal(example.mels[1], alone.mels[0])
    assert (example.labels != IGNORE).sum() == (alone.labels != IGNORE).sum()


def test_a_dialogue_too_long_is_named(builder, samples):
    with pytest.raises(DataError, match="clip-000: task s2s: expected at most 30"):
        replace(builder, max_positions=30)(SampledItem(samples[0], "s2s", 0, 7))


@pytest.mark.parametrize(
    ("change", "task", "able"),
    [
        ({}, "asr", True),
        ({"text": None}, "asr", False),
        ({"text": None}, "emotion", True),
        ({"audio": None}, "s2t", False),
        ({"speech_ids": None}, "s2s", False),
        ({"speech_ids": None}, "s2t", True),
        ({"thought": None}, "s2t_think_language", False),
        ({"thought": None}, "s2t_think_label", True),
        ({"labels": Labels()}, "understand", False),
        ({"labels": Labels(gender="male")}, "understand", True),
        ({"reply": None}, "tts", True),
        ({"reply": None}, "t2t", False),
    ],
)
def test_what_a_task_needs(samples, change, task, able):
    sample = replace(samples[0], **change)
    assert can_serve(sample, get_task(task)) is able


def test_typed_words_are_not_answered_as_if_they_had_a_voice(samples):
    assert not can_serve(samples[1], get_task("t2t"))  # sad, old, coughing
    assert can_serve(samples[0], get_task("t2t"))


def test_reading_aloud_reads_the_reply(samples, tokenizer, vocabulary):
    rendered = render(build_conversation(samples[0], get_task("tts")), "tts", tokenizer, vocabulary)
    text = tokenizer.decode([i for s in rendered if isinstance(s, TextSegment) for i in s.ids])
    assert samples[0].reply in text and samples[0].text not in text


def test_only_english_has_ctc_targets(samples):
    build = SpeechBuilder("abcdefghijklmnopqrstuvwxyz' ", ("en",), AudioLoader(), N_MELS)
    english = build(SampledItem(replace(samples[0], text="Don't, GO!", language="en"), "ctc", 0, 1))
    assert english.targets == (4, 15, 14, 27, 20, 28, 7, 15)
    german = build(SampledItem(replace(samples[0], language="de"), "ctc", 0, 1))
    assert german.targets is None and german.labels == english.labels


@given(st.text())
def test_spoken_form_is_a_fixed_point(text):
    once = normalize_text(text)
    assert normalize_text(once) == once == once.lower().strip() and "  " not in once


def test_unreadable_sound_is_a_value_error(tmp_path, builder):
    (tmp_path / "a.wav").write_bytes(b"no sound")
    sample = sample_of({"key": "k", "audio": "a.wav", "text": "a"}, AudioFolder(str(tmp_path)))
    with pytest.raises(ValueError, match="a.wav"):
        builder(SampledItem(sample, "asr", 0, 1))
