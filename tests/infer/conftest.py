"""Engines that several test files share."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from echat.infer.engine import Engine
from echat.infer.loading import load, load_released

ASSETS = Path(__file__).parent.parent / "assets" / "model"


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The golden checkpoint: it ends its replies, with thoughts and speech."""
    engine = load_released(ASSETS / "tiny_echat.pt", ASSETS / "llm", "osum", encoder_heads=4)
    engine.model.requires_grad_(False)
    return engine


@pytest.fixture(scope="session")
def tiny() -> Engine:
    """The model that is shipped."""
    return load("echat-tiny")


@pytest.fixture(scope="session")
def speaking(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model folder with synthesis and one voice."""
    from echat.token2wav.token2wav import Token2Wav, Token2WavConfig
    from echat.token2wav.voice import VoicePrompt

    small = {"input_size": 16, "output_size": 16, "attention_heads": 2, "linear_units": 16, "num_blocks": 1}
    estimator = {
        "channels": [8, 8],
        "attention_head_dim": 4,
        "num_heads": 2,
        "n_blocks": 1,
        "num_mid_blocks": 1,
    }
    config = Token2WavConfig.model_validate(
        {
            "speaker": "mel_stats",
            "flow": {"vocab_size": 32, "input_size": 16, "encoder": small, "estimator": estimator},
            "vocoder": {"base_channels": 8, "f0_predictor": {"cond_channels": 8}},
        }
    )
    torch.manual_seed(0)
    token2wav = Token2Wav(config).eval()
    token2wav.voices["anna"] = VoicePrompt(torch.tensor([1, 2, 3]), torch.zeros(10, 80), torch.randn(192))
    folder = tmp_path_factory.mktemp("models") / "speaking"
    replace(load(random_model), token2wav=token2wav).save(folder)
    return folder
