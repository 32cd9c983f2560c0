"""Speech tokens (speech ids): how many there are, how many pass in a second, and what makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

CODEC_SIZE = 4096  # ids of the released speech tokenizer, 0 .. 4095
SPEECH_TOKEN_RATE = 25  # per second: one lasts 40 ms
SPEECH_TOKEN_SECONDS = 1 / SPEECH_TOKEN_RATE


class AnySpeechTokenizer(Protocol):
    """What turns 16 kHz waveforms `(samples,)` into speech ids."""

    def encode(self, waveforms: Sequence[Tensor], /) -> list[list[int]]: ...
