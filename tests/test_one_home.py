"""Every fact is written once: numbers, names and label sets have one home and are imported elsewhere.

A row names a fact, the pattern by which a second copy is found in code (docstrings and comments may name it),
and the files where it may stand.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import echat
from echat.dialogue.tasks import TASKS

PACKAGE = Path(echat.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


@dataclass(frozen=True)
class Fact:
    """What may stand in its home alone."""

    name: str
    pattern: str
    """Of a line of code without comment."""
    home: str
    """The file, from the package folder."""
    also: tuple[str, ...] = ()
    """Further files, with a reason beside the row."""

    @property
    def files(self) -> set[str]:
        return {self.home, *self.also}


_LABEL = r'"(?:emotion|gender|age|sound_event)"'
FACTS = [
    Fact("sample rate of the vocoder", r"\b22_?050\b", "audio/features.py"),
    Fact(
        "sample rate of the model",
        r"\b16_?000\b",
        "audio/features.py",
        # rates that Opus knows; a limit on the quality of voice recordings
        ("data/formats/audio_encoding.py", "train/tools/assemble.py"),
    ),
    Fact(
        "hop of the vocoder's mel",
        r"(?i:hop\w*)\s*(?::[^=]*)?=\s*256\b|[/*] 256\b(?! \* )",
        "audio/features.py",
    ),
    Fact(
        "mel bins",
        r"(?i:n_mels|mel_bins|bins)\s*(?::[^=]*)?=\s*(?:Field\()?80\b",
        "audio/features.py",
    ),
    Fact(
        "speech token rate",
        r"(?i:(?:token|speech|id|input_frame)s?_(?:rate|seconds|per_second))\s*(?::[^=]*)?=\s*"
        r"(?:Field\()?(?:25|0\.04)\b",
        "audio/speech_tokens.py",
    ),
    Fact(
        "size of the published codec",
        r"(?i:codec|vocab)\w*\s*(?::[^=]*)?=\s*(?:Field\()?4_?096\b",
        "audio/speech_tokens.py",
    ),
    Fact("chat template", r"im_(?:start|end)\b", "dialogue/vocabulary.py"),
    Fact("class of a position without a target", r"(?<![\w.])-100\b", "dialogue/vocabulary.py"),
    Fact("kinds of positions", r"^\s*(?:PAD|TEXT|SPEECH|AUDIO)(?:, |\s*=\s*\d+$)", "dialogue/vocabulary.py"),
    Fact(
        "kinds of labels",
        rf"{_LABEL}[,:].*{_LABEL}[,:].*{_LABEL}|^\s+LabelSpec\($",
        "dialogue/label_kinds.py",
        ("dialogue/tasks.py", "eval/benchmarks/tiny.py"),  # which labels a task writes; a bar for each label
    ),
    Fact(
        "file names of a model folder",
        r'"(?:config\.yaml|model\.safetensors|speech_tokenizer)"|\w+_FOLDER = "token2wav"',
        "model_files.py",
        ("release/pretrained.py",),  # the name that foreign checkpoints use
    ),
    Fact("dtypes by name", r'"fp32": torch\.float32', "devices.py"),
    Fact("precisions of packed weights", r'Literal\["fp32", "bf16", "int8"', "kernels/packed_linear.py"),
    Fact("body of an error response", r'\{"error": \{', "serve/http/errors.py"),
]


@cache
def code_lines(path: Path) -> tuple[str, ...]:
    """The lines of a module with comments and docstrings left blank."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    for node in ast.walk(ast.parse(text)):  # docstrings, and strings that describe a field
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return tuple(lines)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_a_fact_stands_in_its_home_alone(fact):
    pattern = re.compile(fact.pattern)
    found = {
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in MODULES
        for number, line in enumerate(code_lines(path), 1)
        if path.relative_to(PACKAGE).as_posix() not in fact.files and pattern.search(line)
    }
    assert not found, f"{fact.name}: import it from {fact.home}:\n" + "\n".join(sorted(found))


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_its_home_is_there(fact):
    assert all((PACKAGE / name).is_file() for name in fact.files)
    assert any(re.search(fact.pattern, line) for line in code_lines(PACKAGE / fact.home)), (
        "the pattern finds nothing at home: it would find no copy either"
    )


def test_no_task_is_a_special_case_by_its_name():
    """A rule of a task is a field of its row in the task table, not a comparison elsewhere."""
    found = []
    for path in MODULES:
        if path.relative_to(PACKAGE).as_posix() == "dialogue/tasks.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                words = {
                    leaf.value
                    for side in sides
                    for leaf in ast.walk(side)
                    if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
                }
                if words & TASKS.keys() and "task" in ast.unparse(node).replace("'", " "):
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert not found, "give dialogue.tasks.Task a field that says it:\n" + "\n".join(found)


def test_a_class_name_has_one_meaning():
    """But `Settings`, the name by which every training objective declares its recipe."""
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name != "Settings":
                homes.setdefault(node.name, []).append(path.relative_to(PACKAGE).as_posix())
    assert not {name: files for name, files in homes.items() if len(files) > 1}
