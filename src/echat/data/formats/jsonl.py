"""Random access to the lines of a JSON-lines file: one pass, then one read per line."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind, duplicate_key, file_defect
from echat.data.formats import index_files
from echat.data.formats.text_files import TextForm, form_of, raw_lines, text_of

_KEPT_TABLES = 64  # per process
_ITEM = re.compile(r"[,\[]\s*\{")
_LOOKED_AT = 200  # first lines of a file, by which its kind is detected
_WORTH_KEEPING = 4 << 20  # bytes of a list; a smaller one is gone through in the time it takes to look
_KEY_FIRST = re.compile(rb'\s*\{\s*"key"\s*:\s*"([^"\\]*)"')


class JsonLines:
    """The lines of one file that hold something, in order; no more than a path until they are used.

    The objects of a file that is one JSON array count as its lines.

    A line whose ``key`` an earlier line has too is a duplicate; the first one counts.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        """The object on a line, and its position (``line 7``). Raises DataError for a bad or repeated one."""
        number, first, text = self._line(index)
        place = f"line {number}"
        row = json_object(text, self.path, place)
        if first:
            raise DataError(duplicate_key(self.path, place, str(row.get("key")), f"line {first}"))
        return row, place

    def text(self, index: int) -> str:
        """A line as it stands there, without its end. Raises DataError for one that is no text."""
        return self._line(index)[2]

    def _line(self, index: int) -> tuple[int, int, str]:
        """(line number, number of the first line with this key or 0, text)"""
        _, form, table = self._content
        offset, size, number, first = table[index].tolist()
        raw = storage.read_range(self.path, offset, size)
        return number, first, text_of(raw, form, self.path, f"line {number}")

    def keyed(self) -> Iterator[tuple[int, str]]:
        """(number, key) of every line that has a key and does not repeat one."""
        content = self._content
        with storage.open_binary(self.path) as stream:
            for index, (offset, size, _, first) in enumerate(content.table.tolist()):
                stream.seek(offset)
                key = None if first else key_of(stream.read(size), content.form)
                if key is not None:
                    yield index, key

    @property
    def table(self) -> np.ndarray:
        """(lines, 4): offset, size, line number, line number of the first with this key or 0."""
        return self._content.table

    @property
    def _content(self) -> _Content:
        known = _contents.get(self.path)
        if known is not None and storage.is_url(self.path):
            return known
        now = _stamp(self.path)
        if known is None or now != known.stamp:
            known = _contents[self.path] = _load(self.path, now)
            if len(_contents) > _KEPT_TABLES:
                _contents.popitem(last=False)
        return known


class _Content(NamedTuple):
    """What one state of a file holds."""

    stamp: storage.Stamp
    form: TextForm
    table: np.ndarray


_contents: OrderedDict[str, _Content] = OrderedDict()


def first_rows(path: str, count: int = 20) -> list[dict[str, Any]]:
    """The good objects among the first rows of a file. Raises OSError, DataError for a file of no text."""
    form = form_of(path)
    found = _items(path, form) if _is_array(path, form) else enumerate(raw_lines(path, form), 1)
    return _good_rows((line for _, (_, line) in islice(found, _LOOKED_AT)), form, count)


