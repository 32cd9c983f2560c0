"""Structure of the source: imports point one way without circles, files, folders and functions stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import echat

PACKAGE = Path(echat.__file__).parent
ROOT = PACKAGE.parents[1]
MOST_FILES, MOST_LINES, MOST_LINES_OF_A_FUNCTION = 15, 350, 60
GROUND = {
    "config",
    "checkpoint",
    "safe_loading",
    "model_files",
    "quantized_weights",
    "errors",
    "deprecated_commands",
    "optional_dependencies",
    "kernels",
    "metrics",
    "devices",
    "progress",
    "onnx_runtime",
}
SENSES = GROUND | {"audio", "dialogue"}
PARTS = SENSES | {"model", "token2wav", "data"}
RELEASE = PARTS | {"release"}
ENGINE = RELEASE | {"infer"}
MAY_IMPORT = {
    "checkpoint": set(),
    "safe_loading": {"checkpoint", "errors"},
    "model_files": set(),
    "quantized_weights": {"checkpoint", "kernels"},
    "errors": set(),
    "deprecated_commands": set(),
    "optional_dependencies": set(),
    "metrics": set(),
    "devices": {"errors"},
    "progress": set(),
    "onnx_runtime": set(),
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
    "serve": ENGINE,
    "corpus": ENGINE,
    "eval": ENGINE | {"corpus"},  # a benchmark may make its items
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


def name_of(path: Path) -> str:
    """Dotted name of a module or package."""
    parts = ("echat", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


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
        allowed |= {"load"}  # echat.load, the public entry point
    names = [name.split(".") for name in imported(ast.walk(tree), path)]
    wrong = [
        ".".join(name) for name in names if name[0] == "echat" and len(name) > 1 and name[1] not in allowed
    ]
    assert not wrong, f"{path.relative_to(PACKAGE)} may import {sorted(allowed)} of echat, found {wrong}"


def circles() -> Iterator[str]:
    """Circles of imports anywhere in a module: at its top, inside functions, for type checking alone."""
    graph: dict[str, set[str]] = {}
    for name, path in NAMES.items():
        found = imported(ast.walk(ast.parse(path.read_text(encoding="utf-8"))), path)
        modules = {one if one in NAMES else one.rpartition(".")[0] for one in found}
        graph[name] = (modules & NAMES.keys()) - {name}
    while True:
        try:
            TopologicalSorter(graph).prepare()
            return
        except CycleError as error:
            circle = error.args[1]
            yield " <- ".join(circle)
            graph[circle[1]].discard(circle[0])  # and look for the next one


def test_there_are_no_circles():
    found = list(circles())
    assert not found, "move what both need into a module of its own:\n" + "\n".join(found)


def test_folders_and_files_are_small():
    folders = {path.parent for top in ("src", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")}
    crowded = {
        str(folder.relative_to(ROOT)): count
        for folder in folders
        if (count := len(list(folder.glob("*.py")))) > MOST_FILES
    }
    long = {
        str(path.relative_to(ROOT)): lines
        for path in MODULES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not crowded, f"at most {MOST_FILES} Python files in a folder: {crowded}"
    assert not long, f"at most {MOST_LINES} lines in a file: {long}"


def test_functions_are_short():
    long = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]
    assert not long, f"at most {MOST_LINES_OF_A_FUNCTION} lines in a function: {long}"


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
