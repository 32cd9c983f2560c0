"""The plain way to train, as published, over the same weights: what `throughput.py` measures against.

Batches of one task, sorted by the length of the sound alone. Every piece of a sequence (prompt, sound, text,
speech) is padded by itself and the padded pieces are joined, with a mask over the holes. Logits of both heads
at every position, in float32, over all classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.training.dialogues import Dialogue, pieces_of
from torch import Tensor

from echat.dialogue.vocabulary import AUDIO, PAD, SPEECH, TEXT
from echat.model.speech_encoder import EncoderConfig
from echat.model.speech_llm import SpeechLLM

IGNORE = -100


def published_batches(dialogues: Sequence[Dialogue], budget: int) -> list[list[Dialogue]]:
    """One buffer per task, by length of the sound, let go when longest x count would exceed the budget."""
    batches: list[list[Dialogue]] = []
    for task in sorted({dialogue.task for dialogue in dialogues}):
        batch: list[Dialogue] = []
        for dialogue in sorted((d for d in dialogues if d.task == task), key=lambda d: d.mel_frames):
            if batch and max(d.positions for d in [*batch, dialogue]) * (len(batch) + 1) > budget:
                batches.append(batch)
                batch = []
            batch.append(dialogue)
        batches.append(batch)
    return batches


class PublishedBatch:
    """Padded pieces, joined."""

    def __init__(self, dialogues: Sequence[Dialogue], text_size: int, codec_size: int, n_mels: int) -> None:
        self.keys = tuple(str(dialogue.number) for dialogue in dialogues)
        self.task = dialogues[0].task
        pieces = [pieces_of(dialogue, text_size, codec_size, n_mels) for dialogue in dialogues]
        mels = [piece.mel for piece in pieces if piece.mel is not None]
        self.mel_lens = torch.tensor([len(mel) for mel in mels])
        self.mel = _padded([torch.from_numpy(mel) for mel in mels]) if mels else torch.zeros(0)
        frames = [EncoderConfig().llm_frames(len(mel)) for mel in mels]
        starts = [sum(frames[:n]) for n in range(len(frames))]
        parts = [_column(TEXT, [p.before for p in pieces]), _column(TEXT, [p.prompt for p in pieces])]
        if mels:
            rows = [np.arange(start, start + count) for start, count in zip(starts, frames)]
            begin, end = [np.array([codec_size + 1])] * len(mels), [np.array([codec_size + 2])] * len(mels)
            parts += [_column(SPEECH, begin), _column(AUDIO, rows), _column(SPEECH, end)]
        parts += [_column(TEXT, [p.after for p in pieces])]
        parts += [
            _column(TEXT, [p.text for p in pieces], 0),
            _column(SPEECH, [p.speech for p in pieces], text_size),
        ]
        self.kinds, self.ids, self.labels = (torch.cat(part, dim=1) for part in zip(*parts))

    def to(self, device: torch.device) -> PublishedBatch:
        for name in ("mel", "mel_lens", "kinds", "ids", "labels"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    @property
    def padding(self) -> float:
        return float((self.kinds == PAD).float().mean())


def _padded(rows: Sequence[Tensor], fill: int = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([*rows], batch_first=True, padding_value=fill)


def _column(
    kind: int, rows: Sequence[np.ndarray], offset: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One piece of all dialogues: kinds, ids, labels (ids + offset, or IGNORE)."""
    ids = [torch.from_numpy(row) for row in rows]
    kinds = [torch.full_like(row, kind) for row in ids]
    labels = [torch.full_like(row, IGNORE) if offset is None else row + offset for row in ids]
    return _padded(kinds, PAD), _padded(ids), _padded(labels, IGNORE)


def published_loss(model: SpeechLLM, batch: PublishedBatch) -> tuple[Tensor, int]:
    """Summed cross-entropy and count of targets; each label is predicted from the slot before it."""
    audio = None
    if len(batch.mel_lens):
        frames, lens = model.encode(batch.mel, batch.mel_lens)
        audio = frames[torch.arange(frames.shape[1], device=lens.device) < lens[:, None]]
    mask = batch.kinds != PAD
    positions = (mask.long().cumsum(1) - 1).masked_fill(~mask, 1)
    hidden, _ = model.hidden(model.assemble(batch.kinds, batch.ids, audio), mask, positions)
    text = model.text_logits(hidden).float()
    speech = model.speech_logits(hidden).float()
    logits = torch.cat([text, speech], dim=-1)
    labels = batch.labels[:, 1:].flatten()
    total = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels, ignore_index=IGNORE, reduction="sum"
    )  # fmt: skip
    return total, int((labels != IGNORE).sum())
