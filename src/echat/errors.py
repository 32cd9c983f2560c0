"""Errors of the package, their first line, and output streams that take any text."""

from __future__ import annotations

import io
import sys

USER_ERROR = 2
SHOWN = 160  # characters of another library's error


class ModelError(RuntimeError):
    """The model gave nothing that can be used; the message says what to try."""


def first_line(error: BaseException) -> str:
    """What an error says, without what follows on further lines; of torch's advice only the reason."""
    lines = str(error).splitlines() or [""]
    reasons = [line.partition("WeightsUnpickler error:")[2].strip() for line in lines]
    return (next(filter(None, reasons), "") or lines[0].strip())[:SHOWN] or type(error).__name__


def accept_any_encoding() -> None:
    """What a stream cannot encode is replaced: a report in the wrong alphabet is better than none."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
