"""Conversation history of one session: items of the protocol for the client, turns for the model.

An interrupted answer is truncated to what was played, in both. One speech id is 40 ms of audio, so the played
ids are known exactly; the text is cut in proportion, after the last whole word.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.speech_tokens import SPEECH_TOKEN_SECONDS
from echat.dialogue.prompts import typed_turn
from echat.dialogue.thinking import Thought
from echat.dialogue.turns import AssistantTurn, Turn, UserTurn
from echat.infer.audio_input import Recording
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.session import PCM_RATE
from echat.serve.protocol.wire import ProtocolError
from echat.serve.protocol.wire_audio import to_pcm24
from echat.serve.settings import Limits

IDS_PER_WORD = 10  # about, for an answer whose whole length is not known
SYSTEM_ROLES = ("system", "developer")
BYTES_PER_MS = 2 * PCM_RATE // 1000
WINDOW = 30 * SAMPLE_RATE  # samples; a long question is encoded in pieces of this length
MIN_WINDOW = SAMPLE_RATE  # samples; a shorter rest is encoded with the piece before it


@dataclass
class GeneratedAnswer:
    """Everything known about an answer of the assistant."""

    text: str = ""
    text_ids: tuple[int, ...] | None = None
    speech_ids: tuple[int, ...] = ()
    thought: Thought | None = None
    pcm: bytearray = field(default_factory=bytearray)  # 24 kHz, as it was sent
    is_whole: bool = False  # generation was not cut
    played_ms: int | None = None  # None: all of it
    is_truncated: bool = False  # by the client
    speed: float = 1.0

    @property
    def audio_ms(self) -> int:
        return len(self.pcm) // BYTES_PER_MS

    @property
    def played_share(self) -> float:
        """Share of the text that was played, 0 to 1."""
        if self.played_ms is None or not self.speech_ids:
            return 1.0 if self.played_ms != 0 else 0.0
        total = len(self.speech_ids)
        if not self.is_whole:
            total = max(total, IDS_PER_WORD * len(self.text.split()))
        return min(1.0, self._played_ids / total)

    @property
    def _played_ids(self) -> int:
        assert self.played_ms is not None
        return min(len(self.speech_ids), round(self.played_ms * self.speed / 1000 / SPEECH_TOKEN_SECONDS))

    def turn(self) -> AssistantTurn | None:
        """The answer as a turn of the history; None where nothing of it was played."""
        if self.played_ms is None:
            has_content = bool(self.text or self.speech_ids)
            whole = AssistantTurn(self.text, self.speech_ids or None, self.thought, self.text_ids)
            return whole if has_content else None
        text = truncate_text(self.text, self.played_share)
        ids = self.speech_ids[: self._played_ids]
        return AssistantTurn(text, ids or None, self.thought) if text else None


@dataclass
class Entry:
    """One item with its audio and its turn."""

    item: Item
    samples: np.ndarray | None = None  # (n,) int16 at 16 kHz, of the user
    generated: GeneratedAnswer | None = None  # of the assistant
    # Of the user: built once, so that the prompt cache recognizes its audio. Of an answer: the typed turn
    # that it replies to where there was no new turn of the user.
    turn: UserTurn | None = None
    n_bytes: int = 0  # of the item as JSON, when it was added

    @property
    def n_characters(self) -> int:
        """Length of the text kept for this item."""
        written = sum(len(part.text or "") + len(part.transcript or "") for part in self.item.content or [])
        return max(written, len(self.generated.text) if self.generated else 0)

    @property
    def seconds(self) -> float:
        """Duration of the audio kept for this item."""
        mine = 0.0 if self.samples is None else len(self.samples) / SAMPLE_RATE
        return mine + (self.generated.audio_ms / 1000 if self.generated else 0.0)


class ConversationItems:
    """Items in order, within limits: the oldest are dropped."""

    def __init__(self, limits: Limits, with_speech: bool) -> None:
        """`with_speech`: answers in the history have speech ids besides their text."""
        self.limits, self.with_speech = limits, with_speech
        self.entries: list[Entry] = []

    def get(self, item_id: str) -> Entry:
        """The entry of an id; an unknown one is refused by name."""
        return self.entries[self.index_of(item_id)]

    def index_of(self, item_id: str) -> int:
        """Position of an item."""
        for index, entry in enumerate(self.entries):
            if entry.item.id == item_id:
                return index
        raise ProtocolError(
            f"item_id: no item {item_id[:80]!r} in this conversation", "item_not_found", "item_id"
        )

    def add(self, entry: Entry, after: str | None = None) -> str | None:
        """Insert an item at the end, at the `root`, or after another; returns the id of the one before it."""
        if any(other.item.id == entry.item.id for other in self.entries):
            message = f"item.id: {entry.item.id!r} exists already"
            raise ProtocolError(message, "item_create_duplicate_item_id", "item.id")
        index = len(self.entries)
        if after is not None:
            index = 0 if after == "root" else self.index_of(after) + 1
        entry.n_bytes = len(json.dumps(entry.item.dump()))
        self.entries.insert(index, entry)
        before = self.entries[index - 1].item.id if index else None
        while len(self.entries) > 1 and self._exceeds_limits:
            self.entries.pop(0)
        return before

    def remove(self, item_id: str) -> None:
        """Delete an item."""
        del self.entries[self.index_of(item_id)]

    @property
    def last_id(self) -> str | None:
        """Of the newest item."""
        return self.entries[-1].item.id if self.entries else None

    def turns(self, *more: Entry) -> list[Turn]:
        """The conversation, followed by more entries, as turns of a prompt."""
        return turns([*self.entries, *more], self.with_speech)

    @property
    def _exceeds_limits(self) -> bool:
        limits = self.limits
        return (
            len(self.entries) > limits.items
            or sum(entry.seconds for entry in self.entries) > limits.context_seconds
            or sum(entry.n_characters for entry in self.entries) > limits.context_characters
            or sum(entry.n_bytes for entry in self.entries) > limits.context_bytes
        )


def truncate(entry: Entry, audio_end_ms: int, content_index: int) -> None:
    """Truncate an answer to what was played."""
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
    """The item with its audio in it."""
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
    """The first `share` of a text, up to the last whole word."""
    if share >= 1.0:
        return text
    cut = text[: int(len(text) * share)]
    if " " not in text.strip():  # a script without spaces
        return cut
    if len(cut) < len(text) and not text[len(cut)].isspace():
        cut = cut[: cut.rfind(" ") + 1] if " " in cut else ""
    return cut.rstrip()


# --- items as turns


def turns(entries: Sequence[Entry], with_speech: bool = True) -> list[Turn]:
    """Alternating turns, the user first. Consecutive items of the user are one turn; an answer that was not
    played is none."""
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
    """A typed turn as training data have it in histories: as text. Only a typed question stands in for
    audio."""
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
    """A typed turn to answer where there is no new turn of the user: the text `wanted`, else system messages
    since the last turn, else a greeting."""
    asked: list[str] = []
    for entry in reversed(entries):
        if entry.item.type == "message" and entry.item.role not in SYSTEM_ROLES:
            break
        asked.insert(0, text_of(entry.item))
    text = wanted or "\n".join(part for part in asked if part) or typed_turn("greet")
    return UserTurn(text=text, is_pseudo_audio=True)


def text_of(item: Item) -> str:
    """The typed text of an item."""
    return " ".join(part.text for part in item.content or [] if part.text).strip()


def _user_turn(entry: Entry) -> UserTurn | None:
    text = text_of(entry.item)
    if entry.samples is not None:
        return UserTurn(audio=to_recording(entry.samples), text=text or None)
    return UserTurn(text=text, is_pseudo_audio=True) if text else None


def to_recording(samples: np.ndarray) -> Recording:
    """A user's audio as input of the model, in windows; digital silence, which the model refuses, becomes the
    quietest possible noise."""
    if not samples.any():
        samples = samples.copy()
        samples[::2] = 1
    return Recording(tuple(windows(samples)))


def windows(samples: np.ndarray) -> list[np.ndarray]:
    """Split (n,) samples into windows; all but the last have the same length, whatever follows."""
    cuts = list(range(0, len(samples), WINDOW)) or [0]
    if len(cuts) > 1 and len(samples) - cuts[-1] < MIN_WINDOW:
        cuts.pop()
    return [samples[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(samples)])]


def _merge(first: UserTurn, second: UserTurn) -> UserTurn:
    """Two consecutive turns as one: audio and texts are concatenated; text beside audio is its transcript."""
    texts = " ".join(turn.text for turn in (first, second) if turn.text) or None
    pieces = [piece for turn in (first, second) if turn.audio is not None for piece in turn.audio.pieces]
    if pieces:
        return UserTurn(text=texts, audio=Recording(tuple(pieces)))
    return UserTurn(text=texts, is_pseudo_audio=True)
