"""Tar reader: offset and size of each member, header by header, and what is wrong with the archive.

A damaged archive gives what is whole. Names may be as long as the ustar, GNU and pax conventions allow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from echat.data.defects import DefectKind

BLOCK = 512
_LONGEST_HEADER = 1 << 20  # bytes of a pax or long-name header that is believed
_REGULAR = b"0\x007"
_NAMELESS = {
    b"5": "a folder",
    b"1": "a link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
}
_PAX_FIELD = re.compile(rb"(\d{1,9}) ([^=]+)=")
_OCTAL = re.compile(rb"[0-7]+")
_DIGITS = 20  # of a size that is believed


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file: name, and the stretch of the tar that is its content."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ArchiveProblem:
    """A problem of the archive between or in its members, in stored order."""

    kind: DefectKind
    name: str  # the member, or "" between members
    offset: int
    reason: str


def members(stream: BinaryIO, length: int) -> Iterator[Member | ArchiveProblem]:
    """Everything in a tar of ``length`` bytes, in stored order.

    No number in a header is trusted beyond the end of the file, and after a damaged header reading resumes at
    the next valid one: whatever a member says, its whole neighbours are returned.
    """
    position, name, size = 0, None, None  # name, size: what a header announced for the member that follows
    resume = 0  # where the content of the latest member begins whose size no checksum covers
    while True:
        header = _read(stream, position, BLOCK)
        kind = header[156:157]
        if len(header) < BLOCK:
            yield _no_end(position, len(header))
            return
        if not is_header(header):
            following = (
                length
                if not position and _packed(header)
                else _next_header(stream, resume or position + BLOCK)
            )
            if any(header) or following < length:  # zeros are the end, unless members come behind them
                yield _damage(position, header) if position or following < length else _foreign(header)
            if following >= length:
                return
            position, name, size, resume = following, None, None, 0
            continue
        here = size if size is not None and kind in _REGULAR else _number(header[124:136])
        start, position = position + BLOCK, position + BLOCK + -(-here // BLOCK) * BLOCK
        called = name if name is not None else _name(header)
        if start + here > length:
            reason = f"expected {here} bytes from {start}, found {max(0, length - start)}; copy the tar again"
            yield ArchiveProblem(
                DefectKind.TRUNCATED_ARCHIVE, called if kind in _REGULAR else "", start, reason
            )
            position, name, size = _next_header(stream, start), None, None
            if position >= length:
                return
        elif kind in (b"L", b"x") and here <= _LONGEST_HEADER:
            name, size = _announced(kind, _read(stream, start, here), name, size)
        elif kind not in (b"g", b"K"):
            resume = start if size is not None else 0
            name = size = None
            if kind in _REGULAR:
                yield Member(called, start, here)
            else:
                what = _NAMELESS.get(kind, f"a member of type {kind!r}")
                yield ArchiveProblem(
                    DefectKind.FOREIGN_MEMBER, called, start, f"expected a file, found {what}"
                )


def is_header(block: bytes) -> bool:
    """Does the checksum of a header block fit?"""
    try:
        stored = int(block[148:156].split(b"\0")[0].strip() or b"-1", 8)
    except ValueError:
        return False
    return stored == sum(block) - sum(block[148:156]) + 8 * 32


def _read(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def _no_end(position: int, found: int) -> ArchiveProblem:
    reason = f"expected the end of the archive at byte {position}, found {found} bytes; copy the tar again"
    return ArchiveProblem(
        DefectKind.TRUNCATED_ARCHIVE if position else DefectKind.NOT_AN_ARCHIVE, "", position, reason
    )


def _damage(position: int, header: bytes) -> ArchiveProblem:
    found = "bytes whose checksum does not fit" if any(header) else "zeros"
    reason = f"expected a member header at byte {position}, found {found}; reading goes on at the next header"
    return ArchiveProblem(DefectKind.DAMAGED_ARCHIVE, "", position, reason)


def _foreign(header: bytes) -> ArchiveProblem:
    found = "a compressed file; unpack it, shards are read at random" if _packed(header) else "something else"
    return ArchiveProblem(DefectKind.NOT_AN_ARCHIVE, "", 0, f"expected a tar, found {found}")


def _packed(header: bytes) -> bool:
    return (
        header[:4] in (b"\x28\xb5\x2f\xfd", b"\xfd7zX") or header[:2] == b"\x1f\x8b" or header[:3] == b"BZh"
    )


def _next_header(stream: BinaryIO, position: int) -> int:
    """Offset of the next block with a valid checksum; the end of the stream when there is none."""
    step = 2048 * BLOCK
    while True:
        piece = _read(stream, position, step)
        for start in range(0, len(piece) - BLOCK + 1, BLOCK):
            block = piece[start : start + BLOCK]
            if block[257:262] == b"ustar" and is_header(block):
                return position + start
        position += len(piece)
        if len(piece) < step:
            return position


def _announced(kind: bytes, data: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """What a long-name or pax header says about the member that follows."""
    if kind == b"L":
        return _text(data), size
    for field, value in _pax_fields(data):
        if field == b"path":
            name = _text(value)
        elif field == b"size" and value.isdigit():
            size = int(value[:_DIGITS])  # more digits are beyond any tar, whatever they say
    return name, size


def _pax_fields(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while found := _PAX_FIELD.match(data, position):
        end = position + int(found[1])
        yield found[2], data[found.end() : end - 1]
        if end <= found.end():
            return
        position = end


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """Octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    digits = _OCTAL.fullmatch(field.split(b"\0")[0].strip())
    return int(digits[0], 8) if digits else 0
