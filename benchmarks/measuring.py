"""What the benchmarks share: settings of an engine to measure, and where the numbers go."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def engine_settings(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows which engine is measured, where, and on how many threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="tiny", choices=("tiny", "0.5b", "3b"))
    parser.add_argument("--dtype", default="bfloat16", help="of the larger shapes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    return parser


def write_numbers(path: Path, numbers: Mapping[str, Any]) -> None:
    """JSON at `path`, and a line that says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
