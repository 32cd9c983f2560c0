"""Errors of the package, and the wrapper that ends a module run as a command in one line of error."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from functools import wraps

USER_ERROR = 2
SHOWN = 160  # characters of another library's error


class ModelError(RuntimeError):
    """The model gave nothing that can be used; the message says what to try."""


Arguments = Sequence[str] | None


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


def command(main: Callable[[Arguments], None]) -> Callable[..., int]:
    """`main(arguments)`, where None are those of the command line -> exit code: 0 when it ended, 2 when
    something has to be mended first, which is said in one line."""

    @wraps(main)
    def run(arguments: Arguments = None) -> int:
        accept_any_encoding()
        try:
            main(arguments)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return USER_ERROR
        return 0

    return run
