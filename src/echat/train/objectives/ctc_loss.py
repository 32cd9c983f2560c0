"""CTC over the text table: an auxiliary loss that aligns the adapter's frames with text embeddings.

Beside the cross-entropy of the language model it leads each frame to the embedding of the word that is spoken
in it, and makes joint CTC and language model decoding possible (``echat.infer.ctc_decoding``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from echat.config import Config
from echat.data.collation import DialogueBatch
from echat.model.ctc_head import ctc_logits, row_norms
from echat.train.extras.prefix_ctc import prefix_losses
from echat.train.objective import Loss

NORM_WEIGHT = 0.02  # weight of the squared distance of a frame's norm from that of the text embeddings


class CTCConfig(Config):
    """CTC over the text embedding table: an auxiliary loss on the adapter's output."""

    weight: float = Field(0.0, ge=0)  # of the CTC loss beside the cross-entropy
    label_weight: float = Field(0.0, ge=0)  # inside it: of the labels once more, whatever words follow
    only: bool = False  # no cross-entropy: encoder and adapter alone, a fraction of the work
    languages: tuple[str, ...] = ("en",)  # whose transcripts are targets; of others the labels alone


@dataclass(frozen=True)
class CTCLoss:
    """The CTC loss of a batch, ``config.weight`` not yet applied."""

    config: CTCConfig
    blank: int  # text id of the CTC blank: the end-of-document id

    def __call__(self, frames: Tensor, lens: Tensor, batch: DialogueBatch, table: Tensor) -> Loss:
        """Loss of the transcripts and labels of a batch over its ``frames (clips, D, dim)`` of ``lens``.

        ``table``: the text embeddings, without gradient. Logits are cosines, so a frame is sure of an id only
        where it points as the id's embedding does, and its norm is pulled to theirs: frames come to lie where
        the language model expects text. (Frames that lie elsewhere could satisfy free logits.) Clips
        too short for their text count 0.
        """
        known = batch.ctc_lens >= 0
        known = known | (batch.ctc_label_lens > 0) if self.config.label_weight else known
        if not bool(known.any()):
            return Loss(frames.sum() * 0.0, 0.0)
        known_frames, lens = frames[known].float(), lens[known]  # (known clips, D, dim)
        row_sizes = row_norms(table)
        log_probs = ctc_logits(known_frames, table, row_sizes).log_softmax(-1).transpose(0, 1)
        units, unit_lens = batch.ctc_ids[known], batch.ctc_lens[known]
        loss, count = self._transcript_loss(log_probs, units, lens, unit_lens)
        valid = torch.arange(frames.shape[1], device=lens.device) < lens[:, None]
        norm_error = known_frames.norm(dim=-1) / row_sizes.mean() - 1.0
        total = loss + NORM_WEIGHT * (norm_error.square() * valid).sum()
        parts = {"spelling": (loss.detach(), count)}
        if self.config.label_weight:
            label_loss, label_count = self._label_loss(log_probs, units, lens, batch.ctc_label_lens[known])
            total, parts["cues"] = (
                total + self.config.label_weight * label_loss,
                (label_loss.detach(), label_count),
            )
            count += self.config.label_weight * label_count
        return Loss(total, count, parts)

    def _transcript_loss(
        self, log_probs: Tensor, units: Tensor, lens: Tensor, unit_lens: Tensor
    ) -> tuple[Tensor, float]:
        """Summed CTC of the clips whose words are known, and the number of their ids."""
        known = unit_lens >= 0
        if not bool(known.any()):
            return log_probs.sum() * 0.0, 0.0
        log_probs, units, lens, unit_lens = log_probs[:, known], units[known], lens[known], unit_lens[known]
        loss = F.ctc_loss(log_probs, units, lens, unit_lens, self.blank, reduction="sum", zero_infinity=True)
        return loss, float(unit_lens.sum())

    def _label_loss(
        self, log_probs: Tensor, units: Tensor, lens: Tensor, ctc_label_lens: Tensor
    ) -> tuple[Tensor, float]:
        """Summed loss of the labels alone, whatever words follow, and the number of their ids."""
        known = (ctc_label_lens > 0) & (ctc_label_lens <= lens)
        if not bool(known.any()):
            return log_probs.sum() * 0.0, 0.0
        units, ctc_label_lens = units[known, : int(ctc_label_lens.max())], ctc_label_lens[known]
        losses = prefix_losses(log_probs[:, known], units, lens[known], ctc_label_lens, self.blank)
        return losses.sum(), float(ctc_label_lens.sum())
