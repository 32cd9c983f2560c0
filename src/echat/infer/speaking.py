"""A reply spoken piece by piece while its speech ids are still being written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from echat.token2wav.token2wav import Token2Wav
    from echat.token2wav.voice import VoicePrompt


class Speaker:
    """Speech ids in, sound out as soon as there are enough of them. Local to one reply."""

    def __init__(self, token2wav: "Token2Wav", voice: "VoicePrompt | str | None", seed: int | None) -> None:
        from echat.token2wav import streaming

        self._streaming: Any = streaming
        self._token2wav = token2wav
        self._stream = self._streaming.begin(token2wav, token2wav.voice(voice), seed)
        self._pieces: list[Tensor] = []
        self._has_ids = False

    def push(self, speech_ids: Sequence[int], final: bool = False) -> Tensor | None:
        """The next piece (samples,), or None while too few ids have gathered; `final` gives the rest."""
        if not speech_ids and not (final and self._has_ids):
            return None
        self._has_ids = True
        piece, self._stream = self._streaming.push(self._token2wav, self._stream, speech_ids, final)
        if not len(piece):
            return None
        self._pieces.append(piece)
        return piece

    @property
    def waveform(self) -> Tensor | None:
        """Everything said so far (samples,); None where nothing was."""
        return torch.cat(self._pieces) if self._pieces else None
