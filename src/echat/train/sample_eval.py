"""What the model really says: held-out records decoded every so many steps, measured, kept to listen to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from echat.audio.waveform import write
from echat.checkpoint import atomic_path
from echat.config import Config

if TYPE_CHECKING:
    from echat.train.objective import Objective

SAMPLES = "samples"  # folder of a run: one folder per step, with samples.jsonl and the sounds
SAMPLES_FILE = "samples.jsonl"


class DecodeConfig(Config):
    """A look at real outputs; the loss of validation is cheaper and comes more often."""

    every_steps: int = Field(500, gt=0)
    records: int = Field(16, gt=0)  # decoded of each validation source and task
    samples: int = Field(2, ge=0)  # kept of them, in full
    voice: str | None = None  # model folder whose token2wav makes speech ids (or mels) heard


@dataclass(frozen=True)
class SampleOutput:
    """One output beside what was wanted."""

    key: str
    task: str
    reference: str = ""
    hypothesis: str = ""
    question: str | None = None  # path of the sound that was heard
    waveform: Tensor | None = None  # (samples,) what was spoken
    rate: int | None = None  # Hz, of it


@dataclass(frozen=True)
class SampleReport:
    """What a look found."""

    metrics: Mapping[str, float] = field(default_factory=dict)  # such as asr/word_errors
    samples: Sequence[SampleOutput] = ()


@torch.no_grad()
def evaluate_samples(objective: Objective, config: DecodeConfig) -> SampleReport:
    """Decode held-out records; the run goes on as if nobody had looked, all its chance untouched."""
    gpus = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(0)
        modes = [(module, module.training) for module in objective.module.modules()]
        objective.module.eval()
        try:
            return objective.decode(config)
        finally:
            for module, was_training in modes:  # parts that stand still may be in use while others learn
                module.training = was_training


def write_samples(run: Path, step: int, samples: Sequence[SampleOutput]) -> None:
    """``samples/step-N/samples.jsonl`` and a WAV for each output that was spoken."""
    if not samples:
        return
    with atomic_path(run / SAMPLES / f"step-{step:08d}") as folder:
        folder.mkdir()
        rows = []
        for number, sample in enumerate(samples):
            name = f"{number:02d}-{sample.task}.wav"
            if sample.waveform is not None and sample.rate is not None and len(sample.waveform):
                write(folder / name, sample.waveform.float().cpu(), sample.rate)
            else:
                name = ""
            row = {
                "key": sample.key,
                "task": sample.task,
                "wanted": sample.reference,
                "said": sample.hypothesis,
            }
            rows.append(row | {"question": sample.question or "", "sound": name})
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / SAMPLES_FILE).write_text("".join(lines), encoding="utf-8")
