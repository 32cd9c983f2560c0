"""The released speech tokenizer (`speech_tokenizer_v1.onnx` of CosyVoice-300M-25Hz)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from echat.audio.features import MEL_RATE, SPEECH_TOKEN_RATE, log_mel
from echat.token2wav.onnx_model import TOKENIZER_50HZ_SHA256_START, onnx_session, sha256
from echat.token2wav.speech_tokenizer import id_count

N_MELS = 128
MAX_SECONDS = 30


class OnnxSpeechTokenizer:
    """16 kHz waveforms -> speech ids 0..4095, 25 a second, each clip at most 30 s."""

    def __init__(self, path: str | Path) -> None:
        """Refuses the 50 Hz file, which has the same name, by its hash."""
        self.path = Path(path)
        self._session: Any = onnx_session(self.path)
        if sha256(self.path).startswith(TOKENIZER_50HZ_SHA256_START):
            raise ValueError(
                f"{self.path}: expected the 25 Hz tokenizer, found the 50 Hz one of the same name; "
                "take speech_tokenizer_v1.onnx of CosyVoice-300M-25Hz (522,625,011 bytes)"
            )

    def encode(self, waveforms: Sequence[Tensor] | Tensor, lens: Tensor | None = None) -> list[list[int]]:
        """Speech ids of a list of `(samples,)`, or of one padded `(batch, samples)` with its `lens`."""
        if lens is not None:
            waveforms = [row[:n] for row, n in zip(waveforms, lens.tolist(), strict=True)]
        return [self._encode(waveform) for waveform in waveforms]

    def _encode(self, waveform: Tensor) -> list[int]:
        mel = log_mel(waveform, N_MELS)
        if len(mel) > MAX_SECONDS * MEL_RATE:
            raise ValueError(
                f"speech tokenizer: expected at most {MAX_SECONDS} s, found {len(mel) / MEL_RATE:.1f} s; "
                "cut the clip"
            )
        features, length = self._session.get_inputs()[:2]
        inputs = {
            features.name: mel.T[None].contiguous().numpy(),
            length.name: np.array([len(mel)], dtype=np.int32),
        }
        ids = [int(i) for i in np.asarray(self._session.run(None, inputs)[0]).flatten()]
        if abs(len(ids) - id_count(len(mel))) > 1:
            raise ValueError(
                f"{self.path}: expected {id_count(len(mel))} ids ({SPEECH_TOKEN_RATE} a second), "
                f"found {len(ids)}; "
                "this is a tokenizer of another rate, take that of CosyVoice-300M-25Hz"
            )
        return ids
