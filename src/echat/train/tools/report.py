"""The report of a run: one self-contained page with curves, samples as text and audio, recipe, provenance."""

from __future__ import annotations

import base64
import html
import io
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from echat.checkpoint import atomic_path
from echat.train.recipe import MODEL, RECIPE_FILE
from echat.train.sample_eval import SAMPLES, SAMPLES_FILE
from echat.train.tracking.log import METRICS, SMOOTHING, SPEED
from echat.train.tracking.provenance import PROVENANCE

LATEST_EVALUATIONS = 3  # sample evaluations shown beside the first

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1f24; --soft: #667; --line: #d8dce2; --paper: #fff; --card: #f6f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa; --line: #333a44; --paper: #14171b; --card: #1c2026 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 0 auto; padding: 1.5rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
.soft { color: var(--soft) }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .4rem }
figure svg { width: 100%; height: auto; display: block }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0;
  border-top: 1px solid var(--line) }
th { font-weight: 600 } td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
code, pre { font: .85rem/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
pre { background: var(--card); padding: 1rem; border-radius: .5rem; overflow-x: auto }
audio { height: 2rem; width: 13rem } .wide { overflow-x: auto }
"""


def write_report(run: Path, output: Path) -> Path:
    """Write the page of a run folder; returns its path. Raises ValueError where there is no run."""
    if not (run / METRICS).is_file():
        raise ValueError(f"{run}: expected the run folder of a training with {METRICS}, found none")
    rows = list(_rows(run / METRICS))
    steps = [row for row in rows if "loss" in row]
    if not steps:
        raise ValueError(f"{run / METRICS}: expected at least one step, found none; let the training begin")
    page = "\n".join(_page(run, rows, steps))
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _page(run: Path, rows: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]) -> Iterator[str]:
    name = html.escape(run.name)
    last = steps[-1]
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><h1>{name}</h1>"
    done = "finished" if (run / MODEL).is_dir() else "not finished"
    some = max(1, len(steps) // 10)  # a single step may hold a single task
    first, final = (statistics.fmean(row["loss"] for row in part) for part in (steps[:some], steps[-some:]))
    loss = f"loss {first:.3f} → {final:.3f}" + (f" (means of {some} steps)" if some > 1 else "")
    yield f'<p class="soft">{last["step"]:,} steps, {last["samples"]:,} samples, {loss}, {done}</p>'
    yield "<h2>Curves</h2><div class=curves>"
    for curve in curves(rows, list(_rows(run / SPEED))):
        yield f"<figure>{plot(curve)}</figure>"
    yield "</div>"
    yield from _validation(rows)
    yield from _samples(run / SAMPLES)
    yield from _origins(run / PROVENANCE)
    recipe = run / RECIPE_FILE
    if recipe.is_file():
        yield f"<h2>Configuration</h2><pre>{html.escape(recipe.read_text('utf-8'))}</pre>"
    yield "</body></html>"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line that is being written is left out."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def curves(rows: Sequence[dict[str, Any]], speeds: Sequence[dict[str, Any]]) -> list[Curve]:
    """Loss, each task's loss beside its validation, measures of real outputs, rate, norm, padding, speed."""
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "validation" in row]
    names = sorted({name for row in steps for name in row["parts"]})
    measured = sorted({name for row in validations for name in row["validation"]} - {*names, "loss"})
    found = [_loss_curve("loss", [(row["step"], row["loss"]) for row in steps], validations)]
    found += [
        _loss_curve(name, [(r["step"], r["parts"][name]) for r in steps if name in r["parts"]], validations)
        for name in names
    ]
    found += [Curve(name, validation=_validated(name, validations)) for name in measured]
    found = [curve for curve in found if curve.points or len(curve.validation) > 1]  # one value: in the table
    for key, title in (("lr", "learning rate"), ("grad_norm", "gradient norm"), ("padding", "padding")):
        found.append(Curve(title, [(row["step"], row[key]) for row in steps if key in row]))
    found.append(Curve("samples per second", _throughput(speeds)))
    return [curve for curve in found if curve.points or curve.validation]


def _loss_curve(name: str, points: list[tuple[float, float]], validations: Sequence[dict[str, Any]]) -> Curve:
    return Curve(name, points, _validated(name, validations), smooth=True)


def _validated(name: str, validations: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(row["step"], row["validation"][name]) for row in validations if name in row["validation"]]


