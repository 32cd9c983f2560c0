"""Collation: examples of similar length become one padded batch of tensors.

Legend: batch, length (LLM positions), clips (audio clips in the batch), time (mel frames).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from echat.data.examples import CTCTarget, DialogueExample
from echat.data.speech_examples import SpeechExample
from echat.dialogue.vocabulary import AUDIO, IGNORE, PAD


@dataclass(frozen=True)
class DialogueBatch:
    """Whole dialogues as contiguous sequences, padded on the right."""

    keys: tuple[str, ...]
    tasks: tuple[str, ...]
    mel: Tensor  # (clips, time, n_mels) float32, padded with 0
    mel_lens: Tensor  # (clips,) valid frames
    kinds: Tensor  # (batch, length) 0 pad, 1 text, 2 speech row, 3 audio
    ids: (
        Tensor  # (batch, length) text id, row of the speech table, or row of the flattened valid audio frames
    )
    labels: Tensor  # (batch, length) class that this position must predict (speech id + text_size), -100 none
    writes_speech: Tensor  # (batch,) True where classes are the combined ones
    ctc_ids: Tensor  # (clips, units) labels and words of each clip as text ids, padded with 0
    ctc_lens: Tensor  # (clips,) -1 = words not known
    ctc_label_lens: Tensor  # (clips,) label ids in front, known even where the words are not

    def to(self, device: torch.device) -> DialogueBatch:
        return _to(self, device)

    @property
    def padding(self) -> float:
        """Fraction of positions that are padding."""
        return float((self.kinds == PAD).float().mean())


@dataclass(frozen=True)
class SpeechBatch:
    """Clips with the units spoken in them, for CTC."""

    keys: tuple[str, ...]
    tasks: tuple[str, ...]
    mel: Tensor  # (batch, time, n_mels)
    mel_lens: Tensor  # (batch,)
    targets: Tensor  # (batch, units) 0 = padding
    target_lens: Tensor  # (batch,) -1 = words not known
    labels: Tensor  # (batch, label kinds) class index, -100 = not known

    @property
    def padding(self) -> float:
        """Fraction of mel frames that are padding."""
        return 1.0 - float(self.mel_lens.sum()) / max(1, self.mel.shape[0] * self.mel.shape[1])

    def to(self, device: torch.device) -> SpeechBatch:
        return _to(self, device)


B = TypeVar("B")


def _to(batch: B, device: torch.device) -> B:
    if device.type == "cpu":
        return batch
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}  # type: ignore[arg-type]
    moved = {n: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for n, v in values.items()}
    return type(batch)(**moved)


def collate_dialogues(examples: Sequence[DialogueExample]) -> DialogueBatch:
    """Pad dialogues to one batch; ``ids`` of audio positions number the valid frames of the batch."""
    length = max(len(example.ids) for example in examples)
    kinds = np.zeros((len(examples), length), np.int64)
    ids = np.zeros((len(examples), length), np.int64)
    labels = np.full((len(examples), length), IGNORE, np.int64)
    row = 0
    for index, example in enumerate(examples):
        size = len(example.ids)
        kinds[index, :size] = example.kinds
        ids[index, :size] = example.ids
        labels[index, :size] = example.labels
        audible = np.flatnonzero(example.kinds == AUDIO)
        ids[index, audible] = np.arange(row, row + len(audible))
        row += len(audible)
    mel, mel_lens = _stack([mel for example in examples for mel in example.mels])
    targets = [
        one for example in examples for one in example.ctc_targets or (CTCTarget(),) * len(example.mels)
    ]
    ctc_ids, lens = _stack_ids([one.ids for one in targets])
    knows = torch.tensor([one.has_transcript for one in targets], dtype=torch.bool)
    return DialogueBatch(
        keys=tuple(example.key for example in examples),
        tasks=tuple(example.task for example in examples),
        mel=mel,
        mel_lens=mel_lens,
        kinds=torch.from_numpy(kinds),
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        writes_speech=torch.tensor([example.writes_speech for example in examples]),
        ctc_ids=ctc_ids,
        ctc_lens=torch.where(knows, lens, -1),
        ctc_label_lens=torch.tensor([one.label_len for one in targets], dtype=torch.long),
    )


def collate_speech(examples: Sequence[SpeechExample]) -> SpeechBatch:
    mel, mel_lens = _stack([example.mel for example in examples])
    targets, target_lens = _stack_ids([example.targets for example in examples])
    return SpeechBatch(
        keys=tuple(example.key for example in examples),
        tasks=tuple(example.task for example in examples),
        mel=mel,
        mel_lens=mel_lens,
        targets=targets,
        target_lens=target_lens,
        labels=torch.tensor([example.labels for example in examples], dtype=torch.long),
    )


def _stack(mels: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(clips, longest, n_mels) float32 with zeros to the right, and the lengths."""
    if not mels:
        return torch.zeros(0, 0, 0), torch.zeros(0, dtype=torch.long)
    lens = [len(mel) for mel in mels]
    stacked = np.zeros((len(mels), max(lens), mels[0].shape[1]), np.float32)
    for row, mel in zip(stacked, mels):
        row[: len(mel)] = mel
    return torch.from_numpy(stacked), torch.tensor(lens)


def _stack_ids(rows: Sequence[tuple[int, ...] | None]) -> tuple[Tensor, Tensor]:
    """(rows, longest) ids with zeros to the right, and the lengths; -1 where a row is not known."""
    lens = [-1 if row is None else len(row) for row in rows]
    stacked = torch.zeros(len(rows), max([1, *lens]), dtype=torch.long)
    for padded, row in zip(stacked, rows):
        padded[: len(row or ())] = torch.tensor(row or (), dtype=torch.long)
    return stacked, torch.tensor(lens, dtype=torch.long)
