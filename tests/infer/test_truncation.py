"""Truncation of the history to the training data and the context, on every way into the engine."""

from dataclasses import replace

import pytest
import torch

from echat.dialogue.capabilities import Capabilities, WrittenForm
from echat.dialogue.rendering import AudioSegment, Segment, TextSegment, plain_ids
from echat.dialogue.tasks import DecodingDefaults, Sampling, get_task
from echat.dialogue.turns import AssistantTurn, Conversation, Turn, UserTurn, ask
from echat.infer.engine import Engine
from echat.infer.prompt_cache import PromptCache
from echat.infer.truncation import n_positions
from echat.model.speech_encoder import EncoderConfig

ENCODER = EncoderConfig()
LIVELY = Sampling(sample=True, top_k=8, top_p=0.95, temperature=1.3)
SAMPLED = DecodingDefaults(LIVELY, LIVELY, max_new_ids=40)
TASKS = ("s2s", "s2t_think_language", "t2t")


def asked(task: str, number: int) -> UserTurn:
    if get_task(task).input_modality == "text":
        return UserTurn(text=f"question {number}")
    return UserTurn(audio=0.1 * torch.randn(3000, generator=torch.Generator().manual_seed(number)))


def dialogue(task: str, earlier: int) -> Conversation:
    turns: list[Turn] = []
    for number in range(earlier):
        turns += [asked(task, number), AssistantTurn(text=f"answer {number}", speech_ids=[3, 4, 5])]
    return Conversation([*turns, asked(task, earlier)])


def limited(engine: Engine, turns: int | None) -> Engine:
    return replace(engine, profile="echat", capabilities=Capabilities(history_turns=turns))


def comparable(segment: Segment) -> object:
    """Audio is compared by identity: comparing waveforms gives no truth value."""
    return id(segment.audio) if isinstance(segment, AudioSegment) else segment


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_history_beyond_the_training_data_is_rendered_as_the_shorter_one(
    engine: Engine, task: str, kept: int
) -> None:
    conversation = dialogue(task, 3)
    segments = limited(engine, kept).render(conversation, task)
    expected = limited(engine, None).render(conversation.with_history(kept), task)
    assert list(map(comparable, segments)) == list(map(comparable, expected))
    reply = limited(engine, kept).run(conversation, task, decoding=SAMPLED, speak=False)
    assert reply.counts["turns_left_out"] == 3 - kept


@pytest.mark.parametrize("task", TASKS)
def test_without_declared_capabilities_nothing_is_left_out(engine: Engine, task: str) -> None:
    conversation = dialogue(task, 3)
    assert limited(engine, None).fitted(conversation, task) == conversation


def test_the_reference_gets_a_conversation_as_it_is(engine: Engine) -> None:
    reference = replace(
        engine, profile="reference", capabilities=Capabilities(history_turns=0, languages=("zh",))
    )
    conversation = dialogue("t2t", 2)
    assert reference.fitted(conversation, "t2t") is conversation


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kept", [0, 1])
def test_a_reply_after_prefill_is_the_reply_without(engine: Engine, task: str, kept: int) -> None:
    trained = limited(engine, kept)
    conversation = dialogue(task, 2)
    prompt_cache = trained.prefill(conversation.turns[:-1], task)
    cold = trained.run(conversation, task, seed=3, decoding=SAMPLED, speak=False)
    warm = trained.run(conversation, task, seed=3, decoding=SAMPLED, speak=False, prompt_cache=prompt_cache)
    assert (cold.text_ids, cold.speech_ids) == (warm.text_ids, warm.speech_ids)
    assert warm.counts["cached_tokens"] == len(prompt_cache.position_keys) > 0


@pytest.mark.parametrize("earlier", [0, 2])
def test_prefill_while_a_question_is_typed_reads_what_comes_before_it(engine: Engine, earlier: int) -> None:
    conversation = dialogue("t2t", earlier)
    begun = engine.prefill(conversation.turns, "t2t", PromptCache())
    assert begun.position_keys == engine.prefill(conversation.turns[:-1], "t2t").position_keys


@pytest.mark.parametrize("task", TASKS)
def test_a_history_longer_than_the_context_loses_its_oldest_turns(engine: Engine, task: str) -> None:
    conversation = dialogue(task, 8)
    whole, question = (
        n_positions(engine.render(c, task), ENCODER) for c in (conversation, conversation.with_history(0))
    )
    config = engine.model.config
    room = question + (whole - question) // 2
    small = config.model_copy(
        update={"llm": config.llm.model_copy(update={"max_positions": room * 4 // 3 + 1})}
    )
    narrow = replace(engine)
    original, engine.model.config = engine.model.config, small
    try:
        fitted = narrow.fitted(conversation, task)
        assert 0 < len(fitted.history) < 8
        assert fitted == conversation.with_history(len(fitted.history))
        assert n_positions(narrow.render(conversation, task), ENCODER) <= room
    finally:
        engine.model.config = original


def test_a_typed_question_longer_than_the_context_is_refused(engine: Engine) -> None:
    words = "word " * engine.model.config.llm.max_positions
    with pytest.raises(ValueError, match="text ids, which leave this model room for an answer"):
        engine.render(ask(text=words), "t2t")


def test_estimated_positions_of_audio_are_right(engine: Engine) -> None:
    conversation = dialogue("s2s", 1)
    (prompt,) = [sequence.prompt for sequence in engine.new_sequences([_request(conversation)])]
    n_sounds = sum(isinstance(segment, AudioSegment) for segment in engine.render(conversation, "s2s"))
    assert (
        abs(n_positions(engine.render(conversation, "s2s"), ENCODER) - len(prompt.position_keys)) <= n_sounds
    )


def _request(conversation: Conversation):
    from echat.infer.reply_stream import ReplyRequest

    return ReplyRequest(conversation, get_task("s2s"))


def test_typed_text_gets_the_form_of_the_training_data(engine: Engine) -> None:
    form = WrittenForm(lowercase=True, spelled_out=True, marks="")
    trained = replace(engine, profile="echat", capabilities=Capabilities(questions=form, languages=("en",)))
    plain = trained.render(ask(text="i have two dogs"), "t2t")
    assert trained.render(ask(text="I HAVE 2 dogs!"), "t2t") == plain
    questions = [
        Conversation([UserTurn(text=text, is_pseudo_audio=True)]) for text in ("I'm sad.", "i'm sad")
    ]
    assert trained.render(questions[0], "s2t") == trained.render(questions[1], "s2t")
    assert any(isinstance(segment, TextSegment) for segment in plain)
    assert plain_ids(engine.render(ask(text="I HAVE 2"), "t2t")) != plain_ids(plain)
    with pytest.raises(ValueError, match="in another script"):
        trained.render(ask(text="你好"), "t2t")


def test_the_shipped_model_answers_the_same_in_capitals_and_in_a_later_turn(tiny: Engine) -> None:
    typed = [tiny.run(ask(text=text), "t2t").text for text in ("i lost my job", "I LOST MY JOB!")]
    assert typed[0] == typed[1] and typed[0]
    later = Conversation(
        [UserTurn(text="hello"), AssistantTurn(text="hello"), UserTurn(text="I lost my job.")]
    )
    assert tiny.run(later, "t2t").text == typed[0]
