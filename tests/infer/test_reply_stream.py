"""Events of a reply during generation, decoding rules, and cancellation."""

import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from echat.dialogue.tasks import DecodingDefaults, Profile, Sampling, get_task
from echat.dialogue.turns import Conversation, ask
from echat.dialogue.vocabulary import Vocabulary
from echat.infer import events, generation
from echat.infer.decoding import DecodingRules, GenerationState
from echat.infer.engine import Engine
from echat.infer.loading import load
from echat.infer.prompt_cache import PromptCache
from echat.infer.reply_stream import Detokenizer
from echat.model.llm import LanguageModel
from echat.token2wav import streaming

LIVELY = Sampling(sample=True, top_k=8, top_p=0.95, temperature=1.3)
FORCED = DecodingDefaults(Sampling(sample=True, temperature=50.0), LIVELY, max_new_ids=1500)
LONG = 3  # a seed with which random weights speak for several pieces
needs_streaming = pytest.mark.skipif(
    not hasattr(streaming, "begin"), reason="token2wav does not yet synthesise in pieces"
)


def question() -> Conversation:
    return ask(audio=0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0)))


# --- text


def emitted(engine: Engine, task: str, text: str, profile: Profile = "echat") -> tuple[list[str], list[Any]]:
    """Pieces and other events during the generation of `text`."""
    engine = replace(engine, profile=profile)
    rules = DecodingRules.make(get_task(task), engine.vocabulary, profile)
    detokenizer = Detokenizer(engine.tokenizer, rules)
    ids = [*engine.tokenizer.encode(text), engine.vocabulary.text_end]
    found = [event for id_ in ids for event in detokenizer.push(id_)] + list(detokenizer.end())
    pieces = [event.text for event in found if isinstance(event, events.TextPiece)]
    return pieces, [event for event in found if not isinstance(event, events.TextPiece)]


