"""Continuous batching: the ids of a sequence do not depend on the batch, and its cache is freed."""

import gc
import threading
import weakref

import pytest
import torch

from echat.dialogue.tasks import DecodingDefaults, Sampling, get_task
from echat.dialogue.turns import Conversation, ask
from echat.infer.continuous_batching import BatchedKVCache, ContinuousBatch
from echat.infer.engine import Engine
from echat.infer.generation import CACHE_HEADROOM, SequenceState
from echat.infer.prompt_cache import PromptCache
from echat.infer.reply_stream import ReplyRequest, parse_output
from echat.model.llm import KVCache

LIVELY = Sampling(sample=True, top_k=8, top_p=0.95, temperature=1.3)
SAMPLED = DecodingDefaults(LIVELY, LIVELY, max_new_ids=40)
TASKS = ("s2s", "asr", "t2t", "s2s_stream", "tts", "s2t_think_language", "s2s_think_label")


def question(task: str, row: int) -> Conversation:
    if get_task(task).input_modality == "text":
        return ask(text="how are you today?"[: 4 + row])
    generator = torch.Generator().manual_seed(row)
    return ask(audio=0.1 * torch.randn(4000 + 1500 * row, generator=generator))


def request(task: str, row: int, **settings: object) -> ReplyRequest:
    decoding = SAMPLED if row % 2 else DecodingDefaults(max_new_ids=SAMPLED.max_new_ids)
    return ReplyRequest(question(task, row), get_task(task), seed=row, decoding=decoding, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[list[int]]:
    """The reply to each request alone."""
    replies = []
    for row, task in enumerate(TASKS):
        asked = request(task, row)
        reply = engine.run(asked.conversation, task, seed=asked.seed, decoding=asked.decoding)
        replies.append([reply.text_ids, reply.speech_ids, reply.finish_reason])
    return replies


@pytest.mark.parametrize(("rows", "prefill_chunk"), [(1, 1000), (3, 7), (16, 1), (16, 1000)])
@pytest.mark.parametrize("pause", [0, 5])
def test_a_row_equals_the_row_alone(
    engine: Engine, alone: list[list[int]], rows: int, prefill_chunk: int, pause: int
) -> None:
    sequences = [engine.new_sequences([request(task, row)])[0] for row, task in enumerate(TASKS)]
    batch = ContinuousBatch(engine.model, rows, prefill_chunk)
    ended = []
    for sequence in sequences:
        batch.add(sequence)
        for _ in range(pause):  # the next one joins while this one is written
            ended += [s for s, step in batch.step() if step is None]
            assert len(batch.sequences) <= rows
    while not batch.is_idle:
        ended += [s for s, step in batch.step() if step is None]
    assert sorted(map(sequences.index, ended)) == list(range(len(TASKS)))
    replies = [parse_output(engine.tokenizer, sequence.state) for sequence in sequences]
    assert [[r.text_ids, r.speech_ids, r.finish_reason] for r in replies] == alone
    assert batch.kv_cache.n_bytes == 0 and not batch.sequences


def test_steps_come_in_order_and_the_end_once(engine: Engine) -> None:
    sequences = engine.new_sequences([request("s2s", row) for row in range(3)])
    batch = ContinuousBatch(engine.model)
    emitted: dict[SequenceState, list[int | None]] = {sequence: [] for sequence in sequences}
    for sequence in sequences:
        batch.add(sequence)
    while not batch.is_idle:
        for sequence, step in batch.step():
            emitted[sequence].append(step and step.id)
    assert all(emitted[sequence] == [*sequence.state.ids, None] for sequence in sequences)


def test_run_takes_a_sequence_only_when_a_row_is_free(engine: Engine) -> None:
    taken = 0

    def sequences():
        nonlocal taken
        for row in range(7):
            taken += 1
            yield engine.new_sequences([request("t2t", row)])[0]

    done = 0
    for _ in ContinuousBatch(engine.model, rows=2).run(sequences()):
        done += 1
        assert taken <= done + 2
    assert done == 7


def filled(engine: Engine, length: int, seed: int) -> tuple[torch.Tensor, KVCache]:
    embeds = torch.randn(
        1, length, engine.model.config.llm.dim, generator=torch.Generator().manual_seed(seed)
    )
    with torch.inference_mode():
        return engine.model.llm.extend(embeds, engine.model.llm.new_cache(capacity=length + 40))


def test_rows_equal_separate_caches(engine: Engine) -> None:
    """Joining, leaving and stepping at random."""
    chance = torch.Generator().manual_seed(5)
    rows, twins = BatchedKVCache(engine.model.llm), []
    for round_ in range(60):
        share = float(torch.rand((), generator=chance))
        if not twins or (share < 0.25 and len(twins) < 6):
            _, cache = filled(engine, 1 + int(40 * share), seed=round_)
            rows.add_row(cache)
            twins.append(cache)
        elif share < 0.4:
            row = int(share * 1e6) % len(twins)
            rows.remove_row(row)
            twins[row] = twins[-1]
            twins.pop()
        if not twins:
            continue
        embeds = torch.randn(len(twins), 1, engine.model.config.llm.dim, generator=chance)
        hidden = rows.extend(embeds)
        with torch.inference_mode():
            pairs = [engine.model.llm.extend(embeds[row : row + 1], twin) for row, twin in enumerate(twins)]
        twins = [twin for _, twin in pairs]
        torch.testing.assert_close(hidden, torch.cat([h[:, -1] for h, _ in pairs]), atol=1e-4, rtol=1e-4)
        assert rows.lens == [twin.length for twin in twins]


def test_a_new_row_changes_no_other(engine: Engine) -> None:
    rows = BatchedKVCache(engine.model.llm)
    rows.add_row(filled(engine, 9, 0)[1])
    before = rows.row(0).keys.clone()
    rows.add_row(filled(engine, 30, 1)[1])
    assert torch.equal(rows.row(0).keys, before)
    rows.remove_row(1)
    assert torch.equal(rows.row(0).keys, before)


def test_storage_follows_its_rows(engine: Engine) -> None:
    rows = BatchedKVCache(engine.model.llm)
    config, one = engine.model.config.llm, torch.zeros(1, 1, engine.model.config.llm.dim)
    per_position = 2 * 4 * config.layers * config.kv_heads * engine.model.llm.head_dim
    long = filled(engine, 900, 0)[1]
    for _ in range(8):
        rows.add_row(long)
    assert rows.n_bytes >= 8 * 900 * per_position
    rows.add_row(filled(engine, 5, 1)[1])
    while len(rows) > 1:
        rows.remove_row(rows.lens.index(max(rows.lens)))
    assert rows.lens == [5]
    assert rows.n_bytes <= 2 * (5 + CACHE_HEADROOM) * per_position
    for _ in range(CACHE_HEADROOM + 10):  # the longest row is all that is paid for
        rows.extend(one)
    assert rows.n_bytes <= 2 * (rows.lens[0] + CACHE_HEADROOM) * per_position
    rows.remove_row(0)
    assert rows.n_bytes == 0


def test_columns_are_used_again(engine: Engine) -> None:
    """Rows come and go many times; the storage does not grow with their number."""
    config, llm = engine.model.config.llm, engine.model.llm
    rows, sizes = BatchedKVCache(llm), []
    short = filled(engine, 20, 0)[1]
    rows.add_row(short)
    for _ in range(12):
        rows.add_row(short)
        for _ in range(60):
            rows.extend(torch.zeros(2, 1, config.dim))
        rows.remove_row(0)
        sizes.append(rows.n_bytes)
    position = 2 * 4 * config.layers * config.kv_heads * llm.head_dim
    assert max(sizes) <= 2 * (20 + 2 * 60 + CACHE_HEADROOM) * position


@pytest.mark.parametrize("moment", ["in line", "half read", "written"])
def test_a_cancelled_reply_frees_its_row(engine: Engine, moment: str) -> None:
    cancel = threading.Event()
    stayer, goer = engine.new_sequences([request("s2s", 1), request("s2s", 3, cancel=cancel)])
    batch = ContinuousBatch(engine.model, rows=1 if moment == "in line" else 2, prefill_chunk=70)
    batch.add(stayer)
    while not batch.sequences:
        batch.step()
    batch.add(goer)
    batch.step()
    if moment == "written":
        while goer not in batch.sequences:
            batch.step()
    assert (goer.cache is not None) == (moment == "half read")
    cache = weakref.ref(goer.cache.keys) if goer.cache is not None else None
    cancel.set()
    emitted = batch.step()
    assert (goer, None) in emitted and goer.state.finish_reason == "cancelled"
    gc.collect()
    assert goer.cache is None and (cache is None or cache() is None)
    assert batch.sequences == [stayer] and not batch.waiting and len(batch.kv_cache) == 1
    while not batch.is_idle:
        batch.step()
    same = request("s2s", 1)
    reply = engine.run(same.conversation, "s2s", seed=same.seed, decoding=same.decoding)
    assert tuple(stayer.state.text_ids) == reply.text_ids


def test_a_row_leaves_the_prompt_cache_of_a_single_reply(engine: Engine) -> None:
    cached_requests = [request("s2s", row, prompt_cache=PromptCache()) for row in range(3)]
    sequences = engine.new_sequences(cached_requests)
    assert len(list(ContinuousBatch(engine.model).run(sequences))) == 3
    for asked, sequence in zip(cached_requests, sequences):
        reply = engine.run(
            asked.conversation, "s2s", seed=asked.seed, decoding=asked.decoding, prompt_cache=PromptCache()
        )
        assert sequence.prompt_cache is not None and reply.prompt_cache is not None
        assert sequence.prompt_cache.position_keys == reply.prompt_cache.position_keys
        assert sequence.prompt_cache.cache is not None and reply.prompt_cache.cache is not None
        torch.testing.assert_close(
            sequence.prompt_cache.cache.keys, reply.prompt_cache.cache.keys, atol=1e-4, rtol=1e-4
        )


def test_a_batch_needs_a_row(engine: Engine) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        ContinuousBatch(engine.model, rows=0)
