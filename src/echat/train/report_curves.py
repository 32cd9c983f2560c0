"""Curves of a report as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

Points = Sequence[tuple[float, float]]  # (step, value)

_SMOOTH = 0.95  # weight of the past in the drawn mean
_MOST = 2000  # points of one line: more are thinned, nobody could see them


@dataclass(frozen=True)
class Curve:
    """Values over steps while training, and on held-out data."""

    name: str
    points: Points = ()
    validation: Points = field(default=())
    smooth: bool = False  # draw a running mean over the values


def draw(curve: Curve) -> str:
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
        points = thinned(curve.points)
        if curve.smooth and len(points) > 2:
            axes.plot(*zip(*points), color="#9db8dd", linewidth=0.6)
            axes.plot(
                *zip(*thinned(running_mean(curve.points))), color="#1f5fb4", linewidth=1.6, label="training"
            )
        elif points:
            axes.plot(*zip(*points), color="#1f5fb4", linewidth=1.2, marker="." if len(points) < 3 else "")
        if curve.validation:
            axes.plot(*zip(*curve.validation), color="#d2601a", marker="o", markersize=3, label="held out")
        if curve.smooth and curve.validation:
            axes.legend(frameon=False, fontsize=8)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def running_mean(points: Points) -> list[tuple[float, float]]:
    """Exponential mean, free of its start at zero (Kingma and Ba 2015, section 3)."""
    mean, weight, found = 0.0, 0.0, []
    for step, value in points:
        mean = _SMOOTH * mean + (1 - _SMOOTH) * value
        weight = _SMOOTH * weight + (1 - _SMOOTH)
        found.append((step, mean / weight))
    return found


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most a couple of thousand of the points, evenly; the last one stays."""
    stride = max(1, len(points) // _MOST)
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
