"""The engine against its slow twin, alone and in batches."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from echat.checkpoint import CheckpointError
from echat.dialogue.rendering import plain_ids
from echat.dialogue.tasks import DecodingDefaults, Sampling, get_task
from echat.dialogue.thinking import LanguageThought
from echat.dialogue.turns import AssistantTurn, Conversation, ask
from echat.infer import decoding, events, generation
from echat.infer.engine import Engine
from echat.infer.loading import load
from echat.infer.prompt_cache import Prompt
from echat.infer.reply_stream import parse_output

ASSETS = Path(__file__).parent.parent / "assets" / "model"
LIVELY = Sampling(sample=True, top_k=8, top_p=0.95, temperature=1.3)
SAMPLED = DecodingDefaults(LIVELY, LIVELY, max_new_ids=60)
FORCED = DecodingDefaults(Sampling(sample=True, temperature=50.0), LIVELY, max_new_ids=1500)
TASKS = ("asr", "s2t", "s2t_think_language", "s2s", "s2s_think_label", "s2s_stream", "t2t", "tts")


def sound(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def question(task: str, samples: int = 8000, seed: int = 0) -> Conversation:
    if get_task(task).input_modality == "text":
        return ask(text="how are you today?"[: samples // 400])
    return ask(audio=sound(samples, seed))


def with_history(task: str) -> Conversation:
    past = AssistantTurn(text="fine.", speech_ids=[3, 4, 5])
    return Conversation([*question(task, 6000).turns, past, *question(task, 9000, seed=1).turns])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("past", [False, True])
def test_cached_equals_uncached(engine: Engine, task: str, past: bool) -> None:
    conversation = with_history(task) if past else question(task)
    embeds = engine.embed(engine.render(conversation, task))
    rules = engine.decoding_rules(conversation, task, SAMPLED)
    cached, uncached = (decoding.GenerationState(rules, torch.Generator().manual_seed(3)) for _ in range(2))
    sequence = generation.SequenceState(Prompt(embeds), cached)
    steps = list(generation.generate(engine.model, sequence))
    slow = list(generation.generate_uncached(engine.model, embeds, uncached))
    assert cached.ids == uncached.ids
    logits, expected = (torch.cat([step.logits for step in made]) for made in (steps, slow))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_batch_row_equals_single(engine: Engine, task: str) -> None:
    conversations = [question(task, 4000 + 1700 * row, seed=row) for row in range(4)]
    batch = engine.run_batch(conversations, task, seed=10, decoding=SAMPLED)
    alone = [engine.run(c, task, seed=10 + row, decoding=SAMPLED) for row, c in enumerate(conversations)]
    assert [r.text_ids for r in batch] == [r.text_ids for r in alone]
    assert [r.speech_ids for r in batch] == [r.speech_ids for r in alone]
    assert [r.finish_reason for r in batch] == [r.finish_reason for r in alone]


def test_empty_batch(engine: Engine) -> None:
    assert engine.run_batch([], "s2s") == []


def test_seeds(engine: Engine) -> None:
    replies = [engine.run(question("s2s"), "s2s", seed=seed, decoding=SAMPLED) for seed in (1, 1, 2)]
    assert replies[0].text_ids == replies[1].text_ids and replies[0].speech_ids == replies[1].speech_ids
    assert (replies[0].text_ids, replies[0].speech_ids) != (replies[2].text_ids, replies[2].speech_ids)


def test_threads_share_one_engine(engine: Engine) -> None:
    jobs = [(task, seed) for task in TASKS for seed in (1, 2)]
    expected = [engine.run(question(t, seed=s), t, seed=s, decoding=SAMPLED).text_ids for t, s in jobs]
    found: dict[int, tuple[int, ...]] = {}

    def work(index: int) -> None:
        task, seed = jobs[index]
        found[index] = engine.run(question(task, seed=seed), task, seed=seed, decoding=SAMPLED).text_ids

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(len(jobs))] == expected


def test_events_come_in_order_and_add_up(engine: Engine) -> None:
    golden_like = replace(engine, profile="reference")
    decoding = DecodingDefaults(constrain_age=True)
    emitted = list(golden_like.reply(ask(audio=wave_a()), "s2s_think_language", decoding=decoding))
    pieces = [event for event in emitted if isinstance(event, events.TextPiece)]
    thought, text, speech, done = (event for event in emitted if event not in pieces)
    assert emitted == [thought, *pieces, text, speech, done]
    assert isinstance(text, events.Text) and isinstance(speech, events.SpeechIds)
    assert thought == events.Thought(LanguageThought("the speaker sounds happy"), wellformed=True)
    assert isinstance(done, events.Done) and done.finish_reason == "end"
    assert done.reply.thought == thought.thought and done.reply.text == text.text == "thank you"
    assert done.reply.speech_ids == speech.ids
    assert set(done.seconds) == {"listen", "read", "write", "speak", "total"}
    assert "".join(piece.text for piece in pieces) == text.text


def wave_a() -> torch.Tensor:
    """The recorded question, as a mel."""
    import numpy as np

    return torch.from_numpy(np.load(ASSETS / "frontend.npz")["wave_a_logmel"])


def test_reference_profile_loses_the_last_text_id(engine: Engine) -> None:
    decoding = DecodingDefaults(max_new_ids=100)
    ours = engine.run(ask(audio=wave_a()), "s2s", decoding=decoding)
    theirs = replace(engine, profile="reference").run(ask(audio=wave_a()), "s2s", decoding=decoding)
    assert ours.text_ids == theirs.text_ids
    assert (ours.text, theirs.text) == ("thank you.", "thank you")


def test_a_reply_becomes_history(engine: Engine) -> None:
    first = question("s2s")
    reply = engine.run(first, "s2s", seed=2)
    turn = reply.as_turn()
    assert reply.text and turn.text_ids == reply.text_ids and turn.text == reply.text
    longer = Conversation([*first.turns, turn, *question("s2s", seed=2).turns])
    assert len(engine.render(longer, "s2s")) > len(engine.render(first, "s2s"))
    assert engine.run(longer, "s2s", seed=1).raw_text


@pytest.mark.parametrize("spoken", [[40, 1, 2, 40], [1, 40, 2, 40], [40, 40], [3, 4], [40, 1, 2]])
def test_reference_history_keeps_the_ids_that_were_written(engine: Engine, spoken: list[int]) -> None:
    """Wherever the boundary is, and also where the reply was cut off."""
    like_theirs, first = replace(engine, profile="reference"), question("s2s")
    task = get_task("s2s")
    state = decoding.GenerationState(like_theirs.decoding_rules(first, task))
    text_end = like_theirs.vocabulary.text_end
    for id_ in (263, 257, text_end, *spoken):
        state.push(id_)
    reply = parse_output(engine.tokenizer, state)
    assert reply.raw_speech_ids == tuple(spoken)
    longer = Conversation([*first.turns, reply.as_turn(), *question("s2s", seed=2).turns])
    flat = [id_ for kind, id_ in plain_ids(like_theirs.render(longer, "s2s")) if kind == "speech"]
    assert flat[2:-2] == spoken  # between the markers of the two sounds


@pytest.mark.parametrize("audio", ["path", "numpy", "int16", "mel"])
def test_kinds_of_audio(engine: Engine, audio: str, tmp_path: Path) -> None:
    from echat.audio.features import N_MELS, log_mel
    from echat.audio.waveform import write

    pcm = (sound(8000) * 32767).round().to(torch.int16)
    waveform = pcm / 32768
    write(tmp_path / "clip.wav", waveform, 16000)
    given = {
        "path": str(tmp_path / "clip.wav"),
        "numpy": waveform.numpy(),
        "int16": pcm,
        "mel": log_mel(waveform, N_MELS),
    }[audio]
    found, expected = (engine.understand(form, "asr_gender") for form in (given, waveform))
    assert found.raw_text == expected.raw_text and found.raw_text


@pytest.mark.parametrize(
    ("audio", "complaint"),
    [
        (torch.zeros(16000), "silence"),
        (torch.full((16000,), float("nan")), "finite"),
        (torch.zeros(10), "expected at least 25 ms"),
        (torch.zeros(2, 16000), "expected .frames, 80."),
        (torch.zeros(1, 2, 3), "a 16 kHz waveform"),
        ([0.1, 0.2], "found list"),
    ],
)
def test_bad_audio_is_refused(engine: Engine, audio: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        engine.understand(audio)


def test_too_long_audio_is_refused(random_model: Path) -> None:
    engine = load(random_model)  # 1500 encoder frames: 30 s
    with pytest.raises(ValueError, match=r"at most 30 s for this model, found 31.0 s; cut it"):
        engine.understand(sound(31 * 16000))


def test_understanding_parses_labels(engine: Engine) -> None:
    found = engine.understand(wave_a(), "asr")
    assert found.text == found.raw_text and found.finish_reason in ("end", "length")
    assert len(engine.understand_batch([wave_a(), sound(8000)], "asr")) == 2


def test_save_and_load(random_model: Path, tmp_path: Path) -> None:
    engine = load(random_model)
    conversation = question("s2s")
    before = engine.run(conversation, "s2s", seed=1, decoding=SAMPLED)
    engine.save(tmp_path / "copy", dtype=None)
    after = load(tmp_path / "copy").run(conversation, "s2s", seed=1, decoding=SAMPLED)
    assert before.text_ids == after.text_ids and before.speech_ids == after.speech_ids
    assert load(tmp_path / "copy").name == "random"


def test_half_precision_on_disk_is_computed_in_float32(random_model: Path, tmp_path: Path) -> None:
    engine = load(random_model)
    engine.save(tmp_path / "half")
    half = load(tmp_path / "half")
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * (
        random_model / "model.safetensors"
    ).stat().st_size
    assert half.model.projection.weight.dtype == torch.float32
    weight = engine.model.projection.weight
    assert torch.equal(half.model.projection.weight, weight.half().float())


def test_bfloat16_engine_replies(random_model: Path) -> None:
    engine = load(random_model, dtype=torch.bfloat16)
    assert len(engine.run(question("s2s"), "s2s", seed=1, decoding=SAMPLED).text_ids) > 0


@pytest.mark.parametrize("path", [ASSETS, ASSETS / "tiny_echat.pt"])
def test_a_released_file_loads_with_its_folder(path: Path) -> None:
    engine = load(path)
    assert (engine.profile, engine.name) == ("osum", "tiny_echat")
    decoding = DecodingDefaults(max_new_ids=100)
    assert engine.run(ask(audio=wave_a()), "s2s", decoding=decoding).text == "thank you."


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="found nothing there"):
        load("no-such-model")
    with pytest.raises(CheckpointError, match=r"found 0 .pt files"):
        load(ASSETS / "llm")


def test_without_token2wav_there_is_no_audio(engine: Engine) -> None:
    with pytest.raises(ValueError, match="token2wav"):
        engine.say("hello")
    assert engine.run(question("s2s"), "s2s", seed=1).waveform is None


def test_a_reply_is_synthesized(speaking: Path) -> None:
    engine = load(speaking)
    emitted = list(engine.reply(question("s2s"), "s2s", seed=1, decoding=FORCED))
    audio, done = emitted[-2:]
    assert isinstance(audio, events.Audio) and isinstance(done, events.Done)
    assert audio.rate == 22050
    seconds = len(audio.waveform) / audio.rate
    assert seconds == pytest.approx(len(done.reply.speech_ids) / 25, abs=0.05)
    assert torch.equal(done.reply.waveform, audio.waveform)  # type: ignore[arg-type]
    again = engine.run(question("s2s"), "s2s", seed=1, decoding=FORCED, voice="anna")
    assert torch.equal(again.waveform, audio.waveform)  # type: ignore[arg-type]
    silent = engine.run(question("s2s"), "s2s", seed=1, decoding=FORCED, speak=False)
    assert silent.waveform is None and silent.speech_ids == done.reply.speech_ids
    batch = engine.run_batch([question("s2s")], "s2s", seed=1, decoding=FORCED, speak=True)
    assert torch.equal(batch[0].waveform, audio.waveform)  # type: ignore[arg-type]


def test_say(speaking: Path) -> None:
    engine = load(speaking)
    waveform, rate = engine.say("hello there", seed=2, decoding=SAMPLED)
    assert rate == 22050 and waveform.ndim == 1 and len(waveform) > 0
    assert torch.isfinite(waveform).all()
    with pytest.raises(ValueError, match="'ana' is unknown, did you mean 'anna'"):
        engine.say("hello there", voice="ana", seed=2, decoding=SAMPLED)


def test_runaway_speech_is_stopped(engine: Engine) -> None:
    task = get_task("s2s")
    rules = decoding.DecodingRules.make(task, engine.vocabulary, "echat", DecodingDefaults(max_new_ids=2000))
    state = decoding.GenerationState(rules)
    text, speech = torch.zeros(engine.vocabulary.text_size), torch.zeros(engine.vocabulary.speech_classes)
    state.next_id(text.index_fill(0, torch.tensor([5]), 1.0))
    state.next_id(text.index_fill(0, torch.tensor([engine.vocabulary.text_end]), 1.0))
    assert state.next_id(speech) == engine.vocabulary.speech_boundary  # begins without asking the model
    count = 0
    while state.finish_reason is None:
        best = torch.tensor([[3, 4, 5][count % 3]])
        state.next_id(speech.index_fill(0, best, 1.0))
        count += 1
    assert state.finish_reason == "loop" and count < 60
    stuck = decoding.GenerationState(rules, text_ids=[1], text_ended=True)
    while stuck.finish_reason is None:
        stuck.next_id(speech.index_fill(0, torch.tensor([3]), 1.0))
    assert max(len(run) for run in _runs(stuck.codec_ids)) == decoding.GUARD_RUN


def _runs(ids: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for id_ in ids:
        if runs and runs[-1][-1] == id_:
            runs[-1].append(id_)
        else:
            runs.append([id_])
    return runs


def test_unknown_task_and_wrong_modality(engine: Engine) -> None:
    with pytest.raises(ValueError, match="did you mean 's2s'"):
        engine.run(question("s2s"), "s2ss")
    with pytest.raises(ValueError, match="expected a user turn with audio"):
        engine.run(ask(text="hi"), "s2s")


@pytest.mark.slow
@pytest.mark.vnni
def test_an_optimized_engine_replies_nearly_alike(tmp_path):
    shipped = load("echat-tiny")
    plain = shipped.run(ask(text="i am glad"), "tts", seed=0)
    twin = shipped.optimized("fp32")
    packed = twin.run(ask(text="i am glad"), "tts", seed=0)
    assert packed.speech_ids == plain.speech_ids
    assert torch.allclose(packed.waveform, plain.waveform, atol=0.02)
    assert shipped.optimized("int4").run(ask(text="i am glad"), "tts", seed=0).waveform.numel()
    with pytest.raises((ValueError, RuntimeError), match="packed|prepared|pack"):
        twin.save(tmp_path / "twin")
    assert not list((tmp_path / "twin").iterdir())
