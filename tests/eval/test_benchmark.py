"""A benchmark is one class in one file: those here, known nowhere else, run through the whole command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from typer.testing import CliRunner

from echat.cli import app
from echat.data.formats.manifest import read_manifest
from echat.eval.benchmark import Benchmark, Scored, find_benchmark, shipped_benchmarks
from echat.eval.report import Report, number
from echat.eval.runner import EvalItem, ModelResponse, ModelResponses, Request, evenly_spaced


@dataclass(frozen=True)
class Share(Report):
    """A share of the replies."""

    value: float
    replies: int
    skipped: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {"share": self.value, "replies": self.replies, "skipped": list(self.skipped)}

    def parts(self) -> list[str]:
        return [f"{number(self.value)} of {self.replies} replies"]


class Brevity(Benchmark):
    """How many replies are short?

    The second paragraph is for those who read on.
    """

    folder: Path = Field(description="Of manifest.jsonl.")
    words: int = Field(30, ge=2, description="Of a short reply, at most.")

    def check(self) -> None:
        if not (self.folder / "manifest.jsonl").is_file():
            raise ValueError(f"{self.folder}: expected manifest.jsonl, found none; check --folder")

    def items(self) -> list[EvalItem]:
        samples = evenly_spaced(read_manifest(self.folder / "manifest.jsonl"), self.limit)
        return [EvalItem(sample, (Request("s2t"),)) for sample in samples]

    def score(self, response: ModelResponse) -> bool:
        return len(response.output.text.split()) <= self.words

    def report(self, scored: Sequence[Scored], responses: ModelResponses) -> Share:
        return Share(sum(one.score for one in scored) / len(scored), len(scored), responses.skipped)


NAME = f"{__name__}:Brevity"


def echat(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_a_benchmark_of_a_user_runs_through_the_command(
    manifest: Path, random_model: Path, tmp_path: Path
) -> None:
    (manifest.parent / "3.wav").write_text("not a sound")
    figures, table = tmp_path / "figures.json", tmp_path / "table.md"
    options = ["-m", random_model, "--folder", manifest.parent]
    result = echat(NAME, *options, "--words", 10**6, "-o", figures, "--markdown", table, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"share": 1.0, "replies": 5, "skipped": ["q3"]}
    assert json.loads(figures.read_text()) == json.loads(result.stdout)
    assert table.read_text() == "```\n100.0 % of 5 replies\n```\n"
    plain = echat(NAME, *options, "--words", 10**6, "--limit", 3)
    assert plain.stdout == "100.0 % of 3 replies\n"


def test_the_fields_of_a_benchmark_are_the_options_of_its_command() -> None:
    text = echat(NAME, "--help").stdout
    assert "How many replies are short?" in text and "for those who read on" in text
    for option in ("--folder PATH", "--words NUMBER", "--limit", "--seed", "--model", "--markdown", "-o"):
        assert option in text, text
    assert "[default: 30; x>=2]" in text and "[required]" in text


def test_shipped_benchmarks_are_found_in_their_folder() -> None:
    assert list(shipped_benchmarks()) == ["everyday", "tiny", "understanding"]
    for name, sentence in shipped_benchmarks().items():
        assert issubclass(find_benchmark(name), Benchmark)
        assert f"{name}: {sentence}\n" in echat("list").stdout
        assert name in echat("--help").stdout


def test_a_benchmark_in_a_file_of_the_working_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own.py").write_text(
        "from echat.eval.benchmark import Benchmark\n"
        'class Mine(Benchmark):\n    """Mine alone."""\n    size: int = 3\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])
    assert find_benchmark("my_own:Mine").__name__ == find_benchmark("my_own:").__name__ == "Mine"
    assert "Mine alone." in echat("my_own:Mine", "-h").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tinny"], "No such command 'tinny'"),
        (["absent_module:Mine"], "expected a module absent_module, found none"),
        ([f"{__name__}:Length"], "found Brevity"),
        ([NAME], "Missing option '--folder'"),
        ([NAME, "--folder", "absent"], "absent: expected manifest.jsonl"),
        ([NAME, "--folder", "absent", "--words", "1"], "--words"),
        (["tiny", "--limit", "0"], "--limit"),
        (["understanding"], "Missing option '--manifest'"),
    ],
)
def test_what_is_wrong_is_one_line_before_a_model_is_loaded(arguments: list[str], says: str) -> None:
    result = echat(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr and result.stderr.count("\n") == 1
