"""docs/architecture.md: its tree is the tree of the source, and the files it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import echat

PACKAGE = Path(echat.__file__).parent
TEXT = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
TREE = TEXT.split("## The tree")[1].split("```")[1]
COLUMN = re.compile(r"^  (\S+)\s+(\S.*?)(?:\s{2,}(\S+)\s{2,}(\S.*))?$")


def listed() -> dict[str, str]:
    """Module, as `folder/name`, -> phrase."""
    phrases: dict[str, str] = {}
    folder = ""
    for line in TREE.strip().splitlines():
        if not line.startswith(" "):
            folder = line.split()[0].removeprefix("echat/")
            continue
        match = COLUMN.match(line)
        assert match, line
        for name, phrase in (match.group(1, 2), match.group(3, 4)):
            if name:
                phrases[folder + name] = phrase
    return phrases


def test_every_module_has_a_line_and_every_line_a_module():
    modules = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    found = listed()
    assert modules == found.keys(), (
        f"add to the tree of docs/architecture.md: {sorted(modules - found.keys())}; "
        f"remove: {sorted(found.keys() - modules)}"
    )
    assert all(len(phrase) > 5 for phrase in found.values())


def test_the_files_and_functions_it_names_exist():
    prose = TEXT.split("## The tree")[0]
    folders = "|".join(sorted({path.name for path in PACKAGE.iterdir() if path.is_dir()}))
    named = re.findall(rf"`((?:{folders})/[\w/]+)(\.py|\.yaml|/)?((?:\.\w+)*)`", prose)
    assert len(named) > 40
    for path, suffix, names in named:
        file = PACKAGE / (path + (suffix.rstrip("/") if suffix != "" else ".py"))
        if suffix == "" and not file.is_file():
            file = PACKAGE / path
        assert file.exists(), path
        source = file.read_text(encoding="utf-8") if file.is_file() else ""
        for name in names.split(".")[1:]:
            assert re.search(rf"\b(?:def|class) {name}\b|^{name}\b.*=", source, re.M), f"{path}: {name}"


def test_it_is_short():
    assert len(TEXT.splitlines()) < 300
