"""Many requests to one scheduler: each reply is the one that it gets alone."""

import threading
import time

import pytest
import torch

from echat.dialogue.tasks import DecodingDefaults, Sampling, get_task
from echat.dialogue.turns import Conversation, ask
from echat.infer import events
from echat.infer.engine import Engine
from echat.infer.events import Reply
from echat.infer.prompt_cache import PromptCache
from echat.infer.scheduler import Scheduler

LIVELY = Sampling(sample=True, top_k=8, top_p=0.95, temperature=1.3)
SHORT = DecodingDefaults(LIVELY, LIVELY, max_new_ids=12)
ENDLESS = DecodingDefaults(Sampling(sample=True, temperature=50.0), LIVELY, max_new_ids=3000)
TASKS = ("s2s", "asr", "t2t", "s2s_stream", "tts", "s2t_think_language", "s2s_think_label", "understand")


def question(task: str, seed: int) -> Conversation:
    if get_task(task).input_modality == "text":
        return ask(text="how are you today?"[: 4 + seed])
    generator = torch.Generator().manual_seed(seed)
    return ask(audio=0.1 * torch.randn(4000 + 800 * seed, generator=generator))


def written(reply: Reply) -> tuple[object, ...]:
    return reply.text_ids, reply.speech_ids, reply.finish_reason


def at_once(jobs: list) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("way", ["engine", "scheduler"])
def test_eight_threads_are_answered_as_one_at_a_time(tiny: Engine, way: str) -> None:
    def answer(row: int, scheduler: Scheduler | None) -> Reply:
        asked = question(TASKS[row], row), TASKS[row]
        settings = {"seed": row, "decoding": SHORT, "speak": False}
        return scheduler.submit(*asked, **settings).reply() if scheduler else tiny.run(*asked, **settings)

    expected = [written(answer(row, None)) for row in range(8)]
    found: dict[int, tuple[object, ...]] = {}
    with Scheduler(tiny, rows=5) as scheduler:
        given = scheduler if way == "scheduler" else None
        at_once([lambda row=row: found.update({row: written(answer(row, given))}) for row in range(8)])
    assert [found[row] for row in range(8)] == expected


def test_a_handle_yields_the_events_of_a_reply(engine: Engine) -> None:
    settings = {"seed": 3, "decoding": SHORT}
    with Scheduler(engine) as scheduler:
        *emitted, done = scheduler.submit(question("s2s", 1), "s2s", **settings)
    *expected, alone = engine.reply(question("s2s", 1), "s2s", **settings)
    assert emitted == expected
    assert isinstance(done, events.Done) and isinstance(alone, events.Done)
    assert written(done.reply) == written(alone.reply)
    assert done.reply.counts["cached_tokens"] > 0  # the system prompt was read before


def test_a_conversation_continues_from_its_prompt_cache(engine: Engine) -> None:
    first_question = question("t2t", 1)
    with Scheduler(engine) as scheduler:
        first = scheduler.submit(first_question, "t2t", seed=1, prompt_cache=PromptCache()).reply()
        longer = Conversation([*first_question.turns, first.as_turn(), *question("t2t", 5).turns])
        second = scheduler.submit(longer, "t2t", seed=1, prompt_cache=first.prompt_cache).reply()
    assert first.prompt_cache is not None
    assert second.counts["cached_tokens"] == len(first.prompt_cache.position_keys)
    assert written(second) == written(engine.run(longer, "t2t", seed=1))


@pytest.mark.parametrize("how", ["cancel", "event", "leave"])
def test_one_is_cancelled_and_the_others_finish(engine: Engine, how: str) -> None:
    with Scheduler(engine) as scheduler:
        stop = threading.Event()
        goer = scheduler.submit(question("tts", 9), "tts", seed=1, decoding=ENDLESS, cancel=stop)
        stayer = scheduler.submit(question("s2s", 2), "s2s", seed=2, decoding=SHORT)
        emitted = iter(goer)
        assert isinstance(next(emitted), events.SpeechIds)
        if how == "leave":
            emitted.close()  # type: ignore[attr-defined]
        else:
            (goer.cancel if how == "cancel" else stop.set)()
            *_, done = emitted
            assert isinstance(done, events.Done) and done.finish_reason == "cancelled"
            assert 0 < len(done.reply.speech_ids) < 3000
        reply = stayer.reply()
        assert written(reply) == written(engine.run(question("s2s", 2), "s2s", seed=2, decoding=SHORT))
        while not scheduler._batch.is_idle:
            time.sleep(0.01)
        assert scheduler._batch.kv_cache.n_bytes == 0 and not scheduler._handles


def test_closing_cancels_running_replies(engine: Engine) -> None:
    scheduler = Scheduler(engine)
    answer = scheduler.submit(question("tts", 9), "tts", seed=1, decoding=ENDLESS)
    scheduler.close()
    assert answer.reply().finish_reason in ("cancelled", "length", "loop")
    with pytest.raises(RuntimeError, match="found it closed"):
        scheduler.submit(question("tts", 9), "tts")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_caller_waits_for_a_failed_worker(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(engine)

    def fail() -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(scheduler._batch, "step", fail)
    with pytest.raises(RuntimeError, match="stopped, and this reply with it"):
        scheduler.submit(question("t2t", 1), "t2t").reply()
    with pytest.raises(RuntimeError, match="found it closed"):
        scheduler.submit(question("t2t", 1), "t2t")
    scheduler.close()


def test_a_bad_request_is_refused_in_the_calling_thread(engine: Engine) -> None:
    with Scheduler(engine) as scheduler, pytest.raises(ValueError, match="did you mean 's2s'"):
        scheduler.submit(question("s2s", 1), "s2ss")
