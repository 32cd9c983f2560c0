"""Text files: encodings, byte-order marks and line ends of any program; lists written with checksums.

Everything that reads lines of a file (lists, manifests, tables, words beside a sound) reads them here. A line
is split off as bytes and decoded by itself, so bytes that are no text cost the line that they are in.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from echat.audio.containers import PLAIN_MAGIC
from echat.checkpoint import atomic_path
from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind

_HEAD = 4096  # bytes by which the form of a file is detected
_PIECE = 1 << 20
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_IMPORTED = "echat data import reads it"
_SOUND_REMEDY = "name the table that says what is in it, or its folder to echat data import"
_BINARY = (
    (b"PAR1", "a Parquet file", _IMPORTED),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save it as CSV in UTF-8"),
    (b"\x1f\x8b", "a gzip file", "unpack it"),
    (b"BZh", "a bzip2 file", "unpack it"),
    (b"\xfd7zXZ", "an xz file", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it"),
    (b"SQLite format 3", "an SQLite database", "save the table as CSV in UTF-8"),
    (b"ARROW1", "an Arrow file", "name the folder that save_to_disk wrote to echat data import"),
    *((magic, "a sound", _SOUND_REMEDY) for magic in PLAIN_MAGIC),
    (b"%PDF", "a PDF file", "save the table as CSV in UTF-8"),
)


@dataclass(frozen=True, slots=True)
class TextForm:
    """How a file stores its text."""

    encoding: str = "utf-8"
    start: int = 0  # bytes of the byte-order mark
    newline: bytes = b"\n"  # in the encoding; a carriage return before it belongs to the line end

    @property
    def width(self) -> int:
        """Bytes of the smallest unit."""
        return len(self.newline)


def form_of(path: str, encoding: str | None = None) -> TextForm:
    """The form of a file: by its byte-order mark or ``encoding``, UTF-8 where neither says it.

    Raises OSError, and DataError for a file that is no text.
    """
    with storage.open_binary(path) as stream:
        head = stream.read(_HEAD)
    found = _binary(head)
    if found is not None:
        raise DataError(Defect(DefectKind.BAD_TEXT, path, reason=f"expected text, found {found}"))
    marked = next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), None)
    name, start = (
        (marked[1], len(marked[0])) if marked else (known_encoding(encoding) or _detect_encoding(head), 0)
    )
    unit = len("\n".encode(name))
    if unit == 1 and b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        return TextForm(name, start, b"\r")
    return TextForm(name, start, "\n".encode(name))


def _binary(head: bytes) -> str | None:
    """What a file is that begins with these bytes and is no text, with the remedy; None for all others."""
    if head[257:262] == b"ustar":
        return "a tar archive; its name has to end in .tar"
    return next((f"{kind}; {remedy}" for magic, kind, remedy in _BINARY if head.startswith(magic)), None)


def known_encoding(name: str | None) -> str | None:
    """The encoding of that name. Raises DataError where there is none."""
    if name is None:
        return None
    try:
        found = codecs.lookup(name)
        bytes(4).decode(found.name)  # refuses codecs that make no text
    except (LookupError, ValueError) as error:
        raise DataError(
            f"encoding: expected a name such as utf-8, latin-1, cp1252, gbk or utf-16, found {name!r}"
        ) from error
    return {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "utf-8-sig": "utf-8"}.get(found.name, found.name)


def raw_lines(path: str, form: TextForm) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes with their line end) of every line. Raises OSError."""
    with storage.open_binary(path) as stream:
        stream.seek(form.start)
        offset = form.start
        for line in stream if form.newline == b"\n" else _split(stream, form):
            yield offset, line
            offset += len(line)


def text_of(raw: bytes, form: TextForm, file: str, place: str = "") -> str:
    """A line without its end. Raises DataError that names the byte that is no text."""
    try:
        return raw.decode(form.encoding).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(Defect(DefectKind.BAD_TEXT, file, place, reason=_not_text(form, error))) from error


def text_lines(path: str, encoding: str | None = None) -> Iterator[str]:
    """Every line of a small list; bytes that are no text stay as file names keep them. Raises OSError."""
    form = form_of(path, encoding)
    errors = "surrogateescape" if form.width == 1 else "replace"
    return (raw.decode(form.encoding, errors).rstrip("\r\n") for _, raw in raw_lines(path, form))


def whole_text(path: str, encoding: str | None = None) -> str:
    """All of a file, line ends as LF. Raises OSError and DataError."""
    form = form_of(path, encoding)
    lines = enumerate(raw_lines(path, form), 1)
    return "\n".join(text_of(raw, form, path, f"line {number}") for number, (_, raw) in lines)


def _detect_encoding(head: bytes) -> str:
    """UTF-16 without a byte-order mark has zeros in every second byte; anything else counts as UTF-8."""
    even, odd = head[0::2], head[1::2]
    if len(head) >= 4 and 2 * odd.count(0) > len(odd) and 4 * even.count(0) < len(even):
        return "utf-16-le"
    if len(head) >= 4 and 2 * even.count(0) > len(even) and 4 * odd.count(0) < len(odd):
        return "utf-16-be"
    return "utf-8"


def _split(stream: BinaryIO, form: TextForm) -> Iterator[bytes]:
    """Lines that end with ``newline`` at a whole unit."""
    rest = b""
    while piece := stream.read(_PIECE):
        rest += piece
        start = search = 0
        while (found := rest.find(form.newline, search)) >= 0:
            search = found + 1
            if (found - start) % form.width == 0:
                yield rest[start : found + form.width]
                start = search = found + form.width
        rest = rest[start:]
    if rest:
        yield rest


def _not_text(form: TextForm, error: UnicodeDecodeError) -> str:
    found = error.object[error.start : error.start + 1].hex()
    return (
        f"expected {form.encoding.upper()}, found byte 0x{found} at position {error.start} ({error.reason}); "
        "save the file as UTF-8"
    )


# --- Text files written: whole or not at all, with checksums beside them.

FINISHED, SHA256 = ".finished", ".sha256"


def row_bytes(row: dict[str, Any]) -> bytes:
    """A row as a JSON line. Raises ValueError, TypeError or RecursionError for what JSON cannot hold."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def write_rows(path: Path, rows: Iterable[bytes], more: Iterable[tuple[str, str]] = ()) -> None:
    """JSON lines and their checksum, with those of files that belong to them."""
    data = b"".join(rows)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    write_sums(path, [(hashlib.sha256(data).hexdigest(), path.name), *more])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))  # names of files may be any bytes


def write_sums(path: Path, sums: Iterable[tuple[str, str]]) -> None:
    """As ``sha256sum --check`` reads them."""
    write_lines(beside(path, SHA256), (f"{digest}  {name}" for digest, name in sums))


def join(parts: Iterable[Path], whole: Path) -> str:
    """All parts in one file; returns its SHA-256."""
    digest = hashlib.sha256()
    with atomic_path(whole) as temporary, temporary.open("wb") as stream:
        for part in parts:
            data = part.read_bytes()
            stream.write(data)
            digest.update(data)
    return digest.hexdigest()


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