def _throughput(speeds: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Samples per second between two notes; a pause between two parts of a run is no training time."""
    return [
        (b["step"], (b["samples"] - a["samples"]) / (b["seconds"] - a["seconds"]))
        for a, b in pairwise(speeds)
        if b["seconds"] > a["seconds"] and b["samples"] >= a["samples"]
    ]


def _validation(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """First and last value of everything that was validated."""
    seen: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.get("validation", {}).items():
            seen.setdefault(name, []).append((row["step"], value))
    if not seen:
        return
    yield "<h2>Held-out data</h2><table><tr><th>measure<th>first<th>last<th>best</tr>"
    for name, values in sorted(seen.items()):
        best = (max if name.endswith(("accuracy", "parses")) else min)(value for _, value in values)
        cells = "".join(
            f'<td class=number>{value:.3f} <span class="soft">step {step:,}</span>'
            for step, value in (values[0], values[-1])
        )
        yield f"<tr><td>{html.escape(name)}{cells}<td class=number>{best:.3f}</tr>"
    yield "</table>"


def _samples(folder: Path) -> Iterator[str]:
    evaluations = sorted(path for path in folder.glob("step-*") if (path / SAMPLES_FILE).is_file())
    if not evaluations:
        return
    shown = [*evaluations[:1], *evaluations[1:][-LATEST_EVALUATIONS:]]
    yield "<h2>Samples</h2><div class=wide>"
    for evaluation in reversed(shown):
        yield f"<h3>{evaluation.name.replace('step-', 'step ').replace(' 0', ' ').lstrip('0')}</h3>"
        yield "<table><tr><th>task<th>input<th>reference<th>output<th>audio</tr>"
        for row in _rows(evaluation / SAMPLES_FILE):
            texts = [html.escape(row[name]) for name in ("task", "wanted", "said")]
            input_player = _player(Path(row["question"])) if row["question"] else ""
            output_player = _player(evaluation / row["sound"]) if row["sound"] else ""
            yield f"<tr><td>{texts[0]}<td>{input_player}<td>{texts[1]}<td>{texts[2]}<td>{output_player}</tr>"
        yield "</table>"
    yield "</div>"


def _player(path: Path) -> str:
    """An audio player with the sound in the page, lossless."""
    import soundfile

    if not path.is_file():
        return f'<span class="soft">{html.escape(path.name)} is gone</span>'
    samples, rate = soundfile.read(path, dtype="int16")
    packed = io.BytesIO()
    soundfile.write(packed, samples, rate, format="FLAC")
    data = base64.b64encode(packed.getvalue()).decode()
    return f'<audio controls preload="none" src="data:audio/flac;base64,{data}"></audio>'


def _origins(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    starts: list[Mapping[str, Any]] = json.loads(path.read_text("utf-8"))["starts"]
    yield "<h2>Origins</h2><table><tr><th>from step<th>when<th>echat<th>git<th>torch<th>machine</tr>"
    for start in starts:
        cells = (start[key] for key in ("time", "echat", "git", "torch", "machine"))
        texts = "".join(f"<td><code>{html.escape(str(cell))}</code>" for cell in cells)
        yield f"<tr><td class=number>{start['step']:,}{texts}</tr>"
    yield "</table><h2>Data</h2><table><tr><th>list<th>sha256</tr>"
    for name, digest in starts[-1]["data"].items():
        yield f"<tr><td><code>{html.escape(name)}</code><td><code>{digest}</code></tr>"
    yield "</table>"


# --- Curves of a report as SVG.

Points = Sequence[tuple[float, float]]  # (step, value)

_MOST = 2000  # points of one line: more cannot be seen


@dataclass(frozen=True)
class Curve:
    """Values over steps while training, and on held-out data."""

    name: str
    points: Points = ()
    validation: Points = field(default=())
    smooth: bool = False  # plot a running mean over the values


def plot(curve: Curve) -> str:
    """An ``<svg>`` element, texts as texts."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": curve.name, "font.size": 9}):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.set_title(curve.name, fontsize=10, loc="left")
        axes.grid(alpha=0.25)
        axes.set_xlabel("step", fontsize=8, loc="right")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        points = downsample(curve.points)
        if curve.smooth and len(points) > 2:
            axes.plot(*zip(*points), color="#9db8dd", linewidth=0.6)
            axes.plot(
                *zip(*downsample(running_mean(curve.points))),
                color="#1f5fb4",
                linewidth=1.6,
                label="training",
            )
        elif points:
            axes.plot(*zip(*points), color="#1f5fb4", linewidth=1.2, marker="." if len(points) < 3 else "")
        if curve.validation:
            axes.plot(*zip(*curve.validation), color="#d2601a", marker="o", markersize=3, label="held out")
        if curve.smooth and curve.validation:
            axes.legend(frameon=False, fontsize=8)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    text = svg.getvalue()
    return text[text.index("<svg") :]


def running_mean(points: Points) -> list[tuple[float, float]]:
    """Exponential mean, free of its start at zero (Kingma and Ba 2015, section 3)."""
    mean, weight, found = 0.0, 0.0, []
    for step, value in points:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        found.append((step, mean / weight))
    return found


def downsample(points: Points) -> list[tuple[float, float]]:
    """At most a couple of thousand of the points, evenly spaced; the last one stays."""
    stride = max(1, len(points) // _MOST)
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
