"""Flow-matching training of the flow: from speech ids and a voice to the mel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from echat.audio.features import vocoder_mel
from echat.checkpoint import write_tensors
from echat.config import save_config
from echat.data.defects import DataError
from echat.infer.loading import find_model
from echat.model_files import CONFIG_FILE, FLOW_FILE, TOKEN2WAV_FOLDER
from echat.token2wav.flow import Flow, FlowConfig
from echat.token2wav.speaker_embedding import CampPlus, MelStatistics
from echat.token2wav.token2wav import Token2Wav
from echat.train.objective import SampleOutput, SampleReport
from echat.train.objectives.speech_clips import (
    CACHED_CLIPS,
    Clip,
    WholeClipObjective,
    WholeClipSettings,
    load_16k,
    load_at,
    to_device,
)
from echat.train.recipe import DecodeConfig
from echat.train.weights.init_weights import init_from


class Settings(WholeClipSettings):
    """Recipe of the flow; its manifests carry speech ids (`speech_ids.jsonl` beside them)."""

    objective: Literal["flow"] = "flow"
    flow: FlowConfig = FlowConfig()
    speaker: str | None = None  # campplus.onnx, the released speaker network; None: statistics of the mel
    max_seconds: float = 12.0


@dataclass(frozen=True)
class FlowBatch:
    """Clips cut to the shortest of them, so that nothing is padded."""

    keys: tuple[str, ...]
    speech_ids: Tensor  # (batch, n)
    lens: Tensor  # (batch,)
    mel: Tensor  # (batch, time, bins)
    mel_lens: Tensor  # (batch,)
    embedding: Tensor  # (batch, 192)

    padding = 0.0  # all cut to one length

    def to(self, device: torch.device) -> FlowBatch:
        return to_device(self, device)


class FlowObjective(WholeClipObjective[FlowBatch]):
    """Objective of :mod:`echat.train.objective` for the flow."""

    recipe: Settings
    module: Flow

    def __init__(self, recipe: Settings) -> None:
        self._speaker = (
            MelStatistics(recipe.flow.sampling_rate) if recipe.speaker is None else CampPlus(recipe.speaker)
        )
        self._features = lru_cache(maxsize=CACHED_CLIPS)(self._make)
        super().__init__(recipe, Flow(recipe.flow))
        init_from(self.module, recipe.init_from)

    def usable(self, clips: Sequence[Clip]) -> list[Clip]:
        with_ids = [clip for clip in clips if clip.speech_ids]
        if not with_ids:
            paths = ", ".join(source.path for source in self.recipe.data.sources)
            raise DataError(
                f"{paths}: expected records with speech ids, found none of "
                f"{len(clips)}; write them first: echat data tokenize MANIFEST --tokenizer TOKENIZER"
            )
        return with_ids

    def _make(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Mel in half precision and speaker embedding; one more id of silence behind, as ids round up."""
        flow = self.recipe.flow
        waveform = load_at(clip, flow.sampling_rate)
        mel = vocoder_mel(F.pad(waveform, (0, flow.sampling_rate // flow.input_frame_rate)), flow.mel)
        return mel.half(), self._speaker(waveform, load_16k(clip))

    def batch(self, clips: Sequence[Clip]) -> FlowBatch:
        features = [self._features(clip) for clip in clips]
        n = min(len(clip.speech_ids or ()) for clip in clips)
        while self.recipe.flow.mel_frames(n) > min(len(mel) for mel, _ in features):
            n -= 1
        frames, count = self.recipe.flow.mel_frames(n), len(clips)
        return FlowBatch(
            tuple(clip.key for clip in clips),
            torch.tensor([(clip.speech_ids or ())[:n] for clip in clips]),
            torch.full((count,), n),
            torch.stack([mel[:frames].float() for mel, _ in features]),
            torch.full((count,), frames),
            torch.stack([embedding for _, embedding in features]),
        )

    def rows(self, batch: FlowBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.module.loss(batch.speech_ids, batch.lens, batch.mel, batch.mel_lens, batch.embedding)

    def decode(self, config: DecodeConfig) -> SampleReport:
        """Held-out ids synthesized in their own voice, with the vocoder of ``config.voice``."""
        if config.voice is None:
            return SampleReport()
        vocoder = Token2Wav.from_folder(find_model(config.voice) / TOKEN2WAV_FOLDER).vocoder
        samples = []
        for clip in [clip for batch in self.held_out(config.samples) for clip in batch][: config.samples]:
            embedding = self._features(clip)[1][None]
            ids = torch.tensor([clip.speech_ids])
            nothing = torch.zeros(1, 0, self.recipe.flow.output_size)
            device = self.module.input_embedding.weight.device
            parts = (ids, ids[:, :0], nothing, embedding)
            mel = self.module(*(part.to(device) for part in parts)).cpu()
            hypothesis = clip.text or ""
            samples.append(
                SampleOutput(
                    clip.key,
                    "flow",
                    hypothesis,
                    hypothesis,
                    clip.audio.path,
                    vocoder(mel)[0][0].float(),
                    self.recipe.flow.sampling_rate,
                )
            )
        return SampleReport({}, samples)

    def export(self, folder: Path) -> None:
        """`config.yaml` (of the flow) and `flow.safetensors`."""
        save_config(self.recipe.flow, folder / CONFIG_FILE)
        write_tensors(folder / FLOW_FILE, self.module.state_dict(), torch.float16)


build = FlowObjective
