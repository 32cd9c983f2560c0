"""Files that a conversion leaves: whole or not at all, with checksums beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from echat.checkpoint import atomic_path
from echat.data.defects import Defect, DefectReport, Kind
from echat.data.sample import Sample

FINISHED, SHA256 = ".finished", ".sha256"


def once(samples: Iterable[Sample], path: Path, defects: DefectReport) -> Iterator[Sample]:
    """The first sample of each key."""
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            reason = "expected a key of its own within one file, found it twice; the first one is kept"
            defects.add(Defect(Kind.DUPLICATE_KEY, str(path), key=sample.key, reason=reason))
        else:
            seen.add(sample.key)
            yield sample


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


def remove_temporaries(out: Path) -> None:
    """Siblings that writing whole files leaves in a result when it is killed: ``.xxxxxxxx.name``."""
    for folder in (out, out / "parts", out / "tars"):
        for path in folder.glob(".????????.*") if folder.is_dir() else ():
            path.unlink(missing_ok=True)
