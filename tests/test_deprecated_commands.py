"""Modules that were commands name the command that replaces them and run it."""

from __future__ import annotations

import runpy
import sys

import pytest

from echat.deprecated_commands import OTHER_ARGUMENTS, SAME_ARGUMENTS


@pytest.mark.parametrize("module", [*SAME_ARGUMENTS, *OTHER_ARGUMENTS])
def test_an_old_command_names_and_runs_its_replacement(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, *(["--help"] if module in SAME_ARGUMENTS else [])])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    output = capsys.readouterr()
    command = SAME_ARGUMENTS.get(module) or OTHER_ARGUMENTS[module][0].split(" MANIFEST")[0]
    assert not end.value.code and f"is deprecated, use: echat {command}" in output.err
    assert f"Usage: echat {command}" in output.out


def test_arguments_are_translated(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "nowhere", "a/manifest.jsonl", "b/manifest.jsonl"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("echat.train.speech_ids", run_name="__main__")
    assert end.value.code == 2 and "nowhere" in capsys.readouterr().err
    _, translate = OTHER_ARGUMENTS["echat.train.speech_ids"]
    assert translate(["T", "a", "b"]) == [["data", "tokenize", name, "--tokenizer", "T"] for name in "ab"]
