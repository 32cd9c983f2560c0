"""What comes in: `-` is stdin, and of several files one that cannot be used does not lose the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from echat.cli.border import explain

STREAM = Path("-")  # stdin as an input, stdout as an output


def stdin_bytes() -> bytes:
    """All of stdin."""
    if sys.stdin.isatty():
        raise ValueError("-: expected data on stdin, found a terminal; pipe or redirect a file into it")
    return sys.stdin.buffer.read()


def stdin_text() -> str:
    """All of stdin as text."""
    try:
        return stdin_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin: expected text in UTF-8, found other bytes ({error})") from error


class Inputs:
    """The files of a command. What is wrong with one of several is said at once and counted."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._bad: dict[int, int] = {}  # number -> exit code
        if self._paths.count(STREAM) > 1:
            raise ValueError("-: expected stdin once among the inputs, found it several times")

    @property
    def are_several(self) -> bool:
        return len(self._paths) > 1

    def __iter__(self) -> Iterator[tuple[int, Path]]:
        """(number, path) of those that were usable so far."""
        for number, path in enumerate(self._paths):
            if number not in self._bad:
                yield number, path

    @contextmanager
    def part(self, number: int) -> Iterator[None]:
        """Around the work with one input: an error of a single input is raised, of one among several said."""
        try:
            yield
        except Exception as error:
            if not self.are_several:
                raise
            self._bad[number], message = explain(error)
            print(f"error: {' '.join(message.split())}", file=sys.stderr)

    def end(self) -> None:
        """After the work: an exit code that tells when something was left out."""
        if self._bad:
            print(f"{len(self._bad)} of {len(self._paths)} inputs could not be used", file=sys.stderr)
            raise typer.Exit(max(self._bad.values()))
