"""Pictures of data: histograms of a corpus, the spectrogram of a sound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from echat.audio.features import MEL_RATE, N_MELS, log_mel
from echat.checkpoint import atomic_path
from echat.data.tools.statistics import EDGES, CorpusStatistics

_INCHES = (8.0, 4.0)


def write_histograms(totals: CorpusStatistics, folder: Path) -> list[Path]:
    """One PNG for each quantity that the corpus has; returns their paths."""
    written = []
    for name in EDGES:
        rows = totals.histogram(name)
        if not rows:
            continue
        path = folder / f"{name.replace(' ', '_')}.png"
        with _picture(path) as axes:
            axes.bar([bin_name for bin_name, _ in rows], [count for _, count in rows], width=0.9)
            axes.set_xlabel(name)
            axes.set_ylabel("records")
            axes.tick_params(axis="x", rotation=45)
        written.append(path)
    return written


def write_spectrogram(waveform: Tensor, path: Path, title: str) -> None:
    """The log-mel frames that the released encoder hears, of 16 kHz ``(samples,)``, as a PNG."""
    mel = log_mel(waveform, N_MELS)  # (frames, n_mels)
    with _picture(path) as axes:
        extent = (0.0, len(mel) / MEL_RATE, 0.0, float(mel.shape[1]))
        axes.imshow(mel.T.numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma")
        axes.set_xlabel("seconds")
        axes.set_ylabel("mel band")
        axes.set_title(_plain(title))


@contextmanager
def _picture(path: Path) -> Iterator[Any]:
    """Axes to draw on; the file appears whole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.add_subplot()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _plain(text: str) -> str:
    """Without what the font cannot draw and what would be read as a formula."""
    return text.encode("ascii", "replace").decode().replace("$", r"\$")
