"""The WORLD vocoder's analysis and synthesis, from the compiled part of pyworld.

The package file of pyworld asks `pkg_resources` for its own version, and setuptools no longer has that
module. Everything used here lies in the extension beside it, which is loaded by itself.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

from echat.extras import missing


@cache
def world() -> ModuleType:
    """`pyworld.pyworld`: dio, stonemask, cheaptrick, d4c, synthesize."""
    package = importlib.util.find_spec("pyworld")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(missing("pyworld", "pitch of speech"), name="pyworld")
    name = "pyworld.pyworld"
    names = [
        Path(folder) / f"pyworld{suffix}"
        for folder in package.submodule_search_locations
        for suffix in EXTENSION_SUFFIXES
    ]
    found = next((path for path in names if path.is_file()), None)
    spec = None if found is None else importlib.util.spec_from_file_location(name, found)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(missing("pyworld", "pitch of speech"), name="pyworld")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
