"""The oldest versions that are checked are those that the project says it admits."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
oldest = runpy.run_path(str(ROOT / "scripts" / "oldest.py"))["oldest"]


def test_every_dependency_has_a_lower_bound_that_is_held():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for requirement, line in zip(wanted, oldest(wanted), strict=True):
        name, version = line.split("==")
        assert requirement.startswith(f"{name}>={version}"), requirement


def test_extras_and_upper_bounds_are_left_out():
    assert list(oldest(["a[b,c]>=1.2, <3", "d-e >= 2023.5"])) == ["a==1.2", "d-e==2023.5"]
    with pytest.raises(ValueError, match="'f<2': expected a lower bound"):
        list(oldest(["f<2"]))
