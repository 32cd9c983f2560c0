"""Data preparation of fine-tuning: a table of spoken questions and answers becomes a tokenized manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from echat.checkpoint import atomic_path
from echat.data.defects import DataError, Defect, DefectReport
from echat.data.formats.manifest import MANIFEST, json_rows
from echat.data.tabular import readers as tables
from echat.data.tabular.importer import ImportConfig, import_corpus
from echat.data.tools.check import CheckConfig, check
from echat.data.tools.speech_tokenization import TokenizeConfig, tokenize

PAIR_COLUMNS = {"audio": "question", "reply_audio": "answer"}  # further names of the two sounds of a pair
DIALOGUES = "dialogues.jsonl"  # the finished manifest
HELD_OUT = 10  # one record in so many is held out, where the table holds out none


@dataclass(frozen=True)
class Preparation:
    """How tables are read and answers become speech ids."""

    speech_tokenizer: Path | None  # None: answers are trained as text alone
    codec_size: int  # ids of that tokenizer
    columns: Mapping[str, str] = field(default_factory=dict)  # our field -> column; the usual ones are known
    skip_bad: bool = False  # go on without the records that cannot be used
    info: Callable[[str], None] = print


def prepare_pairs(source: str, folder: Path, preparation: Preparation) -> Path:
    """The manifest of a table, or of a folder that holds one; some of its records are held out as split dev.

    Raises DataError where records cannot be used, after each is named, unless ``preparation.skip_bad``.
    """
    config = ImportConfig(
        source=source,
        out=str(folder / "imported"),
        columns=_columns(source, preparation.columns),
        codec_size=preparation.codec_size,
    )
    count, defects = import_corpus(config)
    _refuse(source, count, defects, preparation)
    imported = folder / "imported" / MANIFEST
    found = check(
        CheckConfig(source=str(imported), format="manifest", within="/", codec_size=preparation.codec_size)
    )
    _refuse(source, found.totals.records, found.defects, preparation)
    return _hold_out(with_speech_ids(str(imported), folder, preparation))


def with_speech_ids(source: str, folder: Path, preparation: Preparation) -> Path:
    """A manifest with the speech ids of its answers; as it is, where the model has no speech tokenizer."""
    if preparation.speech_tokenizer is None:
        return Path(source)
    from echat.token2wav.speech_tokenizer import load_speech_tokenizer

    out = folder / "tokenized"
    shutil.rmtree(out, ignore_errors=True)  # what it was made of may have changed
    plan = TokenizeConfig(
        source=source,
        out=str(out),
        to="manifest",
        within="/",
        tokenizer=str(preparation.speech_tokenizer.absolute()),
        codec_size=preparation.codec_size,
    )
    report = tokenize(plan, load_speech_tokenizer)
    _refuse(source, report.records, report.defects, preparation)
    return out / MANIFEST


def _columns(source: str, given: Mapping[str, str]) -> dict[str, str]:
    """The columns of the table as our fields: a pair may call its sounds question and answer."""
    rows = tables.rows_of(source, tables.table_folder(source))
    there = next((row.columns for row in rows if not isinstance(row, Defect)), {})
    known = {ours: name for ours, name in PAIR_COLUMNS.items() if name in there and ours not in there}
    return known | dict(given)


def _refuse(source: str, records: int, defects: DefectReport, preparation: Preparation) -> None:
    """Report defects; raise DataError unless ``skip_bad``, and when no record is left."""
    if defects:
        preparation.info(f"cannot be used:\n{defects}")
    if defects and not preparation.skip_bad:
        raise DataError(
            f"{source}: expected records that can all be used, found {defects.total} that cannot, named "
            "above; mend them, or add --skip-bad to go on without them"
        )
    if not records:
        raise DataError(f"{source}: expected dialogues, found none; it needs a table with one row for each")


def _hold_out(manifest: Path) -> Path:
    """The manifest with a split for every record; where none is ``dev``, a tenth of ``train`` becomes it."""
    rows = [{"split": "train"} | row for _, row in json_rows(manifest)]
    if not any(row["split"] == "dev" for row in rows):
        for row in [row for row in rows if row["split"] == "train"][HELD_OUT - 1 :: HELD_OUT]:
            row["split"] = "dev"
    path = manifest.with_name(DIALOGUES)  # in the same folder: audio is named relative to it
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path
