"""The loss of dialogues: one cross-entropy over what the assistant writes, and CTC on audio frames if set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from echat.data.collation import DialogueBatch
from echat.dialogue.vocabulary import IGNORE, speech_classes
from echat.model.speech_llm import SpeechLLM
from echat.train.objective import Loss
from echat.train.objectives.ctc_loss import CTCLoss
from echat.train.objectives.fused_cross_entropy import MAX_LOGITS, Heads, Targets, fused_cross_entropy

SILENT_FRAMES = 16  # of mel, encoded where all processes must run the encoder


@dataclass(frozen=True)
class DialogueLoss:
    """Batch -> Loss. Targets weigh alike whatever they stand in, but for their modality."""

    model: SpeechLLM
    text_size: int  # classes of the text head; speech classes follow
    ctc: CTCLoss | None = None  # on the frames of the adapter
    speech_weight: float = 1.0  # of one speech target against one text target
    max_logits: int = MAX_LOGITS
    is_sharded: bool = False  # do the model's blocks lie on several processes (FSDP)?

    def __call__(self, batch: DialogueBatch) -> Loss:
        model = self.model
        audio_frames = None
        ctc = Loss(torch.zeros((), device=batch.ids.device), 0.0)
        if len(batch.mel):
            frames, lens = model.encode(batch.mel, batch.mel_lens)  # (clips, D, dim)
            if self.ctc is not None:
                ctc = self.ctc(frames, lens, batch, model.llm.text_embedding.weight.detach())
            audio_frames = frames[torch.arange(frames.shape[1], device=lens.device) < lens[:, None]]
        zero = self._zero_through_encoder(batch) if self.is_sharded else None
        if self.ctc is not None and self.ctc.config.only:
            return ctc if zero is None else replace(ctc, total=ctc.total + zero)
        embeds = model.assemble(batch.kinds, batch.ids, audio_frames)
        if zero is not None:
            embeds = embeds + zero
        hidden, _ = model.hidden(embeds)  # causal, padded on the right only: no mask
        index, targets = self._targets(batch)
        total, losses = fused_cross_entropy(
            hidden.flatten(0, 1)[index], targets, self._heads(), self.max_logits
        )
        ctc_weight = 0.0 if self.ctc is None else self.ctc.config.weight
        total = total + ctc_weight * ctc.total
        count = float(targets.weights.sum()) + ctc_weight * ctc.count
        rows, is_speech = index // hidden.shape[1], targets.labels >= self.text_size
        return Loss(total, count, {**_parts(batch, losses, rows, is_speech), **ctc.parts})

    def _zero_through_encoder(self, batch: DialogueBatch) -> Tensor:
        """Zero. Sharded blocks must run forwards and backwards on all processes, in one order: when the batch
        is without sound, zero is computed through the encoder; it asks for its gradient.
        """
        zero = torch.zeros((), device=batch.ids.device, requires_grad=torch.is_grad_enabled())
        if len(batch.mel):
            return zero
        mel = zero.new_zeros(1, SILENT_FRAMES, self.model.config.encoder.n_mels)
        frames, _ = self.model.encode(mel, torch.tensor([SILENT_FRAMES], device=mel.device))
        return zero + frames.sum() * 0.0

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
