"""Sample evaluation: held-out records decoded every so many steps, measured, and kept as text and audio."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from echat.audio.waveform import write
from echat.checkpoint import atomic_path
from echat.train.objective import Objective, SampleOutput, SampleReport
from echat.train.recipe import DecodeConfig

SAMPLES = "samples"  # folder of a run: one folder per step, with samples.jsonl and the sounds
SAMPLES_FILE = "samples.jsonl"


@torch.no_grad()
def evaluate_samples(objective: Objective, config: DecodeConfig) -> SampleReport:
    """Decode held-out records in eval mode; random states and modes of the run are restored afterwards."""
    gpus = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(0)
        modes = [(module, module.training) for module in objective.module.modules()]
        objective.module.eval()
        try:
            return objective.decode(config)
        finally:
            for module, was_training in modes:  # frozen parts stay in eval mode during training
                module.training = was_training


def write_samples(run: Path, step: int, samples: Sequence[SampleOutput]) -> None:
    """``samples/step-N/samples.jsonl`` and a WAV for each output with audio."""
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
