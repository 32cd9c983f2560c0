"""The error of unusable audio, with a message for people and a kind for programs. No torch here."""

from __future__ import annotations

from typing import Literal

AudioErrorKind = Literal[
    "missing",
    "unreadable",
    "empty",
    "cut off",
    "undecodable",
    "rate",
    "not finite",
    "silent",
    "short",
    "long",
]


class AudioError(ValueError):
    """Audio that cannot be used; the message says expected, found, where, and the remedy.

    ``kind`` names the trouble for programs that count; None where the request was wrong, not the sound.
    """

    def __init__(self, message: str, kind: AudioErrorKind | None = None) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, AudioErrorKind | None]]:
        return type(self), (str(self), self.kind)  # keeps the kind on the way out of a worker process
