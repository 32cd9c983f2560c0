"""Text-to-speech of texts of any length: normalization, splitting, a length check with retries, pauses.

A model that is given more text at once than in training leaves words out without a sign of it. The length of
the speech shows this: a syllable takes about as many speech ids wherever it stands. A piece that is too short
or too long for its text is generated anew, then in halves; one that stays so is emitted, marked as doubtful.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echat.dialogue.spoken_form import spoken_form
from echat.dialogue.text_splitting import pause_after, split_in_two, split_text
from echat.errors import ModelError
from echat.infer.decoding import FinishReason
from echat.infer.events import Reply
from echat.infer.sampling import derived_seed

if TYPE_CHECKING:
    from echat.dialogue.capabilities import Capabilities
    from echat.model.text_tokenizer import TextTokenizer
    from echat.token2wav.token2wav import Token2Wav
    from echat.token2wav.voice import VoicePrompt

TRIES = 4  # of one piece
PIECE_IDS = 120  # text ids of a piece where the model does not say: about 20 s
QUIET_IDS = 20  # speech ids around the words: 0.8 s
FRAME_SECONDS, MARGIN_SECONDS, QUIET = 0.01, 0.03, 0.03  # of edges: what is below this part of the loudest
_VOWELS = re.compile(r"[aeiouyáàâäãåæéèêëíìîïóòôöõøúùûüœ]+")
_SYLLABLES_OF_THEIR_OWN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True)
class PieceRequest:
    """A piece of text to generate speech ids for."""

    text: str
    seed: int | None

    def retry(self, number: int) -> PieceRequest:
        """The same with the seed of another try."""
        return self if self.seed is None else replace(self, seed=derived_seed(self.seed, number))


Write = Callable[[str, int | None], Reply]
"""Generates the speech ids of one piece (its text, a seed), without audio."""
WriteBatch = Callable[[Sequence[PieceRequest]], list[Reply]]


@dataclass(frozen=True)
class SpokenPiece:
    """The audio of the next piece of a text."""

    text: str  # in spoken form
    waveform: Tensor  # (samples,) float32, with the pause before it
    rate: int  # Hz
    is_doubtful: bool = False  # its length does not match its words: some may be missing or made up


@dataclass(frozen=True)
class _Part:
    text: str
    reply: Reply
    length_error: float  # speech ids too few or too many

    @property
    def is_accepted(self) -> bool:
        return not self.length_error or self.reply.finish_reason == "cancelled"

    @property
    def is_cut(self) -> bool:
        """Did the speech run on until it was stopped?"""
        return self.reply.finish_reason in ("length", "loop")

    @property
    def speech_ids(self) -> tuple[int, ...]:
        """Raises ModelError where there are none."""
        if not self.reply.speech_ids:
            raise ModelError(
                f"text: expected speech, found none for {self.text.strip()!r} in {TRIES} tries; "
                "try another seed or other words"
            )
        return self.reply.speech_ids


@dataclass(frozen=True)
class TextToSpeech:
    """What one model reads aloud, and how. Generating the speech ids is left to the caller."""

    tokenizer: TextTokenizer
    capabilities: Capabilities | None  # None: any text, as it is and in one piece, like the reference

    def split(self, text: str) -> list[str]:
        """The pieces in which a text is read. Raises ValueError for a text without words, or in a script
        outside of the training data."""
        spoken = text if self.capabilities is None else spoken_form(text)
        if not _has_words(spoken if self.capabilities is None else self.capabilities.reading.of(spoken)):
            raise ValueError(f"text {text[:40]!r}: expected words to read aloud, found none; write some")
        if self.capabilities is None:
            return [text]
        self.capabilities.refuse_foreign(spoken, "text")
        found = split_text(spoken, self._size, self.capabilities.reading.piece_ids or PIECE_IDS)
        return [piece for piece in found if _has_words(piece)]

    def read_aloud(
        self,
        text: str,
        token2wav: Token2Wav,
        voice: VoicePrompt | str | None,
        seed: int | None,
        cancel: threading.Event | None,
        write: Write,
    ) -> Iterator[SpokenPiece]:
        """The audio of a text, each piece as soon as its length is right; joined they are the whole."""
        texts = self.split(text)
        before: str | None = None  # the piece that was spoken last
        for number, piece in enumerate(texts):
            request = PieceRequest(piece, None if seed is None else seed + number)
            (parts,) = self._parts([request], lambda requests: [write(r.text, r.seed) for r in requests])
            for index, part in enumerate(parts):
                if cancel is not None and cancel.is_set():
                    return
                is_last = number == len(texts) - 1 and index == len(parts) - 1
                sound = token2wav.synthesize(part.speech_ids, voice, seed)
                sound = _with_pause(sound, token2wav.rate, before, is_last)
                before = part.text
                is_doubtful = bool(part.length_error) or part.is_cut
                yield SpokenPiece(part.text.strip(), sound, token2wav.rate, is_doubtful)

    def read_batch(
        self,
        texts: Sequence[str],
        token2wav: Token2Wav | None,
        voice: VoicePrompt | str | None,
        seed: int | None,
        write: WriteBatch,
    ) -> list[Reply]:
        """The reply to each text, row i as `read_aloud` with `seed + i`; all pieces are one batch."""
        pieces_of = [self.split(text) for text in texts]
        requests = [
            PieceRequest(piece, None if seed is None else seed + row + number)
            for row, pieces in enumerate(pieces_of)
            for number, piece in enumerate(pieces)
        ]
        spoken = iter(self._parts(requests, write))
        replies = []
        for row, pieces in enumerate(pieces_of):
            parts = [part for _ in pieces for part in next(spoken)]
            reasons: list[FinishReason] = [part.reply.finish_reason for part in parts]
            cut = next((reason for reason in reasons if reason != "end"), reasons[0])
            ids = tuple(id_ for part in parts for id_ in part.reply.speech_ids)
            reply = replace(parts[0].reply, speech_ids=ids, finish_reason=cut)
            if token2wav is not None:
                waveform = _joined(parts, token2wav, voice, None if seed is None else seed + row)
                reply = replace(reply, waveform=waveform, rate=token2wav.rate)
            replies.append(reply)
        return replies

    def _size(self, text: str) -> int:
        """Text ids of a piece in the form of the training data."""
        assert self.capabilities is not None
        return len(self.tokenizer.encode(self.capabilities.reading.of(text)))

    # --- is everything said?

    def _parts(self, requests: Sequence[PieceRequest], write: WriteBatch) -> list[list[_Part]]:
        """The best speech of each piece: in one, or in halves if their lengths are better."""
        attempts = [[part] for part in self._attempt(requests, write)]
        halves_of = {
            index: halves
            for index, (part,) in enumerate(attempts)
            if not part.is_accepted and len(halves := split_in_two(part.text, self._size)) > 1
        }
        again = [PieceRequest(half, requests[index].seed) for index in halves_of for half in halves_of[index]]
        parts = iter(self._attempt(again, write))
        for index, halves in halves_of.items():
            spoken = [next(parts) for _ in halves]
            if sum(part.length_error for part in spoken) < attempts[index][0].length_error:
                attempts[index] = spoken
        return attempts

    def _attempt(self, requests: Sequence[PieceRequest], write: WriteBatch) -> list[_Part]:
        """The best of several tries of each piece, each with its own seed; the first good one ends them."""
        best: dict[int, _Part] = {}
        for number in range(TRIES):
            left = [i for i in range(len(requests)) if i not in best or not best[i].is_accepted]
            if not left:
                break
            tried = [requests[index].retry(number) for index in left]
            for index, request, reply in zip(left, tried, write(tried), strict=True):
                part = _Part(request.text, reply, self._length_error(request.text, reply))
                if index not in best or part.is_accepted or part.length_error < best[index].length_error:
                    best[index] = part
        return [best[index] for index in range(len(requests))]

    def _length_error(self, text: str, reply: Reply) -> float:
        """By how many speech ids a piece is too short or too long for its text; infinite without any."""
        if self.capabilities is None:
            return 0.0
        if not reply.speech_ids:
            return float("inf")
        pace = self.capabilities.reading.ids_per_syllable
        if pace is None:
            return 0.0
        least, most = (syllables(text) * ids for ids in pace)
        n_ids = len(reply.speech_ids)
        is_cut = reply.finish_reason in ("length", "loop")
        return max(float(is_cut), least - n_ids, n_ids - most - QUIET_IDS)


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)


def syllables(text: str) -> int:
    """About how many syllables are spoken; at least one for each word."""
    text = text.lower()
    count = len(_SYLLABLES_OF_THEIR_OWN.findall(text))
    for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", _SYLLABLES_OF_THEIR_OWN.sub(" ", text)):
        groups = len(_VOWELS.findall(word))
        silent = word.endswith("e") and not word.endswith(("le", "ee", "ye")) and groups > 1
        count += max(1, groups - silent)
    return count


# --- pauses


def _joined(
    parts: Sequence[_Part], token2wav: Token2Wav, voice: VoicePrompt | str | None, seed: int | None
) -> Tensor:
    """The audio of all parts of a text."""
    sounds = []
    for index, part in enumerate(parts):
        sound = token2wav.synthesize(part.speech_ids, voice, seed)
        before = parts[index - 1].text if index else None
        sounds.append(_with_pause(sound, token2wav.rate, before, index == len(parts) - 1))
    return torch.cat(sounds)


def _with_pause(sound: Tensor, rate: int, before: str | None, is_last: bool) -> Tensor:
    """A piece with the pause that belongs between it and the one before; the outer edges of the text stay."""
    start, end = _loud_span(sound, rate)
    sound = sound[0 if before is None else start : len(sound) if is_last else end]
    if before is None:
        return sound
    return torch.cat([torch.zeros(round(pause_after(before) * rate)), sound])


def _loud_span(sound: Tensor, rate: int) -> tuple[int, int]:
    """First and last sample of what is not quiet, and a margin around them."""
    step = round(FRAME_SECONDS * rate)
    if len(sound) < step:
        return 0, len(sound)
    levels = sound.unfold(0, step, step).square().mean(dim=1).sqrt()
    loud = (levels > QUIET * levels.max()).nonzero().flatten()
    if not len(loud):
        return 0, len(sound)
    margin = round(MARGIN_SECONDS * rate)
    return max(0, int(loud[0]) * step - margin), min(len(sound), (int(loud[-1]) + 1) * step + margin)
