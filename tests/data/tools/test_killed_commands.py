"""A data command that is killed goes on where it was, and ends with the bytes of one that was not.

The moment of the kill is sampled among all that a run does after its first finished part: opening, renaming
and removing files, as the interpreter reports them. Twenty moments of each command are marked slow.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.data.conftest import make_corpus

from echat.data.tools import cleaning
from echat.data.tools.check import CheckConfig, check
from echat.data.tools.conversion import ConversionConfig, convert
from echat.data.tools.speech_tokenization import TokenizeConfig, tokenize

FEW, MANY = 2, 20
MOMENTS = [pytest.param(n, marks=[] if n < FEW else pytest.mark.slow) for n in range(MANY)]
WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree")
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.")


class Codec:
    """Speech ids that depend on the sound alone."""

    def encode(self, waveforms):
        return [[int(1000 * abs(float(wave[n]))) % 32 for n in range(0, 4000, 100)] for wave in waveforms]


def load(folder: str) -> Codec:
    return Codec()


def fix(source: Path, out: Path) -> None:
    config = CheckConfig(source=str(source))
    cleaning._LINES_PER_JOB = 3
    cleaning.clean(config, check(config).bad, out)


@dataclass(frozen=True)
class Command:
    """What is run, and what a finished part of it is called."""

    source: str
    run: Callable[[Path, Path], object]
    part: str


def converting(to: str, **more: object) -> Callable[[Path, Path], object]:
    return lambda source, out: convert(
        ConversionConfig(source=str(source), out=str(out), to=to, shard_size=3, task="asr", **more)
    )


COMMANDS = {
    "convert to shard": Command("manifest.jsonl", converting("shard"), r"\.finished$"),
    "convert to combine": Command("manifest.jsonl", converting("combine"), r"\.finished$"),
    "convert to manifest": Command("manifest.jsonl", converting("manifest", copy_audio=True), r"\.finished$"),
    "convert to raw": Command("shards", converting("raw"), r"\.finished$"),
    "fix of tars": Command("shards", fix, r"/out/[^/]*\.tar$"),
    "fix of a list": Command("manifest.jsonl", fix, r"/parts/\d+\.list$"),
    "tokenize": Command(
        "manifest.jsonl",
        lambda source, out: tokenize(
            TokenizeConfig(
                source=str(source), out=str(out), shard_size=3, tokenizer="x", again=True, codec_size=32
            ),
            load,
        ),
        r"\.finished$",
    ),
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    """A manifest of 24 records and the same in eight tars, every one with something wrong in it."""
    folder = tmp_path_factory.mktemp("killed")
    make_corpus(folder)
    convert(
        ConversionConfig(
            source=str(folder / "manifest.jsonl"),
            out=str(folder / "shards"),
            to="shard",
            shard_size=3,
            task="asr",
        )
    )
    for path in (folder / "shards").glob("*.tar"):
        data = bytearray(path.read_bytes())
        data[data.rindex(b"ustar\0")] ^= 1  # the last member of the last record
        path.write_bytes(data)
    with (folder / "manifest.jsonl").open("a") as lines:
        lines.write('{"key": "bad"\n')
    return folder


def in_child(work: Callable[[], None]) -> int:
    """The status of a forked process that does the work."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(3)
    return os.waitpid(child, 0)[1]


def watched(command: Command, source: Path, out: Path, stop: int | None, log: Path) -> None:
    """Run, count what happens after the first finished part, and die at event ``stop``."""
    count = -1
    finished = re.compile(command.part)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in WATCHED:
            return
        if count >= 0 and any(
            isinstance(argument, str | os.PathLike) and str(out) in str(argument) for argument in arguments
        ):
            count += 1
            if count == stop:
                os.kill(os.getpid(), signal.SIGKILL)
        if count < 0 and event == "os.rename" and finished.search(str(arguments[1])):
            count = 0

    sys.addaudithook(hook)
    command.run(source, out)
    log.write_text(json.dumps(count))


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file but the indexes, which know the times of their files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".index"
    }


@pytest.fixture(scope="module")
def whole(corpora) -> Callable[[str], tuple[dict[str, str], int]]:
    """What a run leaves that is not stopped, and how much it does after its first part."""
    known: dict[str, tuple[dict[str, str], int]] = {}

    def of(name: str) -> tuple[dict[str, str], int]:
        if name not in known:
            command, out, log = COMMANDS[name], corpora / name / "out", corpora / "log"
            assert in_child(lambda: watched(command, corpora / command.source, out, None, log)) == 0
            known[name] = contents(out), json.loads(log.read_text())
            shutil.rmtree(out)
        return known[name]

    return of


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_run_again_equals_uninterrupted(corpora, whole, name, moment):
    expected, events = whole(name)
    command, out = COMMANDS[name], corpora / name / "out"
    shutil.rmtree(out, ignore_errors=True)
    stop = random.Random(f"{name} {moment}").randint(1, events)
    status = in_child(lambda: watched(command, corpora / command.source, out, stop, corpora / "log"))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    left = contents(out)
    assert left != expected or stop == events
    parts = {path for path in left if re.search(command.part, f"/out/{path}")}
    assert in_child(lambda: command.run(corpora / command.source, out) and None) == 0
    assert contents(out) == expected
    assert parts and not [path for path in out.rglob("*") if TEMPORARY.match(path.name)]


@pytest.mark.parametrize("moment", MOMENTS)
def test_workers_killed_with_their_run_are_resumed(corpora, whole, moment):
    """The parent counts the finished jobs; all of its processes die in whatever they are doing."""
    expected, _ = whole("convert to shard")
    out = corpora / "convert to shard" / "out"
    shutil.rmtree(out, ignore_errors=True)
    stop = random.Random(moment).randint(1, 7)
    config = ConversionConfig(
        source=str(corpora / "manifest.jsonl"), out=str(out), to="shard", shard_size=3, task="asr"
    )

    def die(done: int, total: int) -> None:
        if done == stop:
            os.killpg(0, signal.SIGKILL)

    def work() -> None:
        os.setsid()
        convert(config, workers=2, progress=die)

    status = in_child(work)
    assert os.WIFSIGNALED(status) and len(list(out.glob("*.finished"))) >= stop
    convert(config)
    assert contents(out) == expected
