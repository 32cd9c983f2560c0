"""Error handling of the command line: one line on stderr, exit code 2 for user errors, else 1."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperGroup

from echat.errors import USER_ERROR, ModelError, accept_any_encoding
from echat.optional_dependencies import DISTRIBUTION, EXTRA_OF, missing

if TYPE_CHECKING:
    from echat.data.defects import DefectReport

INTERNAL_ERROR = 1
INTERRUPTED = 130
DEFECTS_FOUND = 1  # the data have defects; what is good in them was written


class ErrorHandlingGroup(TyperGroup):
    """Turns every exception of a command into one line; ``ECHAT_DEBUG=1`` shows tracebacks instead."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        accept_any_encoding()
        if os.environ.get("ECHAT_DEBUG") == "1":
            return super().main(args, *rest, **options)
        quiet_libraries()
        options["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **options)
            sys.stdout.flush()
        except BaseException as error:
            exit_on(error)
        if code == INTERRUPTED:  # Ctrl-C arrives here as a code
            print("stopped", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)


def quiet_libraries() -> None:
    """Silence the warnings of libraries; one thread per process unless the user says otherwise.

    oneDNN caches a compiled primitive for each of the latest 1,024 shapes. Every sound has its own
    shape: a server grew by 0.5 GB in half an hour. With 64 it stays the same, at 3 % more processor time.
    """
    warnings.simplefilter("ignore")
    for name, value in {
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)


def exit_on(error: BaseException) -> NoReturn:
    """Print the error in one line on stderr and end the process with its code."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if isinstance(error, BrokenPipeError):  # `echat info | head`: the reader has closed the pipe
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what is left is flushed at the end)
        sys.exit(INTERNAL_ERROR)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.ctx.get_help())  # type: ignore[attr-defined]
        sys.exit(0)
    code, message = explain(error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def exit_on_defects(source: str, records: int, defects: DefectReport) -> None:
    """End with 1 for data with defects, and for data without a record."""
    if not records:
        print(f"{source}: expected records, found none to use", file=sys.stderr)
    if defects or not records:
        raise typer.Exit(DEFECTS_FOUND)


def explain(error: BaseException) -> tuple[int, str]:
    """(exit code, message) for an exception."""
    if hasattr(error, "format_message"):  # a usage error of the argument parser
        path = getattr(getattr(error, "ctx", None), "command_path", "").split()
        command = " ".join(["echat", *path[1:]])
        return USER_ERROR, f"{error.format_message().rstrip('.')}; see {command} --help"
    if isinstance(error, ImportError):
        return _missing_module(error)
    if isinstance(error, OSError):
        where = error.filename if error.filename is not None else "file system"
        return USER_ERROR, f"{where}: {error.strerror or error}; check the path and its permissions"
    if isinstance(error, ValueError):
        return USER_ERROR, _value_error(error)
    if isinstance(error, ModelError):
        return INTERNAL_ERROR, str(error)
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return USER_ERROR, f"expected enough memory, found none left ({error}); use a shorter input"
    if isinstance(error, RecursionError):
        return USER_ERROR, "expected a file nested a few levels deep, found hundreds; check the input file"
    if isinstance(error, OverflowError):
        return USER_ERROR, f"expected numbers of ordinary size, found one that does not fit ({error})"
    return INTERNAL_ERROR, f"unexpected {type(error).__name__}: {error}; ECHAT_DEBUG=1 shows where"


def _missing_module(error: ImportError) -> tuple[int, str]:
    """A package that is not there: one of our extras, or one that another library asks for."""
    module = (error.name or "").split(".")[0]
    if module in EXTRA_OF:
        return USER_ERROR, missing(module, "this command")
    if not isinstance(error, ModuleNotFoundError) or module not in {"", "echat"}:
        return USER_ERROR, f"expected an optional package, found none ({error}); install it with pip"
    return INTERNAL_ERROR, f"unexpected {type(error).__name__}: {error}; pip install --upgrade {DISTRIBUTION}"


def _value_error(error: ValueError) -> str:
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        from echat.config import describe

        return f"configuration, {describe(error)}"  # type: ignore[arg-type]
    return str(error) or type(error).__name__
