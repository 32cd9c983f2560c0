"""Constraints that hold every dependency at its lower bound in pyproject.toml: `python scripts/oldest.py`.

What the ranges admit must work: CONTRIBUTING.md says how the oldest versions are installed and checked.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
_BOUNDED = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?>=([0-9][0-9.]*)")


def oldest(requirements: Iterable[str]) -> Iterator[str]:
    """``name==version`` of each requirement. ValueError for one without a lower bound."""
    for requirement in requirements:
        found = _BOUNDED.match(requirement.replace(" ", ""))
        if found is None:
            raise ValueError(
                f"{requirement!r}: expected a lower bound such as {requirement}>=1.0, found none"
            )
        yield f"{found[1]}=={found[2]}"


def main() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    sys.stdout.writelines(f"{line}\n" for line in oldest(project["dependencies"]))


if __name__ == "__main__":
    main()
