"""What the distribution is called, and which extra brings which optional package, is the same everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import echat
from echat.optional_dependencies import DISTRIBUTION, EXTRA_OF, how_to_install, missing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OTHER_NAMES = {"prometheus_client": "prometheus-client", "silero_vad": "silero-vad"}
OTHER_NAMES |= {"python_multipart": "python-multipart", "pyworld": "pyworld-prebuilt"}


def texts() -> list[Path]:
    """Every file of the repository that people read."""
    found = [ROOT / name for name in ("pyproject.toml", "Makefile", "Dockerfile")]
    found += [*ROOT.glob("*.md"), *ROOT.glob(".ci/*")]
    for folder in ("src", "tests", "docs", "scripts", "recipes", "runs", "benchmarks"):
        found += [p for p in (ROOT / folder).rglob("*") if p.suffix in {".py", ".md", ".sh", ".yaml", ".js"}]
    return [path for path in found if path.is_file() and "node_modules" not in path.parts]


def test_the_distribution_has_one_name():
    assert PROJECT["name"] == DISTRIBUTION
    dev = [line for line in EXTRAS["dev"] if line.startswith(DISTRIBUTION)]
    assert len(dev) == 1


OTHER_PROGRAM = re.compile(r"install [^\n`]*?(?<![-\w/.])echat(?![-\w/.])|(?<![-\w])echat\[(?![\"\]])")


@pytest.mark.parametrize("said", ["pip install -q {}", "pip install '{}[serve]'", "{}[ray]"])
def test_the_other_program_would_be_seen(said):
    assert OTHER_PROGRAM.search(said.format("echat"))
    assert not OTHER_PROGRAM.search(said.format(DISTRIBUTION))


def test_no_text_says_to_install_another_program():
    wrong = [
        f"{path.relative_to(ROOT)}: {found.group()}"
        for path in texts()
        for found in OTHER_PROGRAM.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not wrong


def test_the_package_says_how_to_install_in_one_place():
    wrong = [p for p in (ROOT / "src").rglob("*.py") if f"{DISTRIBUTION}[" in p.read_text(encoding="utf-8")]
    assert wrong == []


@pytest.mark.parametrize("module", EXTRA_OF)
def test_the_extra_that_is_named_brings_the_package(module):
    names = [re.split(r"[\[<>=! ]", line)[0] for line in EXTRAS[EXTRA_OF[module]]]
    assert OTHER_NAMES.get(module, module) in names


def test_a_missing_package_is_one_sentence_with_its_remedy():
    assert how_to_install("jiwer") == "pip install 'echat-speech[eval]'"
    assert missing("jiwer", "word errors") == (
        "word errors: expected the Python package jiwer, found none; pip install 'echat-speech[eval]'"
    )


def test_pitch_needs_no_setuptools():
    pytest.importorskip("pyworld")
    code = (
        "import sys; sys.modules['pkg_resources'] = None\n"
        "import numpy as np, pyworld\n"
        "tone = np.sin(2 * np.pi * 200 * np.arange(16000) / 16000)\n"
        "f0, times = pyworld.dio(tone, 16000)\n"
        "print(np.median(pyworld.stonemask(tone, f0, times, 16000)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(200, abs=0.5)


def test_every_dependency_is_pinned_to_a_version_that_is_allowed():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    wanted = [Requirement(line) for line in (*PROJECT["dependencies"], *chain(*EXTRAS.values()))]
    for requirement in wanted:
        if requirement.name != DISTRIBUTION:
            name = canonicalize_name(requirement.name)
            assert name in pins, f"{requirement}: run scripts/lock.py"
            assert requirement.specifier.contains(pins[name]), f"{requirement}: run scripts/lock.py"


def test_the_version_has_one_home():
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", echat.__version__)
