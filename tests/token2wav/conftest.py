"""Golden arrays of the released synthesis at a tiny size, and the networks they were made with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from echat.checkpoint import load_strict
from echat.release.cosyvoice_weights import flow_config, fold_vocoder, read_weights, vocoder_config
from echat.token2wav.flow import Flow
from echat.token2wav.hift.vocoder import Vocoder
from echat.token2wav.token2wav import Token2Wav, Token2WavConfig

GOLDEN = Path(__file__).parent.parent / "assets" / "token2wav"
Golden = Callable[[str], dict[str, Tensor]]


@pytest.fixture(scope="session")
def golden() -> Golden:
    """Arrays of one file by name; `golden("hift")["mel"]`."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}

    return load


@pytest.fixture(scope="session")
def golden_token2wav() -> Token2Wav:
    """The tiny released networks."""
    torch.set_num_threads(1)
    sizes = json.loads((GOLDEN / "config.json").read_text())
    config = Token2WavConfig(flow=flow_config(sizes["flow"]), vocoder=vocoder_config(sizes["hift"]))
    token2wav = Token2Wav(config).eval()
    load_strict(token2wav.flow, read_weights(GOLDEN / "tiny_flow.pt"), "tiny_flow.pt")
    load_strict(token2wav.vocoder, fold_vocoder(read_weights(GOLDEN / "tiny_hift.pt")), "tiny_hift.pt")
    return token2wav.requires_grad_(False)


@pytest.fixture(scope="session")
def flow(golden_token2wav: Token2Wav) -> Flow:
    return golden_token2wav.flow


@pytest.fixture(scope="session")
def vocoder(golden_token2wav: Token2Wav) -> Vocoder:
    return golden_token2wav.vocoder


@pytest.fixture
def close() -> Callable[[Tensor, Tensor, float], None]:
    """Same shape, and no value further apart than the tolerance."""

    def check(found: Tensor, expected: Tensor, tolerance: float) -> None:
        assert found.shape == expected.shape
        assert torch.isfinite(found).all()
        assert (found - expected).abs().max().item() <= tolerance

    return check
