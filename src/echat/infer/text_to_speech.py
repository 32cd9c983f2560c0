"""Reading a text aloud, whatever its length: in spoken form, in pieces that the model reads well, each
compared with its text, joined with the pauses of a reader.

A model that was asked for too much leaves words out and says nothing of it. How long speech is tells: a
syllable takes about as many speech ids wherever it stands. A piece that is too short or too long for its text
is spoken anew, then in halves; what never fits is spoken all the same and marked as doubtful.
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
from echat.dialogue.tasks import get_task
from echat.dialogue.text_splitting import pause_after, split_in_two, split_text
from echat.dialogue.turns import ask
from echat.errors import ModelError
from echat.infer.continuous_batching import ROWS, ContinuousBatch
from echat.infer.decoding import FinishReason
from echat.infer.events import Reply
from echat.infer.reply_stream import ReplyRequest, StageTimer, build_reply
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
class SpokenPiece:
    """The next piece of a text that is read aloud."""

    text: str  # in spoken form
    waveform: Tensor  # (samples,) float32, with the pause before it
    rate: int  # Hz
    is_doubtful: bool = False  # its length does not fit the words: some may be missing or made up


def split_for_reading(engine: Engine, text: str) -> list[str]:
    """The pieces in which a text is read. Raises ValueError where there is nothing to say, or nothing that
    the model can."""
    is_reference = engine.profile == "reference"
    reading = engine.learned.reading
    spoken = text if is_reference else spoken_form(text)
    if not _has_words(spoken if is_reference else reading.of(spoken)):
        raise ValueError(f"text {text[:40]!r}: expected words to read aloud, found none; write some")
    if is_reference:
        return [text]
    engine.learned.refuse_foreign(spoken, "text")
    found = split_text(spoken, _size(engine), reading.piece_ids or PIECE_IDS)
    return [piece for piece in found if _has_words(piece)]


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in text)


def read_aloud(
    engine: Engine,
    text: str,
    voice: VoicePrompt | str | None = None,
    seed: int | None = None,
    cancel: threading.Event | None = None,
    write: Write | None = None,
    decoding: DecodingDefaults | None = None,
) -> Iterator[SpokenPiece]:
    """The sound of a text, piece by piece, each as soon as it is spoken well; together they are the whole.

    `write` asks another way for the ids of a piece, such as through a scheduler.
    """
    token2wav = engine.need_token2wav()
    texts = split_for_reading(engine, text)
    ask_for = write or _writer(engine, cancel, decoding)
    before: str | None = None  # the piece that was spoken last
    for number, piece in enumerate(texts):
        job = _Job(piece, None if seed is None else seed + number)
        (parts,) = _attempts(engine, [job], lambda jobs: [ask_for(job.text, job.seed) for job in jobs])
        for index, part in enumerate(parts):
            if cancel is not None and cancel.is_set():
                return
            is_last = number == len(texts) - 1 and index == len(parts) - 1
            sound = token2wav.synthesize(_speech_of(part), voice, seed)
            sound = _with_pause(sound, token2wav.rate, before, is_last)
            before = part.text
            is_doubtful = not part.fits or _is_cut(part.reply)
            yield SpokenPiece(part.text.strip(), sound, token2wav.rate, is_doubtful)


def speak_batch(
    engine: Engine,
    texts: Sequence[str],
    voice: VoicePrompt | str | None = None,
    seed: int | None = None,
    speak: bool = False,
    rows: int = ROWS,
    decoding: DecodingDefaults | None = None,
) -> list[Reply]:
    """The reply to each text, row i as `read_aloud` with `seed + i` speaks it; pieces of all of them are
    written side by side."""
    read = [split_for_reading(engine, text) for text in texts]
    jobs = [
        _Job(piece, None if seed is None else seed + row + number)
        for row, found in enumerate(read)
        for number, piece in enumerate(found)
    ]
    spoken = iter(_attempts(engine, jobs, lambda jobs: _write_batch(engine, jobs, rows, decoding)))
    replies = []
    for row, found in enumerate(read):
        parts = [part for _ in found for part in next(spoken)]
        first = parts[0].reply
        reasons: list[FinishReason] = [part.reply.finish_reason for part in parts]
        cut = next((reason for reason in reasons if reason != "end"), reasons[0])
        ids = tuple(id_ for part in parts for id_ in part.reply.speech_ids)
        reply = replace(first, speech_ids=ids, finish_reason=cut)
        if speak and engine.token2wav is not None:
            reply = _with_waveform(engine, reply, parts, voice, None if seed is None else seed + row)
        replies.append(reply)
    return replies


def _write_batch(
    engine: Engine, jobs: Sequence[_Job], rows: int, decoding: DecodingDefaults | None
) -> list[Reply]:
    """The speech ids of many pieces, at most `rows` at once."""
    task = get_task("tts")
    requests = [ReplyRequest(ask(text=job.text), task, job.seed, decoding, speak=False) for job in jobs]
    sequences = engine.new_sequences(requests)
    for _ in ContinuousBatch(engine.model, rows).run(sequences):
        pass
    return [
        build_reply(engine, request, sequence, StageTimer()) for request, sequence in zip(requests, sequences)
    ]


def _with_waveform(
    engine: Engine, reply: Reply, parts: Sequence[_Part], voice: VoicePrompt | str | None, seed: int | None
) -> Reply:
    token2wav = engine.need_token2wav()
    sounds = []
    for index, part in enumerate(parts):
        sound = token2wav.synthesize(_speech_of(part), voice, seed)
        before = parts[index - 1].text if index else None
        sounds.append(_with_pause(sound, token2wav.rate, before, index == len(parts) - 1))
    return replace(reply, waveform=torch.cat(sounds), rate=token2wav.rate)


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
class _Job:
    text: str
    seed: int | None

    def retry(self, number: int) -> _Job:
        return self if self.seed is None else replace(self, seed=derived_seed(self.seed, number))


@dataclass(frozen=True)
class _Part:
    text: str
    reply: Reply
    length_error: float  # speech ids too few or too many

    @property
    def fits(self) -> bool:
        return not self.length_error


WriteAll = Callable[[Sequence[_Job]], list[Reply]]


def _attempts(engine: Engine, jobs: Sequence[_Job], write: WriteAll) -> list[list[_Part]]:
    """Each piece spoken as well as it goes: in one, or in halves if they fit their words better."""
    attempts = [[part] for part in _attempt(engine, jobs, write)]
    size = _size(engine)
    retry = {
        index: smaller
        for index, (part,) in enumerate(attempts)
        if not _is_settled(part) and len(smaller := split_in_two(part.text, size)) > 1
    }
    parts = iter(
        _attempt(engine, [_Job(half, jobs[index].seed) for index in retry for half in retry[index]], write)
    )
    for index, smaller in retry.items():
        spoken = [next(parts) for _ in smaller]
        if sum(part.length_error for part in spoken) < attempts[index][0].length_error:
            attempts[index] = spoken
    return attempts


def _attempt(engine: Engine, jobs: Sequence[_Job], write: WriteAll) -> list[_Part]:
    """The best of several tries of each, every try with a seed of its own; the first that fits ends them."""
    best: dict[int, _Part] = {}
    for number in range(TRIES):
        left = [index for index in range(len(jobs)) if index not in best or not _is_settled(best[index])]
        if not left:
            break
        tried = [jobs[index].retry(number) for index in left]
        for index, job, reply in zip(left, tried, write(tried), strict=True):
            part = _Part(job.text, reply, _length_error(engine, job.text, reply))
            if index not in best or _is_settled(part) or part.length_error < best[index].length_error:
                best[index] = part
    return [best[index] for index in range(len(jobs))]


def _is_settled(part: _Part) -> bool:
    return part.fits or part.reply.finish_reason == "cancelled"


def _is_cut(reply: Reply) -> bool:
    """Did the speech run on until it was stopped?"""
    return reply.finish_reason in ("length", "loop")


def _speech_of(part: _Part) -> tuple[int, ...]:
    """Its speech ids. Raises ModelError where there are none."""
    if not part.reply.speech_ids:
        raise ModelError(
            f"text: expected speech, found none for {part.text.strip()!r} in {TRIES} tries; "
            "try another seed or other words"
        )
    return part.reply.speech_ids


def _length_error(engine: Engine, text: str, reply: Reply) -> float:
    """By how many speech ids a piece is too short or too long for its text; infinite for no speech at all."""
    if engine.profile == "reference":
        return 0.0
    if not reply.speech_ids:
        return float("inf")
    pace = engine.learned.reading.ids_per_syllable
    if pace is None:
        return 0.0
    least, most = (syllables(text) * ids for ids in pace)
    n_ids = len(reply.speech_ids)
    return max(float(_is_cut(reply)), least - n_ids, n_ids - most - QUIET_IDS)


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
