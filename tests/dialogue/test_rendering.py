"""One renderer: equal to the recorded layouts, and the prompt is always a prefix of the training sequence."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from echat.dialogue.labels import Labels
from echat.dialogue.rendering import AudioSegment, Segment, SpeechSegment, TextSegment, plain_ids, render
from echat.dialogue.tasks import TASKS, Task
from echat.dialogue.thinking import LabelThought, LanguageThought
from echat.dialogue.turns import AssistantTurn, Conversation, Turn, UserTurn
from echat.dialogue.vocabulary import Vocabulary

ASSETS = Path(__file__).parent.parent / "assets" / "model"
PROFILES = ("echat", "osum", "reference")


class Remembering:
    """The recorded tokenizer; each text is encoded once, as the same prompts come again and again here."""

    def __init__(self) -> None:
        self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(ASSETS / "llm"))
        self._ids = cache(lambda text: tuple(self._tokenizer.encode(text, add_special_tokens=False)))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return list(self._ids(text))

    def decode(self, ids: Any, **options: Any) -> str:
        return self._tokenizer.decode(ids, **options)

    def __len__(self) -> int:
        return len(self._tokenizer)


@cache
def tokenizer() -> Remembering:
    return Remembering()


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer(), codec_size=40, text_size=416)


def recorded(name: str) -> dict[str, Any]:
    return json.loads((ASSETS / name).read_text(encoding="utf-8"))


def flatten(layout: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """A recorded layout in the form of ``plain_ids``."""
    flat: list[tuple[str, Any]] = []
    for piece in layout:
        if "text" in piece:
            ids = tokenizer().encode(piece["text"], add_special_tokens=False)
            flat += [("text", id_) for id_ in ids]
        elif "text_ids" in piece:
            flat += [("text", id_) for id_ in piece["text_ids"]]
        elif "speech_ids" in piece:
            flat += [("speech", id_) for id_ in piece["speech_ids"]]
        elif "mixed_ids" in piece:
            size = vocabulary().text_size
            flat += [("speech", i - size) if i >= size else ("text", i) for i in piece["mixed_ids"]]
        else:
            flat.append(("audio", piece.get("wave") or piece["features"]))
    return flat


def learned(segments: list[Segment]) -> list[tuple[str, Any]]:
    return plain_ids([segment for segment in segments if segment.is_target])


def shown(conversation: Conversation, task: str | Task, profile: Any = "echat") -> list[Segment]:
    return render(conversation, task, tokenizer(), vocabulary(), profile)


# --- the recorded reference ---

MODES = {
    "understanding": "asr",
    "s2t_chat": "s2t",
    "s2t_chat_think": "s2t_think_language",
    "t2t": "t2t",
    "tts": "tts",
    "s2s": "s2s",
    "s2s_think": "s2s_think_language",
    "s2s multi-turn": "s2s",
}


def recorded_conversation(run: dict[str, Any]) -> Conversation:
    waves = [piece["wave"] for piece in run["prefix_layout"] if "wave" in piece]
    turns: list[Turn] = []
    if run.get("turn") == 2:
        said = next(piece["text_ids"] for piece in run["prefix_layout"] if "text_ids" in piece)
        spoken = next(p["speech_ids"] for p in run["prefix_layout"] if len(p.get("speech_ids", [])) > 1)
        end = [vocabulary().text_end]  # any id: the reference drops the last
        turns = [UserTurn(audio=waves[0]), AssistantTurn("…", spoken[1:-1], text_ids=said + end)]
    question = UserTurn(text=run.get("text"), audio=waves[-1] if waves else None, prompt=run.get("prompt"))
    return Conversation([*turns, question])


@pytest.mark.parametrize("run", recorded("generate.json").values(), ids=list(recorded("generate.json")))
def test_reference_profile_repeats_every_recorded_prompt(run: dict[str, Any]) -> None:
    segments = shown(recorded_conversation(run), MODES[run["mode"]], "reference")
    assert plain_ids(segments) == flatten(run["prefix_layout"])


OUTPUT_TYPES = {
    "text": "asr",
    "s2t_chat": "s2t",
    "s2t_chat_fake": "s2t_fake",
    "s2t_chat_think": "s2t_think_language",
    "text2text": "t2t",
    "text2token": "tts",
    "text2token_streaming": "tts_stream",
    "speech2text_token": "s2s",
    "speech2text_token_think": "s2s_think_language",
    "speech2text_token_streaming": "s2s_stream",
}
CASES = [
    pytest.param(case, item, id=f"{name}-{item}")
    for name, case in recorded("forward.json").items()
    if case["output_type"] in OUTPUT_TYPES
    for item in (0, 1)
]


@pytest.mark.parametrize("case,item", CASES)
def test_training_sequence_repeats_the_recorded_layout(case: dict[str, Any], item: int) -> None:
    layout = case["layout"][item]
    task = TASKS[OUTPUT_TYPES[case["output_type"]]]
    text = case["texts"][item]
    heard = next((piece["features"] for piece in layout if "features" in piece), None)
    instruction = next((p["text_ids"] for p in layout if p.get("role") == "prompt"), None)
    asked = tokenizer().decode(instruction) if instruction else ""
    if "&&" in text and not text.endswith("<&&>"):  # this one was recorded without its text end
        layout = [*layout, {"text_ids": [vocabulary().text_end], "role": "label"}]
    label = flatten([piece for piece in layout if piece.get("role") == "label"])
    spoken = [id_ for kind, id_ in label if kind == "speech"][1:-1]
    thought = None
    if task.thinks:
        inside, text = text.removeprefix("<think>").split("<think end>")
        thought = LanguageThought(inside)
    if task.input_modality == "text":
        question = UserTurn(text=asked or text)
    else:
        question = UserTurn(audio=heard, prompt=asked)
    answer = AssistantTurn(text, spoken or None, thought)
    segments = shown(Conversation([question, answer]), task, "osum")
    hole = ("text", vocabulary().unknown)  # the reference hides holes, we read them
    assert [piece for piece in plain_ids(segments) if piece != hole] == flatten(layout)
    assert learned(segments) == label


# --- properties ---

words = st.text("abcdefghi klm.,你好", min_size=1, max_size=20)
codec_ids = st.lists(st.integers(0, 39), min_size=200, max_size=220)


def answer_for(task: Task, text: str, speech_ids: list[int]) -> AssistantTurn:
    thought = {
        None: None,
        "label": LabelThought(text, "old", None, "sad", "none", "安慰鼓励"),
        "language": LanguageThought(text),
    }[task.thinks]
    return AssistantTurn(text, speech_ids if task.writes_speech else None, thought)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("n_past", [0, 1, 3])
@settings(max_examples=8, deadline=None)
@given(text=words, speech_ids=codec_ids)
def test_prompt_is_a_prefix_of_the_training_sequence(
    profile: str, n_past: int, text: str, speech_ids: list[int]
) -> None:
    for task in TASKS.values():
        question = UserTurn(
            text=text, audio=None if task.input_modality == "text" else "sound", labels=Labels("child")
        )
        answer = answer_for(task, text, speech_ids)
        past = [question, answer] * n_past
        prompt = plain_ids(shown(Conversation([*past, question]), task, profile))
        segments = shown(Conversation([*past, question, answer]), task, profile)
        assert plain_ids(segments)[: len(prompt)] == prompt
        given_ids = 1 if not task.writes_text else 0
        answered = plain_ids(segments)[len(prompt) - given_ids :]
        assert [piece for piece in answered if piece != ("text", vocabulary().unknown)] == learned(segments)


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.writes_speech])
def test_speech_is_framed_by_the_boundary(task: Task) -> None:
    question = UserTurn(text="good morning", audio=None if task.input_modality == "text" else "sound")
    answer = answer_for(task, "thank you.", list(range(40)) * 4)
    spoken = [id_ for kind, id_ in learned(shown(Conversation([question, answer]), task)) if kind == "speech"]
    boundary = vocabulary().speech_boundary
    assert spoken == [boundary, *(list(range(40)) * 4), boundary]


def test_history_repeats_the_single_turn_layout() -> None:
    first, reply = UserTurn(audio="a"), AssistantTurn("hi", [1, 2])
    alone = plain_ids(shown(Conversation([first, reply]), "s2s"))
    both = plain_ids(shown(Conversation([first, reply, UserTurn(audio="b")]), "s2s"))
    turn_end = [("text", id_) for id_ in tokenizer().encode("<|im_end|>\n", add_special_tokens=False)]
    assert both[: len(alone) + len(turn_end)] == alone + turn_end


def text_pieces(text: str) -> list[tuple[str, Any]]:
    return [("text", id_) for id_ in tokenizer().encode(text, add_special_tokens=False)]


SPEECH_IDS = st.lists(st.integers(0, 40), max_size=8)  # 40 is the boundary, wherever it stands


@given(st.lists(st.tuples(st.lists(st.integers(0, 399), max_size=6), SPEECH_IDS), max_size=7))
@settings(max_examples=60, deadline=None)
def test_reference_history_repeats_speech_as_generated(past: list[tuple[list[int], list[int]]]) -> None:
    turns: list[Turn] = []
    for number, (text_ids, raw) in enumerate(past):
        spoken = [id_ for id_ in raw if id_ != vocabulary().speech_boundary]
        turns += [UserTurn(audio=number), AssistantTurn("", spoken, None, text_ids, raw)]
    turns.append(UserTurn(audio="now"))
    found = plain_ids(shown(Conversation(turns), "s2s", "reference"))
    change = [
        ("text", id_)
        for id_ in tokenizer().encode("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    ]
    begin, end = vocabulary().user_audio_begin, vocabulary().user_audio_end
    expected: list[tuple[str, Any]] = []
    for number, (text_ids, raw) in list(enumerate(past))[-5:]:
        expected += [("speech", begin), ("audio", number), ("speech", end), *change]
        expected += [("text", id_) for id_ in text_ids[:-1]] + [("speech", id_) for id_ in raw]
    alone = plain_ids(shown(Conversation(turns[-1:]), "s2s", "reference"))
    system = (
        len(alone) - len(change) - 3 - len(tokenizer().encode("<|im_start|>user\n", add_special_tokens=False))
    )
    assert found == alone[:system] + expected + alone[system:]


@given(SPEECH_IDS)
@settings(max_examples=30, deadline=None)
def test_our_history_frames_speech_however_it_was_generated(raw: list[int]) -> None:
    spoken = [id_ for id_ in raw if id_ != vocabulary().speech_boundary]
    layouts = [
        shown(
            Conversation(
                [UserTurn(audio=1), AssistantTurn("hi", spoken, None, None, ids), UserTurn(audio=2)]
            ),
            "s2s",
        )
        for ids in (raw, None)
    ]
    assert layouts[0] == layouts[1]


@pytest.mark.parametrize("raw", [[41], [-1], [0, 42]])
def test_speech_rows_that_no_model_writes_are_refused(raw: list[int]) -> None:
    turns = [UserTurn(audio=1), AssistantTurn("hi", [1], None, [1, 2], raw), UserTurn(audio=2)]
    with pytest.raises(ValueError, match="speech_ids: expected ids in 0..40"):
        shown(Conversation(turns), "s2s", "reference")


def test_typed_turns_may_stand_in_a_spoken_history() -> None:
    typed = Conversation([UserTurn(text="hello"), AssistantTurn("hi", [1]), UserTurn(audio="b")])
    spoken = Conversation([UserTurn(audio="a"), AssistantTurn("hi", [1]), UserTurn(audio="b")])
    kinds = [segment for segment in shown(typed, "s2s") if isinstance(segment, AudioSegment)]
    assert kinds == [AudioSegment("b")]
    assert len([s for s in shown(spoken, "s2s") if isinstance(s, AudioSegment)]) == 2


def test_sound_replaced_by_text_keeps_its_markers() -> None:
    question = UserTurn(
        text="i lost my keys", labels=Labels("adult", "female", "sad", "cough"), is_pseudo_audio=True
    )
    segments = shown(Conversation([question]), "understand")
    begin = segments.index(SpeechSegment((vocabulary().user_audio_begin,)))
    heard = segments[begin + 1]
    assert isinstance(heard, TextSegment)
    assert tokenizer().decode(list(heard.ids)) == "sad adult female cough:i lost my keys"
    assert segments[begin + 2] == SpeechSegment((vocabulary().user_audio_end,))


@pytest.mark.parametrize("profile", PROFILES)
def test_unknown_labels_are_never_learned(profile: str) -> None:
    thought = LabelThought("my cat", None, "male", None, "none")
    answer = AssistantTurn("oh no", thought=thought)
    segments = shown(Conversation([UserTurn(audio="a"), answer]), "s2t_think_label", profile)
    assert ("text", vocabulary().unknown) not in learned(segments)
    holes = plain_ids(segments).count(("text", vocabulary().unknown))
    assert holes == 2


@pytest.mark.parametrize("task", ["understand", "s2t_think_label", "s2s_think_label"])
def test_a_guess_stands_where_a_hole_would_and_is_not_learned(task: str) -> None:
    """As the model finds it when it writes by itself: a label that nobody taught it."""
    labels = Labels(age="child", emotion="happy")
    thought = LabelThought("i like ships", "child", None, "happy", None, "愉悦") if "think" in task else None
    answer = AssistantTurn("so do i" if thought else None, (1, 2), thought)
    conversation = Conversation([UserTurn("i like ships", audio=object(), labels=labels), answer])
    holes = shown(conversation, task)
    guesses = {"gender": "female", "sound_event": "cough", "style": "客服"}
    guessed = render(conversation, task, tokenizer(), vocabulary(), guess=guesses.__getitem__)
    assert learned(guessed) == learned(holes)
    written = "".join(tokenizer().decode(list(s.ids)) for s in guessed if isinstance(s, TextSegment))
    wanted = {"gender": "<FEMALE>", "sound_event": "<COUGH>"}
    assert "&&" not in written and all(tag in written for tag in wanted.values())
    assert ("text", vocabulary().unknown) not in plain_ids(guessed)


def test_label_reply_carries_its_emotion_and_language_reply_does_not() -> None:
    question = UserTurn(audio="a")
    label = AssistantTurn("oh", thought=LabelThought("x", reply_emotion="开心"))
    free = AssistantTurn("oh", thought=LanguageThought("a child laughs"))
    in_labels = learned(shown(Conversation([question, label]), "s2t_think_label"))
    in_words = learned(shown(Conversation([question, free]), "s2t_think_language"))
    text = [
        tokenizer().decode([i for _, i in ids], skip_special_tokens=True) for ids in (in_labels, in_words)
    ]
    assert text[0].endswith("<think end><开心>oh")
    assert text[1] == "<think>a child laughs<think end>oh"


def test_placeholder_swallowed_by_merges_is_still_one_hole() -> None:
    class Merging:
        """Encodes ``>`` together with what stands before it, so that no lone ``&&`` appears."""

        def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
            ids = tokenizer().encode(text, add_special_tokens=False)
            return (
                [1 if i == vocabulary().unknown else i for i in ids] if "<" in text and "&&" in text else ids
            )

        def decode(self, ids: Any) -> str:
            return tokenizer().decode(ids)

        def __len__(self) -> int:
            return len(tokenizer())

    question = UserTurn(text="hello", audio="a", labels=Labels(emotion="sad"))
    segments = render(Conversation([question, AssistantTurn()]), "understand", Merging(), vocabulary())
    assert plain_ids(segments).count(("text", vocabulary().unknown)) == 3


@pytest.mark.parametrize(
    "turns,task,message",
    [
        ([UserTurn(text="hi")], "s2s", "expected a user turn with audio"),
        ([UserTurn(audio="a")], "t2t", "expected text, found audio only"),
        ([UserTurn()], "t2t", "expected text, found none"),
        ([UserTurn(audio="a"), AssistantTurn("hi")], "s2s", "expected speech ids"),
        ([UserTurn(audio="a"), AssistantTurn("hi", [1, 40])], "s2s", "found 40 at position 1"),
        ([UserTurn(audio="a"), AssistantTurn("hi")], "s2t_think_label", "expected a thought in label form"),
        ([UserTurn(audio="a"), AssistantTurn()], "s2t", "expected a reply"),
        ([UserTurn(audio="a"), AssistantTurn()], "asr", "expected the words"),
        ([UserTurn(audio="a")], "s2x", "did you mean"),
    ],
)
def test_errors_say_what_is_missing(turns: list[Turn], task: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shown(Conversation(turns), task)


def test_no_unknown_id_is_an_error_only_when_needed() -> None:
    without = replace(vocabulary(), unknown=None)
    question = UserTurn(text="hello", audio="a", labels=Labels(emotion="sad"))
    conversation = Conversation([question, AssistantTurn()])
    assert render(conversation, "asr_emotion", tokenizer(), without)
    with pytest.raises(ValueError, match="unknown label"):
        render(conversation, "asr_age", tokenizer(), without)
