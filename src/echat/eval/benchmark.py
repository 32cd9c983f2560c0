"""The Benchmark protocol (items, requests, a score per response, a report) and the registry of benchmarks.

A benchmark is one class in one file of `echat/eval/benchmarks`, or anywhere on the Python path under the name
`module:Class`. `echat eval NAME` runs it; nothing else has to know it.
"""

from __future__ import annotations

import ast
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from echat.config import Config, nearest
from echat.eval.report import Report
from echat.eval.runner import EvalItem, ModelResponse, ModelResponses, respond

if TYPE_CHECKING:
    from echat.infer.engine import Engine

FOLDER = Path(__file__).parent / "benchmarks"


@dataclass(frozen=True)
class Scored:
    """A response and its score, which has the benchmark's own form."""

    response: ModelResponse
    score: Any


class Benchmark(Config):
    """A test of a model. The docstring of a subclass is its help, its fields are the options of its command.

    Inference and scoring are separate: `items` and `respond` need no judge, `score` and `report` no model.
    """

    skips_bad_items: ClassVar[bool] = True
    """Leave out items whose sound cannot be used, and count them; False: the first one is an error."""

    limit: int | None = Field(None, ge=1, description="Only so many items, evenly spaced.")
    seed: int = Field(0, description="Of the sampled replies.")

    def check(self) -> None:
        """Raise a ValueError for a wrong path or a missing program, before a model is loaded."""

    @abstractmethod
    def items(self) -> Sequence[EvalItem]:
        """The questions, with the requests for each."""

    def respond(self, engine: Engine, items: Sequence[EvalItem]) -> ModelResponses:
        """The model's responses; a benchmark that does not ask in batches has its own way."""
        return respond(engine, items, self.seed, self.skips_bad_items)

    @abstractmethod
    def score(self, response: ModelResponse) -> Any:
        """How good is one response? None: it does not count."""

    @abstractmethod
    def report(self, scored: Sequence[Scored], responses: ModelResponses) -> Report:
        """The figures over all scores."""


def run(benchmark: Benchmark, engine: Engine) -> Report:
    """Ask the model every item, then score its responses."""
    return evaluate(benchmark, benchmark.respond(engine, benchmark.items()))


def evaluate(benchmark: Benchmark, responses: ModelResponses) -> Report:
    """Score responses, wherever they come from, and aggregate the scores."""
    scored = [Scored(response, benchmark.score(response)) for response in responses.responses]
    return benchmark.report([one for one in scored if one.score is not None], responses)


def shipped_benchmarks() -> dict[str, str]:
    """Name -> one sentence of every benchmark of the package, read without importing any."""
    return {
        path.stem.replace("_", "-"): _first_sentence(path)
        for path in sorted(FOLDER.glob("*.py"))
        if path.stem != "__init__"
    }


def find_benchmark(name: str) -> type[Benchmark]:
    """The class of a shipped benchmark, or the one at `module:Class` (modules of the working folder, too)."""
    module, colon, wanted = name.partition(":")
    if not colon:
        if name not in shipped_benchmarks():
            raise ValueError(f"benchmark {name!r}: {nearest(name, shipped_benchmarks())}, or module:Class")
        module = f"echat.eval.benchmarks.{name.replace('-', '_')}"
    elif "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ValueError(f"benchmark {name!r}: expected a module {module}, found none; check it") from error
    classes = {
        found.__name__: found
        for found in vars(loaded).values()
        if isinstance(found, type) and issubclass(found, Benchmark) and found.__module__ == module
    }
    wanted = wanted or next(iter(classes), "")
    if wanted not in classes:
        known = ", ".join(classes) or "none"
        raise ValueError(f"benchmark {name!r}: expected a subclass of Benchmark in {module}, found {known}")
    return classes[wanted]


def _first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())
