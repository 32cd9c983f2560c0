"""Help of every command: printed for a bare group, without Python types; deprecated options still work."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import echat
from echat.cli import app

PYTHON_WORDS = re.compile(r"<\w+|\blist\[|\b(?:str|int|Path|StrEnum|Annotated)\b")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def everything(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of every command and group."""
    command = command or typer.main.get_command(app)
    yield path, command
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from everything(command.get_command(None, name), (*path, name))


COMMANDS = {" ".join(path): command for path, command in everything()}
GROUPS = [name for name, command in COMMANDS.items() if hasattr(command, "commands")]


@pytest.mark.parametrize("group", GROUPS)
def test_a_bare_group_prints_its_help(group):
    result = run(*group.split())
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.strip() == run(*group.split(), "--help").stdout.strip()
    assert "Commands:" in result.stdout


@pytest.mark.parametrize("words", COMMANDS)
def test_help_has_no_python_types(words):
    text = run(*words.split(), "-h").stdout
    assert text.startswith("Usage: ") and text == run(*words.split(), "--help").stdout
    assert not PYTHON_WORDS.findall(text)


@pytest.mark.parametrize("words", COMMANDS)
def test_output_and_json_have_one_spelling(words):
    for option in COMMANDS[words].params:
        if "-o" in option.opts:
            assert option.opts == ["--output", "-o"]
        if option.name == "json":
            assert option.opts == ["--json"] and option.is_flag
        assert "--out" not in option.opts


def test_the_version_is_printed():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"echat {echat.__version__}\n")


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "echat", "--version"], capture_output=True, text=True)
    assert done.stdout == f"echat {echat.__version__}\n"


def test_a_shell_completes_commands():
    environment = {"_ECHAT_COMPLETE": "complete_bash", "COMP_WORDS": "echat und", "COMP_CWORD": "1"}
    result = CliRunner().invoke(app, [], prog_name="echat", env=environment)
    assert result.stdout.split() == ["understand"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--out", "x"], {"output": "x", "json": False}),
        (["--out=x"], {"output": "x", "json": False}),
        (["--json", "report.json"], {"output": "report.json", "json": False}),
        (["--json=report.json"], {"output": "report.json", "json": False}),
        (["--json", "-"], {"output": None, "json": True}),
        (["--json"], {"output": None, "json": True}),
        (["-o", "x", "--json"], {"output": "x", "json": True}),
    ],
    ids=" ".join,
)
def test_deprecated_options_are_accepted(given, named):
    command = COMMANDS["data check"]
    context = command.make_context("check", ["SOURCE", *given])
    found = {name: context.params[name] for name in named}
    assert {
        name: value if value is None else type(named[name])(value) for name, value in found.items()
    } == named
    assert context.params["source"] == "SOURCE"


def test_a_source_that_is_a_json_file_is_no_report():
    context = COMMANDS["data check"].make_context("check", ["--json", "array.json"])
    assert (context.params["source"], context.params["json"], context.params["output"]) == (
        "array.json",
        True,
        None,
    )


def test_a_wrong_word_points_to_the_help_of_its_command():
    result = run("data", "check")
    assert result.exit_code == 2 and "Missing argument 'SOURCE'; see echat data check --help" in result.stderr
