"""The source uses the field's terms: private words that it once had for them do not come back.

Only words without an ordinary use in this package are listed, with what is said instead. They are looked for
in identifiers, comments and docstrings (some in identifiers alone, since prose needs them); the names of
deprecated options and keys stand in strings, where they may.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import echat

PACKAGE = Path(echat.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
TERMS = {  # word or words -> the field's term
    "strand": "sequence state, request",
    "teller": "detokenizer, reply stream",
    "dictated": "forced decoding",
    "desk": "async engine",
    "outbox": "send queue",
    "crew": "worker pool",
    "ticket": "sample index",
    "learner": "trainer",
    "forgetful": "activation checkpointing",
    "hopeless": "diverged",
    "objection": "step error",
    "stands still": "frozen",
    "stand still": "frozen",
    "by heart": "memorized",
    "critic": "discriminator",
    "seam": "boundary",
    "loosening": "text augmentation",
    "ear": "speech encoder",
    "mouth": "speech synthesis",
}
IDENTIFIERS = {
    "goes on": "extends, resumes",
    "written out": "eager",
    "share out": "shard",
    "read ahead": "prefill, lookahead",
    "listen ahead": "prefill",
    "on trial": "speculative",
    "begin guess": "start a speculative response",
    "go behind": "fast-forward",
    "spelled scores": "CTC logits",
    "starting heads": "induction-head initialization",
}


def pattern_of(terms: Iterable[str]) -> re.Pattern[str]:
    words = "|".join(term.replace(" ", r"\s+") for term in terms)
    return re.compile(rf"(?<![a-z])({words})(?:s|es)?(?![a-z])", re.I)


ANYWHERE, IN_NAMES = pattern_of(TERMS), pattern_of(TERMS | IDENTIFIERS)


def words_of(identifier: str) -> str:
    """`GoBehind`, `go_behind` and `GO_BEHIND` as "go behind"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", identifier)
    return spaced.replace("_", " ").lower()


def names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, words) of every identifier."""
    yield 1, words_of(path.stem)
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], words_of(token.string)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment and docstring, and of the strings that describe a field."""
    text = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        value = (
            node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else ""
        )
        if isinstance(value, str):
            yield from enumerate(value.splitlines(), getattr(node, "lineno", 1))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_private_word_stands_for_a_term_of_the_field(path):
    found = sorted(
        (line, f"line {line}: {match[0]!r}, say {(TERMS | IDENTIFIERS)[' '.join(match[1].lower().split())]}")
        for texts, pattern in ((names(path), IN_NAMES), (prose(path), ANYWHERE))
        for line, text in texts
        for match in pattern.finditer(text)
    )
    assert not found, f"{path.relative_to(PACKAGE)}:\n" + "\n".join(message for _, message in found)


def test_words_inside_identifiers_are_seen():
    seen = ("GoBehind", "go_behind", "_GO_BEHIND", "OutboxSize", "strands", "in_ticket_order")
    assert all(IN_NAMES.search(words_of(name)) for name in seen)
    assert not any(
        IN_NAMES.search(words_of(name)) for name in ("year", "hear", "search", "critical", "desktop")
    )
