"""Progress bars on stderr; where stderr is no terminal, one line says that the work begins, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

Step = TypeVar("Step")


class ProgressCallback(Protocol):
    """Called with how much is done, of how much."""

    def __call__(self, done: int, total: int, /) -> None: ...


@contextmanager
def progress(what: str) -> Iterator[ProgressCallback]:
    """A bar that is moved by a callback."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def step(done: int, total: int, /) -> None:
            bar.update(task, completed=done, total=total)

        yield step


def with_progress(steps: Sequence[Step], label: str) -> Iterator[Step]:
    """The steps, under a bar."""
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        print(f"{label}: {len(steps)} steps", file=sys.stderr)
    yield from track(steps, label, console=console, transient=True, disable=not console.is_terminal)
