"""Shared by all tests: one thread per process, no network, and a random model in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# On a busy machine hypothesis generates examples slowly; that says nothing about what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

ASSETS = Path(__file__).parent / "assets"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of sums that this CPU cannot do exactly are left out, as the package refuses them here."""
    if item.get_closest_marker("vnni") is not None:
        from echat.kernels.packed_linear import has_exact_int8

        if not has_exact_int8():
            pytest.skip("this CPU has no 8-bit dot products (VNNI)")


@pytest.fixture(scope="session", autouse=True)
def _notes_stay_here(tmp_path_factory) -> None:
    """Notes of where lists name their sound, which belong to the user."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    """A model folder of the smallest size with random weights: it says nonsense, in the right form."""
    import torch

    from echat.model.adapter import AdapterConfig
    from echat.model.llm import LLMConfig
    from echat.model.model_folder import save_model
    from echat.model.speech_encoder import EncoderConfig
    from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig
    from echat.model.text_tokenizer import TextTokenizer

    tokenizer = TextTokenizer.from_folder(ASSETS / "model" / "llm")
    config = SpeechLLMConfig(
        encoder=EncoderConfig(dim=16, blocks=1, heads=2, ffn=16, max_frames=1500),
        adapter=AdapterConfig(dim=16, blocks=1, heads=2, ffn=16, max_frames=400),
        llm=LLMConfig(vocab_size=len(tokenizer), dim=16, layers=1, heads=2, kv_heads=1, mlp=16),
        speech_codec_size=32,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "random"
    save_model(folder, SpeechLLM(config), tokenizer, name="random")
    return folder
