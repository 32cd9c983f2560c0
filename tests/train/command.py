"""The command line inside the process of a test."""

from __future__ import annotations

from collections.abc import Sequence

from echat.cli import main


def echat(*words: str | Sequence[str]) -> int:
    """Run ``echat`` with words and lists of words; its exit code."""
    arguments = [part for word in words for part in ([word] if isinstance(word, str) else word)]
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("a command ends the process")
