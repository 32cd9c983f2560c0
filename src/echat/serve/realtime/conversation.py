"""The conversation of one session: items as the client sees them, turns as the model does.

What a client did not hear of an answer is in neither. Of a spoken answer every 40 ms are one speech id, so
the ids that were heard are known exactly; its words are kept in proportion, up to the last whole one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.dialogue.prompts import typed_turn
from echat.dialogue.thinking import Thought
from echat.dialogue.turns import AssistantTurn, Turn, UserTurn
from echat.infer.audio_input import Recording
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.wire import ProtocolError
from echat.serve.protocol.wire_audio import to_pcm24
from echat.serve.realtime.input_buffer import windows

ID_SECONDS = 0.04  # of sound for one speech id
IDS_PER_WORD = 10  # about, for an answer that was cut before its end was known
SYSTEM_ROLES = ("system", "developer")
BYTES_PER_MS = 48  # of 24 kHz PCM


@dataclass
class GeneratedAnswer:
    """What lies behind an answer."""

    text: str = ""
    text_ids: tuple[int, ...] | None = None
    speech_ids: tuple[int, ...] = ()
    thought: Thought | None = None
    pcm: bytearray = field(default_factory=bytearray)  # 24 kHz, as it was sent
    is_whole: bool = False  # came to its own end
    played_ms: int | None = None  # None: all of it
    is_truncated: bool = False  # did the client say so?
    speed: float = 1.0

    @property
    def audio_ms(self) -> int:
        return len(self.pcm) // BYTES_PER_MS

    @property
    def played_share(self) -> float:
        """How much of the words was heard, 0 to 1."""
        if self.played_ms is None or not self.speech_ids:
            return 1.0 if self.played_ms != 0 else 0.0
        total = len(self.speech_ids)
        if not self.is_whole:
            total = max(total, IDS_PER_WORD * len(self.text.split()))
        return min(1.0, self._played_ids / total)

    @property
    def _played_ids(self) -> int:
        assert self.played_ms is not None
        return min(len(self.speech_ids), round(self.played_ms * self.speed / 1000 / ID_SECONDS))

    def turn(self) -> AssistantTurn | None:
        """The answer as history; None where nothing of it was heard."""
        if self.played_ms is None:
            has_content = bool(self.text or self.speech_ids)
            whole = AssistantTurn(self.text, self.speech_ids or None, self.thought, self.text_ids)
            return whole if has_content else None
        text = truncate_text(self.text, self.played_share)
        ids = self.speech_ids[: self._played_ids]
        return AssistantTurn(text, ids or None, self.thought) if text else None


@dataclass
class Entry:
    """One item and what belongs to it."""

    item: Item
    samples: np.ndarray | None = None  # (n,) int16 at 16 kHz, of the user
    generated: GeneratedAnswer | None = None  # of the assistant
    turn: UserTurn | None = None  # of the user, made once, so that what was heard of it is recognised; of an
    # answer: the typed turn that was answered because the user had said nothing new

    n_bytes: int = 0  # of the item as JSON, when it was added

    @property
    def n_characters(self) -> int:
        """Words kept for this item."""
        written = sum(len(part.text or "") + len(part.transcript or "") for part in self.item.content or [])
        return max(written, len(self.generated.text) if self.generated else 0)

    @property
    def seconds(self) -> float:
        """Of sound kept for this item."""
        mine = 0.0 if self.samples is None else len(self.samples) / SAMPLE_RATE
        return mine + (self.generated.audio_ms / 1000 if self.generated else 0.0)


class ConversationItems:
    """Items in order. Bounded: the oldest are forgotten."""

    def __init__(
        self,
        max_items: int,
        max_seconds: float,
        with_speech: bool = True,
        max_characters: int = 2**17,
        max_bytes: int = 2**20,
    ) -> None:
        """`with_speech`: answers in the history have speech ids, not words alone."""
        self.max_items, self.max_seconds, self.with_speech = max_items, max_seconds, with_speech
        self.max_characters, self.max_bytes = max_characters, max_bytes
        self.entries: list[Entry] = []

    def get(self, item_id: str) -> Entry:
        """The entry of an id; an unknown one is refused by name."""
        return self.entries[self.index_of(item_id)]

    def index_of(self, item_id: str) -> int:
        """Where an item stands."""
        for index, entry in enumerate(self.entries):
            if entry.item.id == item_id:
                return index
        raise ProtocolError(
            f"item_id: no item {item_id[:80]!r} in this conversation", "item_not_found", "item_id"
        )

    def add(self, entry: Entry, after: str | None = None) -> str | None:
        """Put an item at the end, at the `root`, or after another; the id of the one before it."""
        if any(other.item.id == entry.item.id for other in self.entries):
            message = f"item.id: {entry.item.id!r} exists already"
            raise ProtocolError(message, "item_create_duplicate_item_id", "item.id")
        index = len(self.entries)
        if after is not None:
            index = 0 if after == "root" else self.index_of(after) + 1
        entry.n_bytes = len(json.dumps(entry.item.dump()))
        self.entries.insert(index, entry)
        before = self.entries[index - 1].item.id if index else None
        self._forget_oldest()
        return before

    def remove(self, item_id: str) -> None:
        """Delete an item."""
        del self.entries[self.index_of(item_id)]

    @property
    def last_id(self) -> str | None:
        """Of the newest item."""
        return self.entries[-1].item.id if self.entries else None

    def turns(self, *more: Entry) -> list[Turn]:
        """The conversation, and what comes after it, as the model reads it."""
        return turns([*self.entries, *more], self.with_speech)

    def _forget_oldest(self) -> None:
        while len(self.entries) > 1 and self._is_too_much:
            self.entries.pop(0)

    @property
    def _is_too_much(self) -> bool:
        return (
            len(self.entries) > self.max_items
            or sum(entry.seconds for entry in self.entries) > self.max_seconds
            or sum(entry.n_characters for entry in self.entries) > self.max_characters
            or sum(entry.n_bytes for entry in self.entries) > self.max_bytes
        )


def truncate(entry: Entry, audio_end_ms: int, content_index: int) -> None:
    """Keep of an answer what was heard."""
    generated = entry.generated
    if entry.item.role != "assistant" or generated is None:
        raise ProtocolError(
            f"item_id: {entry.item.id!r} is no answer; only what the assistant said is truncated",
            "invalid_value",
            "item_id",
        )
    if content_index != 0:
        raise ProtocolError("content_index: expected 0", "invalid_value", "content_index")
    if audio_end_ms > generated.audio_ms:
        raise ProtocolError(
            f"audio_end_ms: expected at most the audio's {generated.audio_ms} ms, found {audio_end_ms}",
            "invalid_value",
            "audio_end_ms",
        )
    generated.played_ms, generated.is_truncated = audio_end_ms, True
    del generated.pcm[audio_end_ms * BYTES_PER_MS :]
    entry.item.content = [
        ContentPart(type="output_audio", transcript=truncate_text(generated.text, generated.played_share))
    ]


def with_audio(entry: Entry) -> Item:
    """The whole item, sound included."""
    item = entry.item.model_copy(deep=True)
    pcm = None
    if entry.samples is not None:
        pcm = to_pcm24(entry.samples)
    elif entry.generated is not None and entry.generated.pcm:
        pcm = bytes(entry.generated.pcm)
    for part in item.content or []:
        if part.type in ("input_audio", "output_audio") and pcm is not None:
            part.audio = base64.b64encode(pcm).decode()
    return item


def truncate_text(text: str, share: float) -> str:
    """The whole words of the first part of a text."""
    if share >= 1.0:
        return text
    cut = text[: int(len(text) * share)]
    if " " not in text.strip():  # written without blanks
        return cut
    if len(cut) < len(text) and not text[len(cut)].isspace():
        cut = cut[: cut.rfind(" ") + 1] if " " in cut else ""
    return cut.rstrip()


# --- as turns


def turns(entries: Sequence[Entry], with_speech: bool = True) -> list[Turn]:
    """Turns that alternate, the user first. What the user said in a row is one turn; an answer that nobody
    heard is none."""
    made: list[Turn] = []
    for turn in _iter_turns(entries):
        if isinstance(turn, AssistantTurn) and not with_speech:
            turn = replace(turn, speech_ids=None)
        last = made[-1] if made else None
        if isinstance(turn, UserTurn) and isinstance(last, UserTurn):
            made[-1] = _merge(last, turn)
        elif isinstance(turn, AssistantTurn) and isinstance(last, AssistantTurn):
            made[-1] = AssistantTurn(f"{last.text or ''} {turn.text or ''}".strip(), turn.speech_ids)
        elif made or isinstance(turn, UserTurn):
            made.append(turn)
    return [*map(_as_history, made[:-1]), *made[-1:]]


def _as_history(turn: Turn) -> Turn:
    """Typed words stand in the place of a sound only where they are the question: histories of training have
    them as text."""
    if isinstance(turn, UserTurn) and turn.is_pseudo_audio:
        return replace(turn, is_pseudo_audio=False)
    return turn


def _iter_turns(entries: Sequence[Entry]) -> Iterator[Turn]:
    for entry in entries:
        if entry.item.type != "message" or entry.item.role in SYSTEM_ROLES:
            continue
        if entry.item.role == "assistant":
            turn = entry.generated.turn() if entry.generated else None
            if turn is not None:
                if entry.turn is not None:
                    yield entry.turn
                yield turn
        else:
            entry.turn = entry.turn or _user_turn(entry)
            if entry.turn is not None:
                yield entry.turn


def opening_turn(entries: Sequence[Entry], wanted: str = "") -> UserTurn:
    """A typed turn for a user who has said nothing new: what is wanted, else what messages of the system ask
    for since the last turn, else a greeting."""
    asked: list[str] = []
    for entry in reversed(entries):
        if entry.item.type == "message" and entry.item.role not in SYSTEM_ROLES:
            break
        asked.insert(0, text_of(entry.item))
    text = wanted or "\n".join(part for part in asked if part) or typed_turn("greet")
    return UserTurn(text=text, is_pseudo_audio=True)


def text_of(item: Item) -> str:
    """The typed words of an item."""
    return " ".join(part.text for part in item.content or [] if part.text).strip()


def _user_turn(entry: Entry) -> UserTurn | None:
    text = text_of(entry.item)
    if entry.samples is not None:
        return UserTurn(audio=to_recording(entry.samples), text=text or None)
    return UserTurn(text=text, is_pseudo_audio=True) if text else None


def to_recording(samples: np.ndarray) -> Recording:
    """A user's sound as the model hears it; digital silence becomes the quietest of noises, which it can
    hear."""
    if not samples.any():
        samples = samples.copy()
        samples[::2] = 1
    return Recording(tuple(windows(samples)))


def _merge(first: UserTurn, second: UserTurn) -> UserTurn:
    """Two turns in a row as one: sounds one after the other, texts likewise. Text beside sound goes with the
    sound, as its words."""
    texts = " ".join(turn.text for turn in (first, second) if turn.text) or None
    pieces = [piece for turn in (first, second) if turn.audio is not None for piece in turn.audio.pieces]
    if pieces:
        return UserTurn(text=texts, audio=Recording(tuple(pieces)))
    return UserTurn(text=texts, is_pseudo_audio=True)
