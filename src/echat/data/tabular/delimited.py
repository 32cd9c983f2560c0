"""CSV and TSV reader: dialects as programs write them, with or without quoting, with or without a header.

Comma and semicolon separate values that may be quoted; between tabs and bars (Common Voice, LJSpeech) a
quotation mark is a character like any other. A row that cannot be read costs nothing but itself.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from echat.data.defects import DataError, Defect, DefectKind
from echat.data.formats.text_files import TextForm, form_of, raw_lines, text_of

_DELIMITERS = "\t|;,"  # punctuation of text last
_COMPARED = 20  # lines by which the delimiter is detected
_QUOTING = ",;"
_LONGEST_VALUE = 200  # lines that one quoted value may span
_SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)  # how Excel says it
_DOUBLED = re.compile(r'"((?:[^"]|"")*)"')


@dataclass(frozen=True, slots=True)
class TableRow:
    """Columns by name without empty ones, and where the row stands."""

    columns: dict[str, Any]
    place: str
    file: str = ""
    key: str = ""  # for a row that names none
    names: Sequence[str] = ()  # of all columns; (): those of ``columns``


Names = Callable[[Sequence[str]], Sequence[str] | None]


def delimited_rows(path: str, encoding: str | None, unnamed: Names) -> Iterator[TableRow | Defect]:
    """Every row of a table. Raises DataError where the first line cannot be read.

    ``unnamed`` gives the names of the columns for the cells of a first line that is a record already, None
    for one that holds the names itself.
    """
    lines = _Lines(path, form_of(path, encoding), encoding is None)
    first = lines.first()
    if first is None:
        raise DataError(
            Defect(DefectKind.MISSING_FIELD, path, reason="expected a table, found an empty file")
        )
    separator = _SEPARATOR_LINE.fullmatch(first)
    delimiter = separator[1] if separator else _delimiter(path, lines.ahead(_COMPARED))
    if separator:
        lines.take()
        first = lines.first() or ""
    try:
        cells, _ = _split([first], delimiter)
    except csv.Error as error:
        raise DataError(
            Defect(DefectKind.BAD_TEXT, path, "line 1", reason=f"expected names of columns, {error}")
        ) from error
    names = unnamed(cells)
    if names is None:
        names = [cell.strip() for cell in cells]
        lines.take()
    for number, found in lines.rows(delimiter, len(names)):
        if isinstance(found, Defect):
            yield found
        else:
            columns = {name: value for name, value in zip(names, found) if value != ""}
            yield TableRow(columns, f"line {number}", path, f"line-{number:08d}", names)


def _delimiter(path: str, lines: Sequence[str]) -> str:
    """What separates values: a mark that all lines have as often, of several the first of the table."""
    if path.lower().endswith(".tsv"):
        return "\t"
    there = [mark for mark in _DELIMITERS if mark in lines[0]]
    even = [mark for mark in there if len({line.count(mark) for line in lines}) == 1]
    return (even or sorted(there, key=lines[0].count, reverse=True) or [","])[0]


def _split(lines: Sequence[str], delimiter: str) -> tuple[list[str], int]:
    """(cells of the first row, lines it takes). Raises csv.Error."""
    if delimiter not in _QUOTING:
        return [_unquoted(cell) for cell in lines[0].split(delimiter)], 1
    csv.field_size_limit(1 << 30)
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    return next(reader), reader.line_num


def _unquoted(cell: str) -> str:
    """Marks in marks come from a program that quotes between tabs, too; others are what was said."""
    found = _DOUBLED.fullmatch(cell) if '""' in cell[1:-1] else None
    return found[1].replace('""', '"') if found else cell


class _Lines:
    """The lines of a table, as many looked at in advance as one value may span."""

    def __init__(self, path: str, form: TextForm, may_say: bool) -> None:
        self._path, self._form, self._may_say = path, form, may_say
        self._coming = enumerate((raw for _, raw in raw_lines(path, form)), 1)
        self._seen: deque[tuple[int, bytes]] = deque()

    def first(self) -> str | None:
        """The next line that holds something, not yet taken; None at the end. Raises DataError."""
        while self._see(1):
            number, raw = self._seen[0]
            text = self._text(number, raw)
            if text.strip():
                return text
            self._seen.popleft()
        return None

    def ahead(self, count: int) -> list[str]:
        """The next lines that hold something and are text."""
        self._see(count)
        texts = (text for text in self._following() if text.strip())
        return list(islice(texts, count))

    def take(self) -> None:
        self._seen.popleft()

    def rows(self, delimiter: str, width: int) -> Iterator[tuple[int, list[str] | Defect]]:
        """(line number, cells or what is wrong) of every row to the end."""
        while self._see(1):
            number, raw = self._seen.popleft()
            try:
                text = self._text(number, raw)
                if text.strip():
                    yield number, self._row(text, delimiter, width)
            except DataError as error:
                yield number, error.defect
            except csv.Error as error:
                reason = f"expected a row of a table, {error}; a quotation mark in a value is written twice"
                yield number, Defect(DefectKind.BAD_TEXT, self._path, f"line {number}", reason=reason)
            except _Width as error:
                reason = f"expected {width} columns as in the first line, found {error}"
                yield number, Defect(DefectKind.BAD_FIELD, self._path, f"line {number}", reason=reason)

    def _row(self, text: str, delimiter: str, width: int) -> list[str]:
        """The cells of the row that begins with a line; of the lines behind it those inside of a value."""
        try:
            cells, used = _split([text], delimiter)
        except csv.Error:
            self._see(_LONGEST_VALUE)
            cells, used = _split([text, *self._following()], delimiter)
            if len(cells) != width:  # a mark that was never closed met the next one
                raise
        while len(cells) > width and cells[-1] == "":
            cells.pop()
        if len(cells) != width:
            raise _Width("more" if len(cells) > width else "fewer")
        for _ in range(used - 1):
            self._seen.popleft()
        return cells

    def _following(self) -> Iterator[str]:
        with suppress(DataError):
            for number, raw in islice(self._seen, _LONGEST_VALUE):
                yield self._text(number, raw)

    def _see(self, count: int) -> bool:
        self._seen.extend(islice(self._coming, max(0, count - len(self._seen))))
        return bool(self._seen)

    def _text(self, number: int, raw: bytes) -> str:
        try:
            return text_of(raw, self._form, self._path, f"line {number}")
        except DataError as error:
            if not self._may_say:
                raise
            cause = error.defect
            reason = f"{cause.reason}, or name its encoding: --encoding latin-1 (cp1252, gbk, ...)"
            raise DataError(Defect(cause.kind, cause.file, cause.place, reason=reason)) from error


class _Width(Exception):
    """A row of another number of cells."""
