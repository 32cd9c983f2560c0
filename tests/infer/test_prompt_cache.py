"""A later turn costs only its new positions, and its reply is the one without a prompt cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from echat.dialogue.rendering import AudioSegment
from echat.dialogue.tasks import DecodingDefaults, Sampling, get_task
from echat.dialogue.turns import Conversation, UserTurn, ask
from echat.infer import generation
from echat.infer.audio_input import Recording, fingerprint
from echat.infer.engine import Engine
from echat.infer.events import Reply
from echat.infer.loading import load
from echat.infer.prompt_cache import PromptCache

ASSETS = Path(__file__).parent.parent / "assets" / "model"
LIVELY = Sampling(sample=True, top_k=8, top_p=0.95, temperature=1.3)
SAMPLED = DecodingDefaults(LIVELY, LIVELY, max_new_ids=120)
PLAIN = ("s2s", "s2t", "t2t")
# History differs from what was written: thoughts and instructions are not kept, streams are no longer mixed.
CHANGED = ("s2s_think_label", "s2t_think_language", "s2s_stream", "asr")
WAVE = torch.from_numpy(np.load(ASSETS / "frontend.npz")["wave_a_logmel"])  # answered to the end


def question(task: str, seed: int, frames: int = 119) -> Conversation:
    if get_task(task).input_modality == "text":
        return ask(text="how are you"[seed:])
    return ask(audio=WAVE.roll(seed, dims=0)[:frames])


def run(
    engine: Engine, conversation: Conversation, task: str, prompt_cache: PromptCache | None = None
) -> Reply:
    return engine.run(conversation, task, seed=4, decoding=SAMPLED, prompt_cache=prompt_cache)


def second_turn(task: str, first: Reply) -> Conversation:
    return Conversation([*question(task, 0).turns, first.as_turn(), *question(task, 1, frames=37).turns])


def same(reply: Reply, other: Reply) -> bool:
    return (reply.text_ids, reply.speech_ids, reply.finish_reason) == (
        other.text_ids,
        other.speech_ids,
        other.finish_reason,
    )


@pytest.mark.parametrize("task", PLAIN)
def test_a_second_turn_reads_nothing_of_the_first_again(engine: Engine, task: str) -> None:
    first = run(engine, question(task, 0), task, PromptCache())
    assert first.finish_reason == "end" and first.prompt_cache is not None
    assert first.counts["cached_tokens"] == 0
    longer = second_turn(task, first)
    cold, warm = run(engine, longer, task), run(engine, longer, task, first.prompt_cache)
    assert same(cold, warm)
    assert cold.prompt_cache is None and warm.prompt_cache is not None
    assert warm.counts["cached_tokens"] == len(first.prompt_cache.position_keys)
    assert (
        sum(warm.counts[f"{kind}_tokens"] for kind in ("cached", "prefilled"))
        == (cold.counts["prefilled_tokens"])
    )
    has_audio_input = get_task(task).input_modality == "audio"
    assert cold.counts["mel_frames_encoded"] == (119 + 37) * has_audio_input
    assert warm.counts["mel_frames_encoded"] == 37 * has_audio_input


@pytest.mark.parametrize("task", CHANGED)
def test_a_changed_history_is_prefilled(engine: Engine, task: str) -> None:
    first = run(engine, question(task, 0), task, PromptCache())
    assert first.prompt_cache is not None
    longer = second_turn(task, first)
    cold, warm = run(engine, longer, task), run(engine, longer, task, first.prompt_cache)
    assert same(cold, warm) and warm.counts["mel_frames_encoded"] == 37
    ahead = engine.prefill(longer.turns[:-1], task, first.prompt_cache)
    warm = run(engine, longer, task, ahead)
    assert same(cold, warm) and warm.counts["mel_frames_encoded"] == 37
    assert warm.counts["cached_tokens"] == len(ahead.position_keys)
    change = engine.tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n")
    frames, marker = -(-37 // 8), 1
    assert warm.counts["prefilled_tokens"] == frames + marker + len(change)


def test_three_turns(engine: Engine) -> None:
    turns, prompt_cache = [*question("s2s", 0).turns], PromptCache()
    for number in (1, 2, 3):
        cold = run(engine, Conversation(turns), "s2s")
        warm = run(engine, Conversation(turns), "s2s", prompt_cache)
        assert same(cold, warm) and warm.prompt_cache is not None
        assert warm.counts["cached_tokens"] == len(prompt_cache.position_keys)
        prompt_cache = warm.prompt_cache
        turns += [warm.as_turn(), *question("s2s", number).turns]


def test_a_prompt_cache_is_never_modified(engine: Engine) -> None:
    prompt_cache = run(engine, question("s2s", 0), "s2s", PromptCache()).prompt_cache
    assert prompt_cache is not None and prompt_cache.cache is not None and prompt_cache.n_bytes > 0
    keys, values = prompt_cache.cache.keys.clone(), prompt_cache.cache.values.clone()
    replies = [run(engine, question("s2s", seed), "s2s", prompt_cache) for seed in (0, 1, 0)]
    assert same(replies[0], replies[2]) and same(replies[1], run(engine, question("s2s", 1), "s2s"))
    assert torch.equal(prompt_cache.cache.keys, keys) and torch.equal(prompt_cache.cache.values, values)


def test_the_system_prompt_is_prefilled_once_for_a_batch(engine: Engine) -> None:
    shared_prefix = engine.prefill((), "s2s")
    replies = engine.run_batch([question("s2s", seed) for seed in range(3)], "s2s", seed=1, decoding=SAMPLED)
    assert [reply.counts["cached_tokens"] for reply in replies] == [len(shared_prefix.position_keys)] * 3
    alone = engine.run(question("s2s", 0), "s2s", seed=1, decoding=SAMPLED, prompt_cache=shared_prefix)
    assert alone.text_ids == replies[0].text_ids


def test_equal_sounds_are_encoded_once(engine: Engine) -> None:
    replies = engine.run_batch([question("s2s", 0), question("s2s", 0)], "s2s", seed=1, decoding=SAMPLED)
    assert [reply.counts["mel_frames_encoded"] for reply in replies] == [119, 0]


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_a_prompt_may_be_prefilled_in_chunks(
    engine: Engine, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(engine, question("s2s", 0), "s2s")
    monkeypatch.setattr(generation, "PREFILL_CHUNK", chunk)
    assert same(run(engine, question("s2s", 0), "s2s"), whole)


def test_the_prompt_cache_of_another_model_is_refused(engine: Engine, random_model: Path) -> None:
    prompt_cache = engine.prefill((), "s2s")
    with pytest.raises(ValueError, match="found one of another model"):
        load(random_model).run(question("s2s", 0), "s2s", prompt_cache=prompt_cache)


def test_fingerprints(tmp_path: Path) -> None:
    wave = torch.arange(8, dtype=torch.float32)
    path, copy = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"1")
    copy.write_bytes(b"1")
    sounds = [wave, wave[:7], wave.double(), wave.view(2, 4), wave.bfloat16(), wave.numpy() + 1, path]
    assert len({fingerprint(sound) for sound in sounds}) == len(sounds)
    for sound, other in ((wave, wave.clone()), (wave.numpy(), np.arange(8, dtype="f4")), (path, str(copy))):
        assert fingerprint(sound) == fingerprint(other)


# --- questions in pieces


def test_a_recording_is_encoded_piece_by_piece(tiny: Engine) -> None:
    first, second = (
        0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (16_000, 9_000)
    )
    segments = tiny.render(ask(audio=Recording((first, second))), "s2t")
    alone = [tiny.embed([AudioSegment(piece)]) for piece in (first, second)]
    embeds = tiny.embed(segments)
    lengths = [frames.shape[1] for frames in alone]
    begin = next(n for n in range(embeds.shape[1]) if torch.allclose(embeds[0, n], alone[0][0, 0], atol=1e-5))
    assert torch.allclose(embeds[:, begin : begin + sum(lengths)], torch.cat(alone, 1), atol=1e-5)
    with pytest.raises(ValueError, match="at least one piece"):
        Recording(())


def test_an_unfinished_question_is_prefilled(tiny: Engine) -> None:
    first, second = (
        0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (16_000, 9_000)
    )
    ahead = tiny.prefill([UserTurn(audio=Recording((first,)))], "s2t", PromptCache())
    whole = ask(audio=Recording((first, second)))
    warm = tiny.run(whole, "s2t", seed=0, prompt_cache=ahead)
    cold = tiny.run(whole, "s2t", seed=0)
    assert warm.raw_text == cold.raw_text
    assert warm.counts["cached_tokens"] == len(ahead.position_keys) > 10
    assert warm.counts["mel_frames_encoded"] < cold.counts["mel_frames_encoded"]
