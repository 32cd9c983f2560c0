"""Reading a text aloud, whatever its length: in spoken form, in pieces that the model reads well, each
compared with its text, joined with the pauses of a reader.

A model that was asked for too much leaves words out and says nothing of it. How long speech is tells: a
syllable takes about as many speech ids wherever it stands. A piece that is too short or too long for its text
is spoken anew, then in halves; what never fits is spoken all the same and marked as doubtful.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echat.command import ModelError
from echat.dialogue.pieces import halves, pause_after, pieces
from echat.dialogue.spoken_form import spoken_form
from echat.dialogue.turns import ask
from echat.infer.events import Reply
from echat.infer.sampling import derived_seed

if TYPE_CHECKING:
    from echat.dialogue.tasks import DecodingDefaults
    from echat.infer.engine import Engine
    from echat.token2wav.voice import VoicePrompt

TRIES = 4  # of one piece
PIECE_IDS = 120  # text ids of a piece where the model does not say: about 20 s
QUIET_IDS = 20  # speech ids around the words: 0.8 s
FRAME_SECONDS, MARGIN_SECONDS, QUIET = 0.01, 0.03, 0.03  # of edges: what is below this part of the loudest
_VOWELS = re.compile(r"[aeiouyáàâäãåæéèêëíìîïóòôöõøúùûüœ]+")
_SYLLABLES_OF_THEIR_OWN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")

Write = Callable[[str, int | None], Reply]
"""The speech ids of one piece (its text, a seed), without sound."""


@dataclass(frozen=True)
class Spoken:
    """The next piece of a text that is read aloud."""

    text: str  # in spoken form
    waveform: Tensor  # (samples,) float32, with the pause before it
    rate: int  # Hz
    is_doubtful: bool = False  # its length does not fit the words: some may be missing or made up


def texts_to_read(engine: Engine, text: str) -> list[str]:
    """The pieces in which a text is read. Raises ValueError where there is nothing to say, or nothing that
    the model can."""
    if not any(letter.isalnum() for letter in text):
        raise ValueError(f"text {text[:40]!r}: expected words to read aloud, found none; write some")
    if engine.profile == "reference":
        return [text]
    reading = engine.learned.reading
    spoken = spoken_form(text)
    engine.learned.refuse_foreign(spoken, "text")
    if not any(letter.isalnum() for letter in reading.of(spoken)):
        raise ValueError(f"text {text[:40]!r}: expected words to read aloud, found none; write some")
    found = pieces(spoken, _size(engine), reading.piece_ids or PIECE_IDS)
    return [piece for piece in found if any(letter.isalnum() for letter in piece)]


def read_aloud(
    engine: Engine,
    text: str,
    voice: VoicePrompt | str | None = None,
    seed: int | None = None,
    cancel: threading.Event | None = None,
    write: Write | None = None,
    decoding: DecodingDefaults | None = None,
) -> Iterator[Spoken]:
    """The sound of a text, piece by piece, each as soon as it is spoken well; together they are the whole.

    `write` asks another way for the ids of a piece, such as through a scheduler.
    """
    token2wav = engine.need_token2wav()
    texts = texts_to_read(engine, text)
    write = write or _writer(engine, cancel, decoding)
    before: str | None = None  # the piece that was spoken last
    for number, piece in enumerate(texts):
        parts = _attempts(engine, piece, None if seed is None else seed + number, write)
        for place, part in enumerate(parts):
            if cancel is not None and cancel.is_set():
                return
            if not part.reply.speech_ids:
                raise ModelError(
                    f"text: expected speech, found none for {part.text.strip()!r} in {TRIES} tries; "
                    "try another seed or other words"
                )
            is_last = number == len(texts) - 1 and place == len(parts) - 1
            sound = token2wav.synthesize(part.reply.speech_ids, voice, seed)
            sound = _edged(sound, token2wav.rate, before, is_last)
            before = part.text
            yield Spoken(part.text.strip(), sound, token2wav.rate, not part.fits)


def _writer(engine: Engine, cancel: threading.Event | None, decoding: DecodingDefaults | None) -> Write:
    def write(text: str, seed: int | None) -> Reply:
        return engine.run(ask(text=text), "tts", seed=seed, speak=False, cancel=cancel, decoding=decoding)

    return write


def _size(engine: Engine) -> Callable[[str], int]:
    """Text ids of a piece as the model reads it."""
    form, encode = engine.learned.reading, engine.tokenizer.encode
    return lambda text: len(encode(form.of(text)))


# --- is everything said?


@dataclass(frozen=True)
class _Part:
    text: str
    reply: Reply
    misses: float  # speech ids too few or too many

    @property
    def fits(self) -> bool:
        return not self.misses


def _attempts(engine: Engine, text: str, seed: int | None, write: Write) -> list[_Part]:
    """A piece spoken as well as it goes: in one, or in halves if they fit their words better."""
    whole = _attempt(engine, text, seed, write)
    if whole.fits or whole.reply.finish_reason == "cancelled":
        return [whole]
    smaller = halves(text, _size(engine))
    if len(smaller) < 2:
        return [whole]
    parts = [_attempt(engine, half, seed, write) for half in smaller]
    return parts if sum(part.misses for part in parts) < whole.misses else [whole]


def _attempt(engine: Engine, text: str, seed: int | None, write: Write) -> _Part:
    """The best of several tries, each with a seed of its own; the first that fits ends them."""
    best: _Part | None = None
    for number in range(TRIES):
        reply = write(text, None if seed is None else derived_seed(seed, number))
        part = _Part(text, reply, _misses(engine, text, reply))
        if best is None or part.misses < best.misses:
            best = part
        if part.fits or reply.finish_reason == "cancelled":
            break
    assert best is not None
    return best


def _misses(engine: Engine, text: str, reply: Reply) -> float:
    """By how many speech ids a piece is too short or too long for its text; infinite for no speech at all."""
    if not reply.speech_ids:
        return float("inf")
    pace = engine.learned.reading.ids_per_syllable
    if pace is None:
        return 0.0
    least, most = (syllables(text) * ids for ids in pace)
    n_ids = len(reply.speech_ids)
    return max(0.0, least - n_ids, n_ids - most - QUIET_IDS)


def syllables(text: str) -> int:
    """About how many syllables are spoken; at least one for each word."""
    text = text.lower()
    count = len(_SYLLABLES_OF_THEIR_OWN.findall(text))
    for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", _SYLLABLES_OF_THEIR_OWN.sub(" ", text)):
        groups = len(_VOWELS.findall(word))
        silent = word.endswith("e") and not word.endswith(("le", "ee", "ye")) and groups > 1
        count += max(1, groups - silent)
    return count


# --- joints


def _edged(sound: Tensor, rate: int, before: str | None, is_last: bool) -> Tensor:
    """A piece with the pause that belongs between it and the one before; the outer edges of the text stay."""
    start, end = _loud(sound, rate)
    sound = sound[0 if before is None else start : len(sound) if is_last else end]
    if before is None:
        return sound
    return torch.cat([torch.zeros(round(pause_after(before) * rate)), sound])


def _loud(sound: Tensor, rate: int) -> tuple[int, int]:
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
