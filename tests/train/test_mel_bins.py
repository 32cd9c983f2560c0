"""An encoder with another number of mel bins is trained and used: training computes what inference does."""

from __future__ import annotations

import pytest
import torch

import echat
from echat.dialogue.tasks import DecodingDefaults
from echat.dialogue.turns import ask
from echat.infer.audio_input import to_mel
from echat.train.objectives import encoder_ctc, speech_llm
from echat.train.recipe import load_recipe
from echat.train.trainer import train

BINS = 128  # of Whisper large-v3
AUGMENT = "{speed: 0.1, noise: 0.5, vtlp: 0.1, vtlp_bands: 0.1, eq_db: 3.0, time_stretch: 0.1, mel_masks: 1}"


@pytest.mark.slow
def test_a_model_of_128_mel_bins_learns_and_replies(recipe, corpus):
    encoder = f"encoder.n_mels={BINS}"
    pretrained = train(
        recipe("encoder_ctc", "pretrained"), [encoder, "budget.steps=2", f"data.augment={AUGMENT}"]
    )
    start = f"init_from={{encoder: {pretrained}}}"
    overrides = [f"model.{encoder}", "budget.steps=2", f"data.augment={AUGMENT}", start]
    folder = train(recipe("speech_llm"), overrides)
    engine = echat.load(folder)
    assert engine.model.config.encoder.n_mels == BINS
    decoding = DecodingDefaults(max_new_ids=4)
    reply = engine.run(ask(audio=corpus / "0.wav"), "asr", decoding=decoding)
    assert len(reply.text_ids) <= 4


def test_features_of_training_are_those_of_inference(recipe, corpus):
    by_key = {f"clip-{number}": corpus / f"{number}.wav" for number in range(16)}
    for module, name, override in (
        (encoder_ctc, "encoder_ctc", "encoder"),
        (speech_llm, "speech_llm", "model.encoder"),
    ):
        settings = load_recipe(recipe(name), [f"{override}.n_mels={BINS}", "accumulate=1"])
        objective = module.build(settings)
        clips = 0
        for batch in objective.validation():  # every record of it has one sound
            for mel, length, key in zip(batch.mel, batch.mel_lens, batch.keys, strict=True):
                expected = to_mel(by_key[key], BINS)
                assert mel.shape[1] == BINS and int(length) == len(expected)
                torch.testing.assert_close(mel[:length], expected, atol=2e-3, rtol=0)
                clips += 1
        assert clips > 0
