"""Recordings of people: the permissively licensed sets of a data pack as one manifest of our form.

A pack is a folder with one folder per set (`manifest.jsonl`, `audio/`). Only sets whose licence allows
commercial use and sharing of weights enter; transcripts are kept for English alone, in lower case
without punctuation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from echat.checkpoint import atomic_path

# Sets of the pack that a shared model may learn from; of `esc` only the ESC-10 part.
PERMISSIVE_SETS = (
    "emodb",
    "emogator",
    "dcase2013_office",
    "esc",
    "donateacry",
    "speechocean762",
    "an4",
    "kathleen",
    "fsdd",
    "common_voice_multi",
)
_LABELS = ("emotion", "gender", "age", "sound_event")
_KEPT = ("key", "lang", "speaker", "duration_s", "split")


def write_recordings_manifest(pack: Path, path: Path, sets: tuple[str, ...] = PERMISSIVE_SETS) -> int:
    """Write the rows of the permissive sets, all splits, with absolute audio paths; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in recording_rows(pack, sets):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def recording_rows(pack: Path, sets: tuple[str, ...] = PERMISSIVE_SETS) -> Iterator[dict[str, Any]]:
    """Rows of the named sets in our form, in the order of the pack."""
    for name in sets:
        manifest = pack / name / "manifest.jsonl"
        if not manifest.is_file():
            raise ValueError(f"{manifest}: expected the manifest of set {name}, found none; check data_pack")
        for line in manifest.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if name == "esc" and row.get("origin") != "ESC-10":
                continue
            yield _row(row, name, manifest.parent)


def prompt_texts(pack: Path) -> list[str]:
    """The sentences of the `kathleen` set, to be read aloud; none when the pack lacks the set."""
    manifest = pack / "kathleen" / "manifest.jsonl"
    if not manifest.is_file():
        return []
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    texts = [normalize_transcript(row["text"]) for row in rows if row["split"] == "train" and row["text"]]
    return [text for text in dict.fromkeys(texts) if text]


def normalize_transcript(text: str | None) -> str | None:
    """Lower case, letters and apostrophes only; None for digits, foreign letters, or nothing."""
    plain = (text or "").lower().replace("\u2019", "'")
    if any(character.isdigit() or (character.isalpha() and not character.isascii()) for character in plain):
        return None
    words = [word.strip("'") for word in re.sub(r"[^a-z']+", " ", plain).split()]
    return " ".join(word for word in words if word) or None


def _row(row: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    is_english = row["lang"] == "en"
    made: dict[str, Any] = {key: row.get(key) for key in _KEPT}
    made["audio"] = str((folder / row["audio"]).resolve())
    made["text"] = normalize_transcript(row["text"]) if is_english else None
    made |= {label: row[label] for label in _LABELS}
    if name == "donateacry":  # babies: neither words nor a gender to hear
        made["gender"] = None
    made["source"] = name
    return made
