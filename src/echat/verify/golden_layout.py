"""The padded sequences of the golden forward passes, rebuilt from their description.

The reference pads every piece of a sequence on its own and joins the padded pieces, so padding ("holes")
sits inside. A hole has the embedding of text id 0, attention mask 0 and position 1.

Legend: B items, L padded positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from echat.dialogue.vocabulary import AUDIO, IGNORE, SPEECH, TEXT

Slot = tuple[int, int, int]  # kind, id, label (IGNORE without a loss); HOLE for padding
HOLE: Slot = (-1, 0, IGNORE)
Piece = dict[str, Any]


@dataclass(frozen=True)
class GoldenBatch:
    """The padded input of the model."""

    kinds: Tensor  # (B, L)
    ids: Tensor  # (B, L); audio: row into all audio frames of the batch
    labels: Tensor  # (B, L) at the position of the label, not shifted
    mask: Tensor  # (B, L) True = keep
    positions: Tensor  # (B, L)

    def to(self, device: torch.device) -> "GoldenBatch":
        """The same batch on a device."""
        return GoldenBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass
class LayoutReader:
    """Turns the pieces of a described sequence into slots."""

    encode: Callable[[str], list[int]]
    text_size: int
    unknown: int
    user_begin: int
    frames_of: Callable[[str], Sequence[int]]  # name of features -> rows of the audio frames
    labels_of: Callable[[int], Sequence[int]]  # item -> target text ids as recorded, IGNORE for padding

    def read(self, items: Sequence[Sequence[Piece]]) -> GoldenBatch:
        """Items of pieces -> one padded batch."""
        segments = [self._segments(pieces, item) for item, pieces in enumerate(items)]
        rows: list[list[Slot]] = [[] for _ in items]
        for parts in zip(*segments, strict=True):
            longest = max(map(len, parts))
            for row, part in zip(rows, parts):
                row += part + [HOLE] * (longest - len(part))
        slots = torch.tensor(rows)  # (B, L, 3)
        mask = slots[..., 0] >= 0
        positions = (mask.long().cumsum(1) - 1).masked_fill(~mask, 1)
        kinds = slots[..., 0].masked_fill(~mask, TEXT)
        return GoldenBatch(kinds, slots[..., 1], slots[..., 2], mask, positions)

    def _segments(self, pieces: Sequence[Piece], item: int) -> list[list[Slot]]:
        """One list of slots per piece that was padded; what stands before the user's sound is one such
        piece."""
        marks = [n for n, piece in enumerate(pieces) if piece.get("speech_ids") == [self.user_begin]]
        if not marks:
            return [self._slots(piece, item) for piece in pieces]
        middle = [slot for piece in pieces[1 : marks[-1]] for slot in self._slots(piece, item)]
        rest = [self._slots(piece, item) for piece in pieces[marks[-1] :]]
        return [self._slots(pieces[0], item), middle, *rest]

    def _slots(self, piece: Piece, item: int) -> list[Slot]:
        is_label = piece.get("role") == "label"
        if "features" in piece:
            return [(AUDIO, row, IGNORE) for row in self.frames_of(piece["features"])]
        if "speech_ids" in piece:
            return [(SPEECH, i, i + self.text_size if is_label else IGNORE) for i in piece["speech_ids"]]
        if "mixed_ids" in piece:
            return [self._mixed_slot(i) for i in piece["mixed_ids"]]
        if is_label:  # as recorded, for the holes that unknown labels leave
            ids = [i for i in self.labels_of(item) if i != IGNORE]
            return [HOLE if i == self.unknown else (TEXT, i, i) for i in ids]
        ids = self.encode(piece["text"]) if "text" in piece else piece["text_ids"]
        slots: list[Slot] = [(TEXT, i, IGNORE) for i in ids]
        if (
            piece.get("role") == "input"
        ):  # the text to read is the target without its end, which leaves a hole
            slots += [HOLE] * (len(self.labels_of(item)) - len(slots))
        return slots

    def _mixed_slot(self, id_: int) -> Slot:
        if id_ < self.text_size:
            return (TEXT, id_, id_)
        return (SPEECH, id_ - self.text_size, id_)
