"""What the README says can be typed, can be typed; what it points to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer

from echat.cli import app

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
README = GUIDES[0].read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("echat ")]
TARGETS = re.findall(r"^make ([\w-]+)", "\n".join(path.read_text(encoding="utf-8") for path in GUIDES), re.M)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    words = shlex.split(line.split(">")[0])[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "get_command"):
        found = command.get_command(None, words[0])
        assert found is not None, f"{line!r}: no command {words[0]!r}"
        command, words = found, words[1:]
    context = command.make_context("echat", words)
    assert context.params or not context.command.params


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "serve", "test", "test-quick", "setup"} <= set(TARGETS)
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in TARGETS)


def test_the_first_command_is_the_demo():
    assert TARGETS[0] == "demo"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_paths_exist(guide):
    text = guide.read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:src|recipes|runs|tests|scripts)/[\w./-]*[\w/])", text))
    named |= set(re.findall(r"\]\(([\w.]+)\)", text))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert named and not missing


def test_the_python_example_runs(tmp_path, monkeypatch, random_model, capsys):
    soundfile.write(tmp_path / "question.wav", np.sin(np.arange(8000) / 20.0), 16_000)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, object] = {}
    exec(example.replace('"echat-tiny"', repr(str(random_model))), names)
    assert hasattr(names["reply"], "thought") and capsys.readouterr().out
