"""The loss of dialogues: one cross-entropy over what the assistant writes, and sound that spells if asked."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from echat.data.collation import DialogueBatch
from echat.dialogue.vocabulary import IGNORE, speech_classes
from echat.model.ctc_head import ctc_logits, row_norms
from echat.model.speech_llm import SpeechLLM
from echat.train.extras.prefix_ctc import prefix_losses
from echat.train.objective import Loss
from echat.train.objectives.fused_cross_entropy import MAX_LOGITS, Heads, Targets, fused_cross_entropy

NORM_WEIGHT = 0.02  # weight of the squared distance of a frame's length from that of the text vectors
SILENT_FRAMES = 16  # of mel, heard where all processes must hear something


@dataclass(frozen=True)
class DialogueLoss:
    """Batch -> Loss. Targets weigh alike whatever they stand in, but for their modality."""

    model: SpeechLLM
    text_size: int  # classes of the text head; speech classes follow
    blank: int  # text id that spells nothing
    speech_weight: float = 1.0  # of one speech target against one text target
    ctc_weight: float = 0.0  # of CTC that leads sound to the text vectors of its words and cues
    label_weight: float = 0.0  # inside that CTC: of the cues once more, whatever words follow
    ctc_only: bool = False
    max_logits: int = MAX_LOGITS
    is_sharded: bool = False  # do the model's blocks lie on several processes (FSDP)?

    def __call__(self, batch: DialogueBatch) -> Loss:
        model = self.model
        audio_frames = None
        ctc = Loss(torch.zeros((), device=batch.ids.device), 0.0)
        if len(batch.mel):
            frames, lens = model.encode(batch.mel, batch.mel_lens)  # (clips, D, dim)
            if self.ctc_weight:
                ctc = self._ctc_loss(frames, lens, batch)
            audio_frames = frames[torch.arange(frames.shape[1], device=lens.device) < lens[:, None]]
        zero = self._zero_through_encoder(batch) if self.is_sharded else None
        if self.ctc_only:
            return ctc if zero is None else replace(ctc, total=ctc.total + zero)
        embeds = model.assemble(batch.kinds, batch.ids, audio_frames)
        if zero is not None:
            embeds = embeds + zero
        hidden, _ = model.hidden(embeds)  # causal, padded on the right only: no mask
        index, targets = self._targets(batch)
        total, losses = fused_cross_entropy(
            hidden.flatten(0, 1)[index], targets, self._heads(), self.max_logits
        )
        total = total + self.ctc_weight * ctc.total
        count = float(targets.weights.sum()) + self.ctc_weight * ctc.count
        rows, is_speech = index // hidden.shape[1], targets.labels >= self.text_size
        return Loss(total, count, {**_parts(batch, losses, rows, is_speech), **ctc.parts})

    def _zero_through_encoder(self, batch: DialogueBatch) -> Tensor:
        """Zero. Blocks that are shared out must run forwards and backwards on all processes, in one order:
        when the batch is without sound, zero comes by way of everything that hears; it asks for its gradient.
        """
        zero = torch.zeros((), device=batch.ids.device, requires_grad=torch.is_grad_enabled())
        if len(batch.mel):
            return zero
        mel = zero.new_zeros(1, SILENT_FRAMES, self.model.config.encoder.n_mels)
        frames, _ = self.model.encode(mel, torch.tensor([SILENT_FRAMES], device=mel.device))
        return zero + frames.sum() * 0.0

    def _ctc_loss(self, frames: Tensor, lens: Tensor, batch: DialogueBatch) -> Loss:
        """CTC of words and cues over the text table, the end-of-document id as blank.

        The score is that of the angle, so the only way to be sure of an id is to point where its row points,
        and the length is drawn to that of the rows: sound comes to lie where the language model expects text.
        (Free scores would be learnt by frames that lie elsewhere.) Clips too short for their text count 0.
        """
        known = batch.ctc_lens >= 0
        known = known | (batch.ctc_label_lens > 0) if self.label_weight else known
        if not bool(known.any()):
            return Loss(frames.sum() * 0.0, 0.0)
        table = self.model.llm.text_embedding.weight.detach()
        known_frames, lens = frames[known].float(), lens[known]  # (known clips, D, dim)
        row_sizes = row_norms(table)
        log_probs = ctc_logits(known_frames, table, row_sizes).log_softmax(-1).transpose(0, 1)
        units, unit_lens = batch.ctc_ids[known], batch.ctc_lens[known]
        loss, count = self._transcript_loss(log_probs, units, lens, unit_lens)
        valid = torch.arange(frames.shape[1], device=lens.device) < lens[:, None]
        norm_error = known_frames.norm(dim=-1) / row_sizes.mean() - 1.0
        total = loss + NORM_WEIGHT * (norm_error.square() * valid).sum()
        parts = {"spelling": (loss.detach(), count)}
        if self.label_weight:
            label_loss, label_count = self._label_loss(log_probs, units, lens, batch.ctc_label_lens[known])
            total, parts["cues"] = total + self.label_weight * label_loss, (label_loss.detach(), label_count)
            count += self.label_weight * label_count
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
        """Summed loss of the cues alone, whatever words follow, and the number of their ids."""
        known = (ctc_label_lens > 0) & (ctc_label_lens <= lens)
        if not bool(known.any()):
            return log_probs.sum() * 0.0, 0.0
        units, ctc_label_lens = units[known, : int(ctc_label_lens.max())], ctc_label_lens[known]
        losses = prefix_losses(log_probs[:, known], units, lens[known], ctc_label_lens, self.blank)
        return losses.sum(), float(ctc_label_lens.sum())

    def _targets(self, batch: DialogueBatch) -> tuple[Tensor, Targets]:
        """Positions (n,) of the flattened batch where something must be predicted, and what."""
        is_target, combined = batch.labels != IGNORE, batch.writes_speech[:, None]
        text_only, both = ((is_target & these).flatten().nonzero()[:, 0] for these in (~combined, combined))
        index = torch.cat([text_only, both])
        labels = batch.labels.flatten()[index]
        weights = torch.where(labels >= self.text_size, self.speech_weight, 1.0)
        return index, Targets(labels, weights, len(text_only))

    def _heads(self) -> Heads:
        model, config = self.model, self.model.config
        classes = config.llm.vocab_size + speech_classes(config.speech_codec_size)
        return Heads(model.text_logits, model.speech_logits, classes, model.head_weights)


def _parts(
    batch: DialogueBatch, losses: Tensor, rows: Tensor, is_speech: Tensor
) -> dict[str, tuple[float, float]]:
    """Summed loss and target count per task, text and speech apart."""
    slot = rows * 2 + is_speech
    sums = losses.new_zeros(2 * len(batch.tasks)).index_add_(0, slot, losses).tolist()
    counts = torch.bincount(slot, minlength=2 * len(batch.tasks)).tolist()
    parts: dict[str, tuple[float, float]] = {}
    for number, (part, count) in enumerate(zip(sums, counts)):
        if count:
            name = batch.tasks[number // 2] + ("/speech" if number % 2 else "")
            before = parts.get(name, (0.0, 0.0))
            parts[name] = (before[0] + part, before[1] + count)
    return parts