def _good_rows(lines: Iterable[bytes], form: TextForm, count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in lines:
        with suppress(DataError):
            if _is_row(line, form):
                rows.append(json_object(text_of(line, form, ""), "", ""))
        if len(rows) >= count:
            break
    return rows


def key_of(line: bytes, form: TextForm) -> str | None:
    """The key of a row; None for a line without one."""
    found = _KEY_FIRST.match(line)
    if found:
        return found[1].decode("utf-8", "surrogateescape")
    try:
        key = json_object(text_of(line, form, ""), "", "").get("key")
    except DataError:
        return None
    return key if isinstance(key, str) else None


def _is_row(line: bytes, form: TextForm) -> bool:
    return bool(line.strip(b" \t\r\n" if form.width == 1 else b" \t\r\n\0"))


def _stamp(path: str) -> storage.Stamp:
    try:
        return storage.stamp(path)
    except OSError as error:
        raise DataError(_missing(path, error)) from error


def _load(path: str, stamp: storage.Stamp) -> _Content:
    try:
        form = form_of(path)
        known = index_files.load(path, (stamp,), "lines", lambda _, body: _table(body))
        if known is not None:
            return _Content(stamp, form, known)
        table = _scan(path, form)
    except OSError as error:
        raise DataError(_missing(path, error)) from error
    if stamp.size >= _WORTH_KEEPING:
        index_files.save(path, (stamp,), "lines", {}, table.astype("<i8").tobytes())
    return _Content(stamp, form, table)


def _table(body: bytes) -> np.ndarray:
    return np.frombuffer(body, dtype="<i8").reshape(-1, 4)


def _missing(path: str, error: OSError) -> Defect:
    return file_defect(error, path, "a JSON-lines file", "check the path in the recipe")


def _scan(path: str, form: TextForm) -> np.ndarray:
    """The table of a file: a row for each line, or for each object of a JSON array."""
    found = _items(path, form) if _is_array(path, form) else enumerate(raw_lines(path, form), 1)
    rows: list[tuple[int, int, int, int]] = []
    seen: dict[int, int] = {}  # hash of the key -> line number; keys themselves would take too much
    for number, (offset, line) in found:
        if _is_row(line, form):
            key = key_of(line, form)
            first = 0 if key is None else seen.setdefault(hash(key), number)
            rows.append((offset, len(line), number, first if first != number else 0))
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def _is_array(path: str, form: TextForm) -> bool:
    """Does a bracket open the file, and no line hold a row?"""
    lines = (line for _, line in raw_lines(path, form) if _is_row(line, form))
    begins = next(lines, b"").lstrip(b" \t\0").startswith(b"[")
    return begins and not _good_rows((line for _, line in islice(raw_lines(path, form), _LOOKED_AT)), form, 1)


def _items(path: str, form: TextForm) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """(line number, (offset, bytes)) of each object of a JSON array; what is no object is a row to refuse."""
    data = storage.read_bytes(path)[form.start :]
    errors = "surrogateescape" if form.width == 1 else "surrogatepass"  # each item is decoded by itself later
    text = data[: len(data) - len(data) % form.width].decode(form.encoding, errors)
    decoder, offset, line, done = json.JSONDecoder(parse_int=str), form.start, 1, 0
    begin = _next_item(text, 0)[1]
    while begin < len(text):
        try:
            end = decoder.raw_decode(text, begin)[1]
        except (ValueError, RecursionError):
            end = _next_item(text, begin + 1)[0]
        offset += len(text[done:begin].encode(form.encoding, errors))
        line += text.count("\n", done, begin)
        item = text[begin:end].encode(form.encoding, errors)
        yield line, (offset, item)
        offset, line, done = offset + len(item), line + text.count("\n", begin, end), end
        begin = _next_item(text, end)[1]


def _next_item(text: str, position: int) -> tuple[int, int]:
    """Where the next object, and the bracket or comma before it, begin: (end, end) where there is none."""
    found = _ITEM.search(text, position)
    return (found.start(), found.end() - 1) if found else (len(text), len(text))


def present(**fields: Any) -> dict[str, Any]:
    """The fields of a row that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


# --- One JSON object from text of any origin: it can be written again, or it is refused here.

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a character


def json_object(text: str, file: str, place: str) -> dict[str, Any]:
    """The object on one line. Raises DataError that names file and position, whatever the text is.

    Half characters (lone surrogates) are refused here: no file can hold them, and where one is met later
    there is no line to name.
    """
    try:
        row = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = ascii(error.object[error.start])
        reason = f"expected characters, found half of one ({found}); write it as UTF-8"
        raise DataError(Defect(DefectKind.BAD_TEXT, file, place, reason=reason)) from error
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python converts
        reason = f"expected a JSON object, {error or 'found nesting without end'}"
        raise DataError(Defect(DefectKind.BAD_JSON, file, place, reason=reason)) from error
    if not isinstance(row, dict):
        reason = f"expected a JSON object, found {type(row).__name__}"
        raise DataError(Defect(DefectKind.BAD_JSON, file, place, reason=reason))
    return row