@pytest.mark.parametrize(
    ("task", "text", "reply"),
    [
        ("s2t", "i am so sorry to hear that", "i am so sorry to hear that"),
        ("s2t", " two  blanks\n", "two  blanks"),
        ("s2t", "你好，很高兴 😀 认识你", "你好，很高兴 😀 认识你"),
        ("s2t", "<安慰鼓励>别难过", "别难过"),
        ("s2t", "<think>unasked<think end>so it is", "so it is"),
        ("s2t", "1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("asr", "i am home<HAPPY><ADULT>", "i am home<HAPPY><ADULT>"),
        ("s2t_think_language", "<think>she is sad<think end>come in", "come in"),
        ("s2t_think_language", "<think>she is sad", ""),
        ("s2t_think_language", "no thought at all", "no thought at all"),
        ("s2t_think_label", "<think>用户说的话是:hi,年龄为:<ADULT><think end><开心>hi you", "hi you"),
    ],
)
def test_pieces_add_up_to_the_reply(engine: Engine, task: str, text: str, reply: str) -> None:
    pieces, others = emitted(engine, task, text)
    assert "".join(pieces) == reply and all(pieces)
    assert not any("\ufffd" in piece for piece in pieces)
    (whole,) = (event for event in others if isinstance(event, events.Text))
    assert whole.text == reply
    if "<think end>" in text and get_task(task).thinks:
        assert isinstance(others[0], events.Thought)


def test_pieces_come_while_the_text_is_generated(engine: Engine) -> None:
    pieces, _ = emitted(engine, "s2t", "thank you. i am fine, see you soon")
    assert len(pieces) > 3


def test_the_reference_loses_the_last_id_in_pieces_too(engine: Engine) -> None:
    pieces, others = emitted(engine, "s2s", "thank you.", "reference")
    assert "".join(pieces) == "thank you" and others == [events.Text("thank you")]


def test_events_of_interleaved_speech_come_in_the_order_of_generation(engine: Engine) -> None:
    """Speech ids come before the text is complete."""
    text = engine.tokenizer.encode("thank you. i am fine, see you soon and thank you again")
    detokenizer = Detokenizer(
        engine.tokenizer, DecodingRules.make(get_task("s2s_stream"), engine.vocabulary, "echat")
    )
    left = {
        False: [*text, engine.vocabulary.text_end],
        True: [engine.vocabulary.speech_boundary, *range(10)] * 12,
    }
    kinds = []
    while left[detokenizer.state.next_is_speech]:
        kinds += [type(event) for event in detokenizer.push(left[detokenizer.state.next_is_speech].pop(0))]
    first = kinds.index(events.SpeechIds)
    assert first < kinds.index(events.Text) < len(kinds) - 1
    assert events.TextPiece in kinds[:first] and events.TextPiece in kinds[first:]


# --- rules


@pytest.mark.parametrize(
    ("task", "profile", "constrained"),
    [
        ("s2s_think_label", "osum", True),
        ("s2s", "osum", False),
        ("s2s", "reference", True),
        ("s2s_think_label", "echat", False),
    ],
)
def test_an_age_is_forced_in_its_slot_alone(task: str, profile: Profile, constrained: bool) -> None:
    vocabulary = Vocabulary(100, 10, 1, 2, age_trigger=(5, 6), age_allowed=(7, 8))
    assert bool(DecodingRules.make(get_task(task), vocabulary, profile).slots) == constrained


def test_each_slot_of_a_label_thought_is_filled_by_a_label_of_its_kind() -> None:
    """Whatever the logits; with the profile of this package alone, and once for each slot."""
    slots = (((5, 6), (7, 8)), ((5,), (9,)))
    vocabulary = Vocabulary(100, 10, 1, 2, label_slots=slots)
    for task, profile, count in (
        ("s2t_think_label", "echat", 2), ("s2t_think_language", "echat", 0), ("s2t_think_label", "osum", 0),
    ):  # fmt: skip
        assert len(DecodingRules.make(get_task(task), vocabulary, profile).slots) == count  # type: ignore[arg-type]
    state = GenerationState(DecodingRules.make(get_task("s2t_think_label"), vocabulary, "echat"))
    eager = torch.zeros(100)
    eager[50], eager[8], eager[7] = 3.0, 2.0, 1.0
    written = []
    for id_ in (5, 6):
        state.push(id_)
        written.append(state._choose_text(eager))
    assert written == [9, 8]  # after 5 the second slot, after 5 and 6 the first
    for id_ in (5, 6):
        state.push(id_)
    assert state._choose_text(eager) == 50  # filled already


@pytest.mark.parametrize(("profile", "guarded"), [("echat", True), ("osum", True), ("reference", False)])
def test_only_the_reference_speaks_without_a_guard(profile: Profile, guarded: bool) -> None:
    rules = DecodingRules.make(get_task("s2s"), Vocabulary(100, 10, 1, 2), profile)
    assert (rules.speech_guard is not None) == rules.limit_speech == rules.force_boundary == guarded


# --- cancel


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """Every KV cache that the language model has made."""
    seen: list[weakref.ref] = []
    extend = LanguageModel.extend

    def watched(self: LanguageModel, *args: Any) -> Any:
        hidden, cache = extend(self, *args)
        seen.append(weakref.ref(cache.keys))
        return hidden, cache

    monkeypatch.setattr(LanguageModel, "extend", watched)
    return seen


def test_a_reply_stops_before_its_next_id(engine: Engine, caches: list[weakref.ref]) -> None:
    cancel = threading.Event()
    count = 0
    for event in engine.reply(question(), "s2s", seed=1, decoding=FORCED, cancel=cancel):
        if isinstance(event, events.TextPiece):
            count += 1
        if count == 5:
            n_read = len(caches)
            cancel.set()
            count += 1
    assert isinstance(event, events.Done) and event.finish_reason == "cancelled"
    assert len(caches) <= n_read + 1 and event.reply.waveform is None
    assert event.reply.text and not event.reply.speech_ids and event.reply.prompt_cache is None
    del event
    gc.collect()
    assert not any(cache() is not None for cache in caches)


def test_closing_the_iterator_stops_and_frees(engine: Engine, caches: list[weakref.ref]) -> None:
    reply = engine.reply(question(), "s2s", seed=1, decoding=FORCED)
    next(reply)
    assert any(cache() is not None for cache in caches)
    n_read = len(caches)
    reply.close()
    gc.collect()
    assert len(caches) == n_read and not any(cache() is not None for cache in caches)


def test_a_long_prompt_is_cancelled_between_chunks(
    engine: Engine, caches: list[weakref.ref], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = threading.Event()
    read = generation.prefill_step

    def read_then_cancel(*args: Any) -> int:
        if len(caches) == 2:
            cancel.set()
        return read(*args)

    monkeypatch.setattr(generation, "PREFILL_CHUNK", 10)
    monkeypatch.setattr(generation, "prefill_step", read_then_cancel)
    emitted = list(engine.reply(question(), "s2s", cancel=cancel, prompt_cache=PromptCache()))
    (done,) = emitted
    assert isinstance(done, events.Done) and done.finish_reason == "cancelled"
    assert done.reply.counts["prefilled_tokens"] == 30 and done.reply.raw_text == ""
    assert done.reply.prompt_cache is not None and len(done.reply.prompt_cache.position_keys) == 30
    monkeypatch.undo()
    again = engine.run(question(), "s2s", seed=1, prompt_cache=done.reply.prompt_cache)
    assert again.counts["cached_tokens"] == 30
    assert again.text_ids == engine.run(question(), "s2s", seed=1).text_ids


def test_cancelled_before_it_began(engine: Engine) -> None:
    cancel = threading.Event()
    cancel.set()
    (done,) = engine.reply(question(), "s2s", cancel=cancel)
    assert isinstance(done, events.Done) and done.finish_reason == "cancelled"


def test_a_second_state_follows_the_first(engine: Engine) -> None:
    """Pushing the ids one by one gives the state that generated them."""
    sequence = engine.new_sequences(
        [generation_request(engine, "s2s_stream")],
    )[0]
    steps = list(generation.generate(engine.model, sequence))
    copy = GenerationState(sequence.state.rules)
    for step in steps:
        copy.push(step.id)
    assert (copy.ids, copy.is_speech) == (sequence.state.ids, sequence.state.is_speech)
    assert copy.finish_reason == sequence.state.finish_reason


def generation_request(engine: Engine, task: str) -> Any:
    from echat.infer.reply_stream import ReplyRequest

    return ReplyRequest(question(), get_task(task), seed=1, decoding=replace(FORCED, max_new_ids=80))


# --- sound in pieces


@pytest.fixture
def hummed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Synthesis of a hum: 10 samples for each id, 7 ids at a time."""

    def push(model: Any, waiting: list[int], ids: list[int], final: bool = False) -> tuple[Any, list[int]]:
        waiting = [*waiting, *ids]
        n = len(waiting) if final else len(waiting) // 7 * 7
        return torch.tensor(waiting[:n]).repeat_interleave(10).float(), waiting[n:]

    monkeypatch.setattr(streaming, "begin", lambda model, voice, seed: [], raising=False)
    monkeypatch.setattr(streaming, "push", push, raising=False)
    yield


@pytest.mark.parametrize("task", ["s2s", "s2s_stream", "tts"])
def test_audio_comes_while_ids_are_generated(speaking: Path, hummed: None, task: str) -> None:
    asked = question() if task != "tts" else ask(text="how are you")
    decoding = replace(FORCED, max_new_ids=1500 if task == "s2s" else 200)
    emitted = list(load(speaking).reply(asked, task, seed=LONG, decoding=decoding, stream=True))
    pieces = [event.waveform for event in emitted if isinstance(event, events.Audio)]
    done = emitted[-1]
    assert isinstance(done, events.Done) and len(pieces) > 2
    assert torch.equal(torch.cat(pieces), done.reply.waveform)  # type: ignore[arg-type]
    assert torch.cat(pieces)[::10].tolist() == list(done.reply.speech_ids)
    first = next(n for n, event in enumerate(emitted) if isinstance(event, events.Audio))
    assert any(isinstance(event, events.SpeechIds) for event in emitted[first:])
    assert 0 < done.seconds["first_audio"] < done.seconds["total"]
    ids = [id_ for event in emitted if isinstance(event, events.SpeechIds) for id_ in event.ids]
    assert tuple(ids) == done.reply.speech_ids


def test_speech_is_cancelled_between_pieces(speaking: Path, hummed: None) -> None:
    cancel = threading.Event()
    emitted = []
    for event in load(speaking).reply(
        question(), "s2s", seed=LONG, decoding=FORCED, stream=True, cancel=cancel
    ):
        emitted.append(event)
        if isinstance(event, events.Audio):
            cancel.set()
    kinds = [type(event) for event in emitted]
    assert kinds.count(events.Audio) == 1 and kinds[-1] is events.Done
    done = emitted[-1]
    assert done.finish_reason == "cancelled" and len(done.reply.waveform) == 70
    assert len(done.reply.speech_ids) == 7


@needs_streaming
def test_pieces_are_the_waveform(speaking: Path) -> None:
    engine = load(speaking)
    emitted = list(engine.reply(question(), "s2s", seed=LONG, decoding=FORCED, stream=True))
    pieces = [event.waveform for event in emitted if isinstance(event, events.Audio)]
    done = emitted[-1]
    assert isinstance(done, events.Done) and done.reply.waveform is not None
    assert torch.equal(torch.cat(pieces), done.reply.waveform)
    whole = engine.run(question(), "s2s", seed=LONG, decoding=FORCED)
    assert whole.waveform is not None and whole.speech_ids == done.reply.speech_ids
    assert len(whole.waveform) == len(done.reply.waveform)


def test_a_thought_comes_in_pieces(engine: Engine) -> None:
    text = "<think>she is sad, be kind<think end>come in"
    rules = DecodingRules.make(get_task("s2t_think_language"), engine.vocabulary, "echat")
    for shown in (True, False):
        detokenizer = Detokenizer(engine.tokenizer, rules, show_thinking=shown)
        ids = [*engine.tokenizer.encode(text), engine.vocabulary.text_end]
        found = [event for id_ in ids for event in detokenizer.push(id_)]
        pieces = [event.text for event in found if isinstance(event, events.ThoughtPiece)]
        assert "".join(pieces) == ("she is sad, be kind" if shown else "")
        assert not shown or len(pieces) > 2
