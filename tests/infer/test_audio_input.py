"""Audio of any form gives the same mel, with a lead-in; audio without speech gives no words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from echat.audio.features import SAMPLE_RATE, log_mel, mel_frames
from echat.audio.lead_in import LEAD, with_lead_in
from echat.audio.waveform import write
from echat.dialogue.tasks import TASKS
from echat.dialogue.turns import Conversation, ask
from echat.infer.audio_input import Recording, fingerprint, holds_speech, longest_seconds, to_mel
from echat.infer.engine import Engine
from echat.infer.prompt_cache import PromptCache
from echat.infer.scheduler import Scheduler
from echat.model.speech_encoder import EncoderConfig

N_MELS = 80


def abrupt(seconds: float = 1.0) -> torch.Tensor:
    """A vowel from the first sample on, then noise as of a room."""
    time = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    voice = torch.sin(2 * torch.pi * 180 * time) * (time < 0.6 * seconds)
    return 0.3 * voice + 1e-3 * torch.randn(len(time), generator=torch.Generator().manual_seed(0))


def dither(seconds: float = 2.0) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.round(rng.triangular(-1, 0, 1, int(seconds * SAMPLE_RATE))) / 32768).float()


def test_every_form_of_audio_gets_the_same_lead_in(tmp_path):
    pcm = (abrupt() * 32768).round().clamp(-32768, 32767).to(torch.int16)
    clip = pcm / 32768
    write(tmp_path / "clip.wav", clip, SAMPLE_RATE)
    expected = log_mel(with_lead_in(clip), N_MELS)
    assert len(expected) == (len(clip) + LEAD) // 160
    given = [
        str(tmp_path / "clip.wav"),
        clip,
        clip.numpy(),
        pcm,
        pcm.numpy(),
        pcm.float(),
        pcm.double().numpy(),
    ]
    for audio in given:
        torch.testing.assert_close(to_mel(audio, N_MELS).float(), expected, atol=1e-4, rtol=0)


def test_mels_and_the_reference_get_no_lead_in(engine: Engine):
    clip, exact = abrupt(), log_mel(abrupt(), N_MELS)
    assert to_mel(exact, N_MELS) is exact
    assert to_mel(clip, N_MELS, lead_in=False).equal(exact)
    reference = replace(engine, profile="reference")
    from_clip, from_mel = (reference.embed(reference.render(ask(audio=a), "asr")) for a in (clip, exact))
    assert from_clip.equal(from_mel)
    ours, plain = (engine.embed(engine.render(ask(audio=a), "asr")) for a in (clip, exact))
    led, bare = (EncoderConfig().llm_frames(mel_frames(len(clip) + lead)) for lead in (LEAD, 0))
    more = led - bare
    assert ours.shape[1] == plain.shape[1] + more and more > 0


def test_a_prompt_cache_keeps_audio_with_and_without_lead_in_apart(engine: Engine):
    clip = abrupt()
    assert fingerprint(clip) != fingerprint(clip, lead_in=False)
    prompt_cache = engine.run(
        ask(audio=clip), "understand", prompt_cache=PromptCache(), speak=False
    ).prompt_cache
    reference = replace(engine, profile="reference")
    fresh = reference.run(ask(audio=clip), "understand", seed=0)
    assert (
        reference.run(ask(audio=clip), "understand", seed=0, prompt_cache=prompt_cache).text_ids
        == fresh.text_ids
    )


def test_pieces_encoded_as_they_come_are_those_of_the_whole_recording(tiny: Engine):
    """Each piece of a recording is encoded by itself, before or after the next one comes."""
    pieces = abrupt(2.0), abrupt(1.5)
    whole = Conversation([ask(audio=Recording(pieces)).question])
    alone = tiny.run(whole, "s2t_think_label", seed=0)
    prompt_cache = tiny.prefill([ask(audio=Recording(pieces[:1])).question], "s2t_think_label")
    assert tiny.run(whole, "s2t_think_label", seed=0, prompt_cache=prompt_cache).raw_text == alone.raw_text
    with Scheduler(tiny) as scheduler:
        assert scheduler.submit(whole, "s2t_think_label", seed=0).reply().raw_text == alone.raw_text


def test_a_lead_in_never_makes_audio_too_long(tiny: Engine):
    most = longest_seconds(tiny.model)
    assert len(to_mel(abrupt(most), N_MELS, most_seconds=most)) == most * 100
    assert len(to_mel(abrupt(most - 1), N_MELS, most_seconds=most)) == (most - 1) * 100 + LEAD // 160


@pytest.mark.parametrize("task", ["asr", "asr_timestamps", "asr_punctuation"])
def test_a_recording_without_speech_is_transcribed_as_nothing(tiny: Engine, task: str):
    silence = ask(audio=dither())
    replies = [tiny.run(silence, task), *tiny.run_batch([silence, silence], task)]
    replies += [tiny.run(ask(audio=Recording((dither(), dither(1.0)))), task, prompt_cache=PromptCache())]
    with Scheduler(tiny) as scheduler:
        replies.append(scheduler.submit(silence, task).reply())
    assert [reply.raw_text for reply in replies] == [""] * 5
    assert {reply.finish_reason for reply in replies} == {"end"}
    assert tiny.understand(dither(), task).text == ""


def test_speech_and_tasks_with_labels_are_left_to_the_model(tiny: Engine):
    question = tiny.home / "examples" / "question.wav"
    assert tiny.understand(question, "asr").text
    assert tiny.understand(dither(), "understand").raw_text  # a cough has labels, too
    assert {name for name, task in TASKS.items() if task.writes_only_words} == {
        "asr",
        "asr_timestamps",
        "asr_punctuation",
    }


def test_voice_activity_is_detected_in_waveforms_only():
    assert not holds_speech(dither()) and not holds_speech(dither().numpy())
    assert not holds_speech(Recording((dither(), dither(0.5))))
    assert holds_speech(log_mel(dither(), N_MELS))
