"""Imports point one way, optional libraries are imported where they are used, and help is instant."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import echat

PACKAGE = Path(echat.__file__).parent
GROUND = {
    "config",
    "checkpoint",
    "safe_loading",
    "errors",
    "optional_dependencies",
    "kernels",
    "metrics",
    "devices",
}
SENSES = GROUND | {"audio", "dialogue"}
PARTS = SENSES | {"model", "token2wav", "data"}
RELEASE = PARTS | {"release"}
ENGINE = RELEASE | {"infer"}
MAY_IMPORT = {
    "checkpoint": set(),
    "safe_loading": {"checkpoint"},
    "errors": set(),
    "optional_dependencies": set(),
    "metrics": set(),
    "devices": set(),
    "kernels": set(),
    "config": {"checkpoint"},
    "audio": GROUND,
    "dialogue": GROUND,
    "model": SENSES,
    "token2wav": SENSES,
    "data": SENSES,
    "release": PARTS,
    "infer": RELEASE,
    "verify": ENGINE,
    "train": ENGINE,
    "eval": ENGINE,
    "serve": ENGINE,
    "corpus": ENGINE,
    "cli": ENGINE | {"verify", "train", "eval", "serve", "corpus"},
    "__init__": {"infer", "devices"},
    "__main__": {"cli"},
}
OPTIONAL = {
    "datasets",
    "gradio",
    "jiwer",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "peft",
    "pyarrow",
    "pyworld",
    "ttspico",
    "ray",
    "scipy",
    "sounddevice",
    "tensorboard",
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def owner(path: Path) -> str:
    """The folder (or top-level file) of the package that a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(nodes: Iterator[ast.AST], path: Path) -> Iterator[str]:
    """Full dotted names of everything these nodes import; ``from a import b`` counts as ``a.b``."""
    package = ("echat", *path.relative_to(PACKAGE).parts[:-1])
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield from (".".join((*above, *filter(None, [node.module]), alias.name)) for alias in node.names)


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_typing:
            yield node
            yield from outside_functions(node)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    allowed = MAY_IMPORT[owner(path)] | {owner(path), "__version__"}
    if "infer" in allowed:
        allowed |= {"load"}  # echat.load, the engine's front door
    names = [name.split(".") for name in imported(ast.walk(tree), path)]
    wrong = [
        ".".join(name) for name in names if name[0] == "echat" and len(name) > 1 and name[1] not in allowed
    ]
    assert not wrong, f"{path.relative_to(PACKAGE)} may import {sorted(allowed)} of echat, found {wrong}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_optional_libraries_wait_until_they_are_used(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    early = {name.split(".")[0] for name in imported(outside_functions(tree), path)} & OPTIONAL
    assert not early, f"{path.relative_to(PACKAGE)}: import {early} inside the function that needs it"


def test_dialogue_knows_no_torch():
    for path in (PACKAGE / "dialogue").rglob("*.py"):
        names = {name.split(".")[0] for name in imported(ast.walk(ast.parse(path.read_text())), path)}
        assert not names & {"torch", "transformers", "numpy"}, path


def test_every_folder_is_known_here():
    folders = {owner(path) for path in MODULES}
    assert folders <= set(MAY_IMPORT), "give the new folder its place in the order of imports"


def test_the_command_line_starts_without_heavy_libraries():
    code = (
        "import sys, echat, echat.cli; echat.cli.main(['--help'], standalone=False);"
        "heavy = {'torch', 'transformers', 'numpy', 'soundfile', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "reply" in done.stdout
