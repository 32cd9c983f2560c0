"""Recordings of people: the permissively licensed sets of a data pack as one manifest.

A pack is a folder with one folder per set (`manifest.jsonl`, `audio/`). Only sets whose licence allows
commercial use and sharing of weights enter; transcripts are kept for English alone, in spoken form (lower
case without punctuation) or in written form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from echat.corpus.conversations import shipped_lexicon
from echat.corpus.en import LANGUAGE
from echat.corpus.en.spoken_form import normalize_transcript
from echat.corpus.en.written_form import written_form
from echat.corpus.manifests import Row, read_jsonl, write_jsonl
from echat.corpus.synthesis.sound_events import EVENTS, RECORDED_EVENTS
from echat.dialogue.labels import EVALUATED_KINDS

# Sets of the pack that may train a shared model; of `esc` only the ESC-10 part.
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
_KEPT = ("key", "lang", "speaker", "duration_s", "split")


def write_recordings_manifest(
    pack: Path, path: Path, sets: tuple[str, ...] = PERMISSIVE_SETS, written: bool = False
) -> int:
    """Write the rows of the permissive sets, all splits, with absolute audio paths; returns how many."""
    return write_jsonl(path, recording_rows(pack, sets, written))


def recording_rows(
    pack: Path, sets: tuple[str, ...] = PERMISSIVE_SETS, written: bool = False
) -> Iterator[Row]:
    """Manifest rows of the named sets, in the order of the pack; transcripts in written or in spoken form."""
    for name in sets:
        manifest = pack / name / "manifest.jsonl"
        if not manifest.is_file():
            raise ValueError(f"{manifest}: expected the manifest of set {name}, found none; check data_pack")
        for row in _permissive_rows(manifest):
            yield _row(row, name, manifest.parent, written)


def real_clips(pack: Path, split: str) -> dict[str, list[Path]]:
    """Permissively licensed recordings of sound events by event, of one split of a data pack."""
    found: dict[str, list[Path]] = {}
    for name in ("dcase2013_office", "esc"):
        for row in _permissive_rows(pack / name / "manifest.jsonl"):
            if row["split"] == split and row["sound_event"] in (*EVENTS, *RECORDED_EVENTS):
                found.setdefault(row["sound_event"], []).append(pack / name / row["audio"])
    return {event: sorted(paths) for event, paths in found.items()}


def prompt_texts(pack: Path) -> list[str]:
    """The sentences of the `kathleen` set, to be read aloud; none when the pack lacks the set."""
    rows = read_jsonl(pack / "kathleen" / "manifest.jsonl")
    texts = [normalize_transcript(row["text"]) for row in rows if row["split"] == "train" and row["text"]]
    return [text for text in dict.fromkeys(texts) if text]


def _permissive_rows(manifest: Path) -> Iterator[Row]:
    """Rows of a set as the pack has them; only a part of `esc` may be shared."""
    for row in read_jsonl(manifest):
        if manifest.parent.name != "esc" or row.get("origin") == "ESC-10":
            yield row


def _row(row: Row, name: str, folder: Path, written: bool) -> Row:
    made: Row = {key: row.get(key) for key in _KEPT}
    made["audio"] = str((folder / row["audio"]).resolve())
    made["text"] = _transcript(row["text"], written) if row["lang"] == LANGUAGE else None
    made |= {label: row.get(label) for label in EVALUATED_KINDS}
    if name == "donateacry":  # babies: neither words nor an audible gender
        made["gender"] = None
    made["source"] = name
    return made


def _transcript(text: str | None, written: bool) -> str | None:
    """Spoken or written form; None for what neither has. A text in mixed case keeps its case and inner marks.

    Its full stop goes through the rule for questions: prompts that were read aloud often lack the mark.
    """
    spoken = normalize_transcript(text)
    if spoken is None or text is None or not written:
        return spoken
    has_case = not text.islower() and not text.isupper()
    source = re.sub(r'["\u201c\u201d()]', "", text).strip().rstrip(".") if has_case else spoken
    return written_form(source, shipped_lexicon())
