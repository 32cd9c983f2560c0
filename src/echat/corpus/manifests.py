"""Manifests of a corpus in JSON lines: written whole, read while they grow, split by a hash of the text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from echat.checkpoint import atomic_path

Row = dict[str, Any]
DEV_ONE_IN = 25  # one text or conversation in so many is kept for validation


def json_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines, returns how many; the file appears when all are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        return sum(1 for row in rows if out.write(json_line(row)))


def read_jsonl(path: Path) -> list[Row]:
    """All rows of a manifest, none where there is no file."""
    return _rows(path.read_bytes()) if path.exists() else []


def read_growing_jsonl(path: Path, repair: bool = False) -> list[Row]:
    """The complete rows of a manifest whose last line may be incomplete, none where there is no file.

    Another process is appending to the file, or was killed while it did. With `repair` the incomplete line
    is removed from the file, so that rows can be appended.
    """
    content = path.read_bytes() if path.exists() else b""
    complete = content[: content.rfind(b"\n") + 1]
    if repair and len(complete) < len(content):
        with atomic_path(path) as temporary:
            temporary.write_bytes(complete)
    return _rows(complete)


def _rows(content: bytes) -> list[Row]:
    return [json.loads(line) for line in content.decode().splitlines()]


def reply_audio_key(text: str) -> str:
    """File name of the audio of a reply, without suffix: one file per distinct text."""
    return "reply-" + hashlib.sha256(text.encode()).hexdigest()[:12]
