"""Input and output files: `-` is stdin or stdout; one bad file of several is skipped and reported."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import typer

from echat.audio.waveform import write
from echat.cli.errors import explain

if TYPE_CHECKING:
    from torch import Tensor

    from echat.infer.events import Reply

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
    """The input files of a command; an error in one of several is printed at once and counted."""

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
        """Context of one input: the error of a single input is raised, that of one among several printed."""
        try:
            yield
        except Exception as error:
            if not self.are_several:
                raise
            self._bad[number], message = explain(error)
            print(f"error: {' '.join(message.split())}", file=sys.stderr)

    def end(self) -> None:
        """After the work: exit with an error code when an input was left out."""
        if self._bad:
            print(f"{len(self._bad)} of {len(self._paths)} inputs could not be used", file=sys.stderr)
            raise typer.Exit(max(self._bad.values()))


# --- Speech outputs: files, a folder of them, or stdout, which then carries nothing else.

SPEECH_SUFFIXES = (".wav", ".flac", ".ogg")


def check_speech(path: Path | None) -> None:
    """Refuse an output that could not be written, before anything is computed."""
    if path is None:
        return
    if path == STREAM:
        if sys.stdout.isatty():
            raise ValueError("-o -: expected a pipe or a file as stdout, found a terminal; name a file")
        return
    if path.suffix.lower() not in SPEECH_SUFFIXES:
        raise ValueError(
            f"{path}: expected a name in {', '.join(SPEECH_SUFFIXES)}, found {path.suffix!r}; rename it"
        )
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected an existing folder {path.parent}, found none; create it first")
    if path.is_dir():
        raise ValueError(f"{path}: expected a file to write, found a folder; name a file inside it")


def speech_files(inputs: Sequence[Path], output: Path | None) -> list[Path | None]:
    """The file for the answer to each input; of several inputs the output is a folder, which is made."""
    if output is None or len(inputs) == 1:
        check_speech(output)
        return [output] * len(inputs)
    if output == STREAM or output.suffix.lower() in SPEECH_SUFFIXES or output.is_file():
        raise ValueError(
            f"{output}: expected a folder for {len(inputs)} answers, found a file; name a folder with -o"
        )
    names = ["stdin.wav" if path == STREAM else f"{path.stem}.wav" for path in inputs]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"{output}: expected inputs with names of their own, found several for {twice[0]}; "
            "rename them or answer them one by one"
        )
    output.mkdir(parents=True, exist_ok=True)
    return [output / name for name in names]


def write_reply(path: Path, answer: Reply) -> None:
    """The speech of a reply; a reply without any is an error."""
    if answer.waveform is None or answer.rate is None:
        raise ValueError(
            f"{path}: expected speech, found a reply without any ({answer.text!r}); "
            "ask again with another --seed or without -o"
        )
    write_speech(path, answer.waveform, answer.rate)


def write_speech(path: Path, waveform: Tensor, rate: int) -> None:
    """A waveform as a file, or as a WAV file on stdout."""
    if path != STREAM:
        return write(path, waveform, rate)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        write(file, waveform, rate)
        sys.stdout.buffer.write(file.read_bytes())
    sys.stdout.buffer.flush()


@contextmanager
def texts_beside(output: Path | None) -> Iterator[None]:
    """What is printed inside goes to stderr where stdout carries the speech."""
    if output == STREAM:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield
