"""Logging of a run: a progress bar, TensorBoard curves, and ``metrics.jsonl``.

``metrics.jsonl`` holds one line per step and nothing that depends on the clock, so that a resumed run writes
the same file as an uninterrupted one. Speed goes to the bar, to TensorBoard and to ``speed.jsonl``.
``skipped.jsonl`` names the samples of skipped steps.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from echat.train.objective import SampleReport
from echat.train.sample_eval import write_samples
from echat.train.step import Progress as RunProgress

METRICS = "metrics.jsonl"
SPEED = "speed.jsonl"  # step, samples, seconds: what depends on the clock
_CURVE_STEPS = 10  # steps between two points of a TensorBoard curve
_PLAIN_SECONDS = 30.0  # seconds between two lines where there is no terminal
SMOOTHING = 0.95  # weight of the past in running means of losses
_NAMED = 10  # samples named in the log when a step is skipped
SKIPPED = "skipped.jsonl"


class RunLog:
    """The log of a run, a context manager."""

    def __init__(self, folder: Path, name: str, from_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / METRICS
        self._speeds = folder / SPEED
        self._skipped = folder / SKIPPED
        for lines in (self._metrics, self._speeds, self._skipped):
            keep_steps(lines, from_step)
        self._file = self._metrics.open("a", encoding="utf-8")
        self._writer = _tensorboard(folder / "tensorboard", from_step)
        self._smooth: dict[str, float] = {}
        self._console = Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}% {task.fields[status]}"),
            console=self._console,
            disable=not sys.stdout.isatty(),
        )
        self._task = self._bar.add_task(name, total=1.0, status="")
        self._name = name
        self._began = time.monotonic()
        self._samples_before: int | None = None
        self._last_line = 0.0

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def step(
        self,
        progress: RunProgress,
        budget_used: float,
        values: Mapping[str, float],
        parts: Mapping[str, float],
    ) -> None:
        """One step: ``values`` (loss, lr, ...), ``parts`` (loss per task), ``done`` share of the budget."""
        self._write({"step": progress.step, "samples": progress.samples, **values, "parts": dict(parts)})
        for name, loss in {"loss": values["loss"], **parts}.items():
            self._smooth[name] = SMOOTHING * self._smooth.get(name, loss) + (1 - SMOOTHING) * loss
        speed = self._speed(progress)
        if progress.step % _CURVE_STEPS == 0:
            row = {"step": progress.step, "samples": progress.samples, "seconds": progress.seconds}
            with self._speeds.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
        if self._writer is not None and progress.step % _CURVE_STEPS == 0:
            self._add_scalars(
                progress.step,
                {**values, **{f"task/{n}": v for n, v in parts.items()}, "samples_per_s": speed},
            )
        self._show(progress, budget_used, speed)

    def skip(
        self, progress: RunProgress, reason: str, batches: Sequence[tuple[float, Sequence[str]]]
    ) -> None:
        """A skipped step, and its micro-batches: loss and keys of each."""
        self._write({"step": progress.step, "samples": progress.samples, "skipped": reason})
        bad = [keys for loss, keys in batches if not math.isfinite(loss)]
        named = [key for keys in bad or [keys for _, keys in batches] for key in keys]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        self.info(
            f"step {progress.step} skipped: {reason}, in the batch of {', '.join(named[:_NAMED])}{more}; "
            f"all are named in {self._skipped}"
        )
        shown = [{"loss": loss if math.isfinite(loss) else str(loss), "keys": list(k)} for loss, k in batches]
        with self._skipped.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": progress.step, "reason": reason, "batches": shown}) + "\n")

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        self._write({"step": step, "validation": dict(values)})
        if self._writer is not None:
            self._add_scalars(step, {f"validation/{name}": value for name, value in values.items()})
        self.info(f"step {step}: validation " + "  ".join(f"{n} {v:.3f}" for n, v in values.items()))

    def sample_report(self, step: int, found: SampleReport) -> None:
        """Metrics of decoded outputs as validation values; the samples in files and in TensorBoard."""
        if found.metrics:
            self.validation(step, found.metrics)
        write_samples(self._metrics.parent, step, found.samples)
        if self._writer is not None:
            for number, sample in enumerate(found.samples):
                name = f"{sample.task}/{number}"
                text = f"wanted: {sample.reference}  \nsaid: {sample.hypothesis}"
                self._writer.add_text(name, text, step)
                if sample.waveform is not None and sample.rate is not None and len(sample.waveform):
                    self._writer.add_audio(name, sample.waveform.float().cpu()[None], step, sample.rate)

    def info(self, message: str) -> None:
        """A message above the progress bar."""
        self._console.print(message, highlight=False, soft_wrap=True)

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        assert self._writer is not None
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _speed(self, progress: RunProgress) -> float:
        if self._samples_before is None:
            self._samples_before = progress.samples
            self._began = time.monotonic()
            return 0.0
        return (progress.samples - self._samples_before) / max(time.monotonic() - self._began, 1e-9)

    def _show(self, progress: RunProgress, budget_used: float, speed: float) -> None:
        left = progress.seconds * (1 - budget_used) / budget_used if budget_used > 0 else math.nan
        losses = "  ".join(f"{name} {loss:.3f}" for name, loss in self._smooth.items())
        status = f"step {progress.step}  {speed:.1f} samples/s  {_clock(left)} left  {losses}"
        if not self._bar.disable:
            self._bar.update(self._task, completed=min(1.0, budget_used), status=status)
        elif time.monotonic() - self._last_line > _PLAIN_SECONDS or budget_used >= 1:
            self._last_line = time.monotonic()
            print(f"{self._name} {min(1.0, budget_used):.0%} {status}", flush=True)


class NullLog:
    """The log of a process that is not the main one: it writes nothing."""

    def step(self, *_: object) -> None:
        """Nothing."""

    def skip(self, *_: object) -> None:
        """Nothing."""

    def validation(self, *_: object) -> None:
        """Nothing."""

    def sample_report(self, *_: object) -> None:
        """Nothing."""

    def info(self, *_: object) -> None:
        """Nothing."""


def keep_steps(path: Path, last: int) -> None:
    """Drop the lines of ``metrics.jsonl`` after step ``last``: a resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if not line.endswith("\n") or not 0 <= _step(line) <= last:
            break
        kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")


def _step(line: str) -> int:
    """The step of a line; -1 for a damaged one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return -1


def _tensorboard(folder: Path, from_step: int) -> Any:
    """A TensorBoard writer, or None where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=from_step + 1)


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
