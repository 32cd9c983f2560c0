"""Joint CTC decoding: prefix probabilities equal a sum over all alignments; only quotes are forced."""

from __future__ import annotations

import itertools
import re
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echat.dialogue.tasks import DecodingDefaults, Sampling, get_task
from echat.dialogue.turns import ask
from echat.infer import ctc_decoding
from echat.infer.audio_input import Recording
from echat.infer.ctc_decoding import MIN_LOG_PROB, CTCDecoder, CTCPrefix, CTCQuoteProcessor
from echat.infer.engine import Engine
from echat.infer.generation import prefill_with
from echat.infer.loading import load
from echat.infer.prompt_cache import prepare_prompts
from echat.model.model_folder import save_model

FRAMES, IDS, BLANK = 5, 4, 3


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    """Repeats merged, blanks dropped."""
    return tuple(id_ for id_, _ in itertools.groupby(path) if id_ != BLANK)


@given(st.integers(0, 10_000), st.lists(st.integers(0, IDS - 2), max_size=3), st.sampled_from([1.0, 15.0]))
def test_prefixes_are_as_probable_as_all_their_alignments(seed: int, prefix: list[int], sure: float) -> None:
    """Also with posteriors so sharp that some ids are pruned."""
    logits = torch.randn(FRAMES, IDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_probs = (sure * logits).log_softmax(dim=1).numpy()
    paths = {path: float(np.exp(log_probs[range(FRAMES), path].sum()))
             for path in itertools.product(range(IDS), repeat=FRAMES)}  # fmt: skip

    def begins(ids: list[int]) -> float:
        return sum(p for path, p in paths.items() if collapsed(path)[: len(ids)] == tuple(ids))

    found = CTCPrefix.of(log_probs, BLANK).after(prefix)
    whole = begins(prefix)
    if whole == 0:  # longer than the sound, or repeats with no frame between
        return
    wanted = [begins([*prefix, id_]) / whole for id_ in range(IDS - 1)]
    assert np.allclose(np.exp(found.next())[:-1], np.maximum(wanted, np.exp(MIN_LOG_PROB)), atol=1e-9)
    ends = sum(p for path, p in paths.items() if collapsed(path) == tuple(prefix)) / whole
    assert np.isclose(np.exp(found.end), ends, atol=1e-9)


@pytest.fixture(scope="module")
def engine(random_model: Path) -> Engine:
    return replace(load(random_model), has_ctc=True)


@pytest.fixture
def ctc_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model of random weights prefers no words."""
    monkeypatch.setattr(ctc_decoding, "CTC_WEIGHT", 0.9)


SOUND = 0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(3))


def frames_of(engine: Engine, text: str) -> torch.Tensor:
    """One frame for each id, a blank after each, pointing where the rows of the table point."""
    decoder = CTCDecoder(engine.model, engine.tokenizer)
    ids = [id_ for words_spoken in decoder.ids_of(text) for id_ in (words_spoken, decoder.blank)]
    return engine.model.llm.text_embedding.weight[ids]


def quote_processor_of(
    engine: Engine, task: str, words_spoken: str, cancel: threading.Event | None = None
) -> CTCQuoteProcessor | None:
    """The processor of a reply to audio with these words."""
    (prompt,) = prepare_prompts(engine.model, [engine.render(ask(audio=SOUND), "asr")])
    read = partial(prefill_with, engine.model, prompt)
    decoder = CTCDecoder(engine.model, engine.tokenizer)
    return decoder.quote_processor(frames_of(engine, words_spoken), get_task(task), read, cancel)


def quoted(engine: Engine, task: str, words_spoken: str, reply: str) -> str:
    """What a listener makes of a reply whose writer is sure of nothing: each id as it wants it, or as in
    `reply` where it has no say."""
    decoder, quote_processor = (
        CTCDecoder(engine.model, engine.tokenizer),
        quote_processor_of(engine, task, words_spoken),
    )
    assert quote_processor is not None
    ids: list[int] = []
    given = decoder.ids_of(reply)
    even = torch.zeros(engine.vocabulary.text_size)
    even[given[-1]] = 1.0  # what is preferred where words end
    while len(ids) < 60:
        scores = quote_processor.constrain(even, ids)
        if scores is not even:
            ids.append(int(scores.argmax()))
        elif len(ids) < len(given):
            ids.append(given[len(ids)])
        else:
            break
    return decoder.text_of(ids)


@pytest.mark.usefixtures("ctc_decides")
@pytest.mark.parametrize("task", ["asr", "understand"])
def test_a_transcript_is_forced_from_its_first_id(engine: Engine, task: str) -> None:
    assert quoted(engine, task, "sad old male:i lost my keys", "<").startswith("i lost my keys<")
    assert quoted(engine, task, "i lost my keys", "<").startswith("i lost my keys<")


@pytest.mark.usefixtures("ctc_decides")
def test_a_thought_is_forced_inside_its_quote_alone(engine: Engine) -> None:
    thought = 'The user says: "'
    assert quoted(engine, "s2t_think_language", "sad:i lost my keys", thought) == thought + 'i lost my keys"'
    label = "<think>用户说的话是:"
    written = quoted(engine, "s2s_think_label", "sad:i lost my keys", label + "<")
    assert written.startswith(label) and "lost my keys" in written


@pytest.mark.usefixtures("ctc_decides")
def test_an_id_that_opens_the_quotation_and_begins_the_words_counts_as_said(engine: Engine) -> None:
    decoder = CTCDecoder(engine.model, engine.tokenizer)
    quote_processor = quote_processor_of(engine, "s2t_think_language", "sad:i lost it")
    assert isinstance(quote_processor, CTCQuoteProcessor)
    begun = decoder.ids_of('he says "i')
    chosen = int(quote_processor.constrain(torch.zeros(engine.vocabulary.text_size), begun).argmax())
    assert [chosen] == decoder.ids_of(" lost")[:1]


@pytest.mark.parametrize("task", ["emotion", "s2s", "s2t", "t2t", "tts"])
def test_without_a_quote_nothing_is_forced(engine: Engine, task: str) -> None:
    assert quote_processor_of(engine, task, "sad:i lost my keys") is None


@pytest.mark.parametrize("task", ["understand", "s2t_think_label"])
def test_sampling_and_batching_do_not_change_the_transcript(engine: Engine, task: str) -> None:
    lively = DecodingDefaults(Sampling(sample=True, temperature=2.0), max_new_ids=30)
    one = engine.run(ask(audio=SOUND), task, seed=1, decoding=lively)
    assert one.text_ids == engine.run(ask(audio=SOUND), task, seed=1, decoding=lively).text_ids
    batch = engine.run_batch([ask(audio=SOUND), ask(audio=-SOUND[:9000])], task, seed=1, decoding=lively)
    assert batch[0].text_ids == one.text_ids
    if task == "understand":
        texts = [engine.understand(SOUND, decoding=lively, seed=seed).raw_text for seed in range(3)]
        words = {re.split(r"[^\w' ]", text)[0] for text in texts}
        assert len(set(texts)) == 3 and len(words) == 1 and words != {""}


def test_the_search_finds_the_best_of_all_texts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every text of three ids, each scored by itself."""
    monkeypatch.setattr(ctc_decoding, "BEAM_SIZE", 27)
    model, words, frames, share = engine.model, (5, 9, 30), 4, ctc_decoding.CTC_WEIGHT
    is_word = np.isin(np.arange(engine.vocabulary.text_size), words)
    (prompt,) = prepare_prompts(model, [engine.render(ask(audio=SOUND), "asr")])
    read = partial(prefill_with, model, prompt)

    def score(ids: tuple[int, ...], prefix: CTCPrefix) -> float:
        total = 0.0
        for count in range(len(ids) + 1):
            expected = model.text_logits(read(ids[:count])[0])[0].detach().log_softmax(0).numpy()
            last = count == len(ids)
            lm = expected[~is_word].max() if last else expected[ids[count]]
            total += (1 - share) * lm + share * (prefix.end if last else prefix.next()[ids[count]])
            prefix = prefix if last else prefix.after([ids[count]])
        return total

    texts = [ids for length in range(frames) for ids in itertools.product(words, repeat=length)]
    for seed in range(4):
        logits = torch.randn(frames, len(is_word), generator=torch.Generator().manual_seed(seed))
        logits[:, [*words, 0]] += 8.0
        prefix = CTCPrefix.of(logits.log_softmax(1).double().numpy(), blank=0)
        best = max(texts, key=lambda ids: score(ids, prefix))
        assert ctc_decoding.beam_search(model, read([]), prefix, is_word) == best


def test_a_cancelled_search_stops(engine: Engine) -> None:
    cancel = threading.Event()
    cancel.set()
    quote_processor = quote_processor_of(engine, "asr", "i lost my keys and my way", cancel)
    assert quote_processor is not None
    calls: list[int] = []
    extend = engine.model.llm.extend
    with pytest.MonkeyPatch.context() as watched:
        watched.setattr(engine.model.llm, "extend", lambda *a: calls.append(1) or extend(*a))
        quote_processor.constrain(torch.zeros(engine.vocabulary.text_size), [])
    assert len(calls) <= 2  # the prompt is read once


def test_audio_in_pieces_is_not_decoded_jointly(engine: Engine) -> None:
    whole, pieces = ask(audio=SOUND), ask(audio=Recording((SOUND[:12_000], SOUND[12_000:])))
    (one,) = prepare_prompts(engine.model, [engine.render(whole, "understand")])
    assert one.last_audio is not None and len(one.last_audio) == sum(
        isinstance(p, tuple) for p in one.position_keys
    )
    (two,) = prepare_prompts(engine.model, [engine.render(pieces, "understand")])
    assert two.last_audio is None
    assert engine.run(pieces, "understand", decoding=DecodingDefaults(max_new_ids=5)).text_ids


def test_a_ctc_head_is_stored_with_the_model(engine: Engine, tmp_path: Path) -> None:
    assert not load(engine.home or "").has_ctc
    save_model(tmp_path / "m", engine.model, engine.tokenizer, ctc=True)
    assert load(tmp_path / "m").has_ctc
    load(tmp_path / "m").save(tmp_path / "copy")
    assert load(tmp_path / "copy").has_ctc
