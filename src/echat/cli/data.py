"""Commands that make data from a corpus: convert, tokenize, import, train-tokenizer."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echat.audio.speech_tokens import CODEC_SIZE
from echat.cli import inspect_data
from echat.cli.errors import DEFECTS_FOUND, exit_on_defects
from echat.cli.options import (
    CodecSize,
    CorpusFolder,
    Engine,
    EngineName,
    Json,
    Root,
    ShardSize,
    Source,
    SourceFormat,
    Strict,
    Within,
    Workers,
    path_strings,
)
from echat.progress import progress

if TYPE_CHECKING:
    from echat.data.defects import DefectReport


class Format(StrEnum):
    """Corpus format."""

    manifest = "manifest"
    raw = "raw"
    shard = "shard"
    combine = "combine"


class AudioStorage(StrEnum):
    """Audio codec of the result."""

    keep = "keep"
    flac = "flac"
    opus = "opus"


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Look at data, convert and import them.")
    inspect_data.add_to(group)
    group.command("convert")(convert)
    group.command("tokenize")(tokenize)
    group.command("import")(import_)
    group.command("train-tokenizer")(train_tokenizer)
    app.add_typer(group, name="data")


def convert(
    source: Source,
    to: Annotated[Format, typer.Option("--to", help="Format of the result.")],
    out: CorpusFolder,
    format: SourceFormat = "auto",
    shard_size: ShardSize = 1000,
    workers: Workers = 1,
    engine: Engine = EngineName.local,
    audio: Annotated[AudioStorage, typer.Option(help="Sound as it is, or encoded anew.")] = AudioStorage.keep,
    copy_audio: Annotated[
        bool, typer.Option("--copy-audio", help="To raw or manifest: copy sound files, too.")
    ] = False,
    task: Annotated[str | None, typer.Option(help="Task of records that name none, such as asr.")] = None,
    codec_size: CodecSize = CODEC_SIZE,
    root: Root = None,
    within: Within = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Write a corpus in another format. A stopped run resumes; bad records are named.

    Ends with 0 for data without defects, 1 for data with some (what is good is written), 2 where it could not
    begin.
    """
    from echat.data.tools.conversion import ConversionConfig
    from echat.data.tools.conversion import convert as run

    config = ConversionConfig(
        source=source,
        out=str(out),
        to=to.value,
        format=format,  # type: ignore[arg-type]
        root=_text(root),
        within=path_strings(within),
        shard_size=shard_size,
        audio=audio.value,
        copy_audio=copy_audio,
        task=task,
        codec_size=codec_size,
    )
    with progress("converting") as step:
        report = run(config, workers, strict, step, engine.value)
    report_outcome(f"{out}: {report.records} records as {to.value}", report.records, report.defects, json)
    exit_on_defects(str(source), report.records, report.defects)


def tokenize(
    source: Source,
    tokenizer: Annotated[
        str, typer.Option(help="A shipped model, a model folder, or a folder of a speech tokenizer.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the result (default: speech_ids.jsonl beside a manifest)."
        ),
    ] = None,
    to: Annotated[Format, typer.Option("--to", help="Format of the result.")] = Format.shard,
    again: Annotated[bool, typer.Option("--again", help="Also for records that have speech ids.")] = False,
    format: SourceFormat = "auto",
    shard_size: ShardSize = 1000,
    workers: Workers = 1,
    engine: Engine = EngineName.local,
    codec_size: CodecSize = CODEC_SIZE,
    root: Root = None,
    within: Within = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Write a corpus with the speech ids of its replies and reading voices. A stopped run resumes.

    Ends with 0 for data without defects, 1 for data with some (what is good is written), 2 where it could not
    begin.
    """
    from echat.data.tools.speech_tokenization import TokenizeConfig, write_speech_ids
    from echat.data.tools.speech_tokenization import tokenize as run
    from echat.token2wav.speech_tokenizer import load_speech_tokenizer

    if out is None:
        written = write_speech_ids(load_speech_tokenizer(_speech_tokenizer(tokenizer)), Path(source))
        report_outcome(
            f"{source}: ids of {written.records} utterances", written.records, written.defects, json
        )
        exit_on_defects(source, written.records, written.defects)
        return
    config = TokenizeConfig(
        source=source,
        out=str(out),
        to=to.value,
        format=format,  # type: ignore[arg-type]
        root=_text(root),
        within=path_strings(within),
        shard_size=shard_size,
        codec_size=codec_size,
        tokenizer=str(_speech_tokenizer(tokenizer)),
        again=again,
    )
    with progress("tokenizing") as step:
        report = run(config, load_speech_tokenizer, workers, strict, step, engine.value)
    report_outcome(f"{out}: {report.records} records as {to.value}", report.records, report.defects, json)
    exit_on_defects(str(source), report.records, report.defects)


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="A table (CSV, TSV, JSON, Parquet), a tar, a folder of one of these, or hf://NAME."
        ),
    ],
    out: CorpusFolder,
    map: Annotated[
        list[str] | None, typer.Option("--map", help="field=column, such as text=sentence. Repeatable.")
    ] = None,
    audio_root: Annotated[Path | None, typer.Option(help="Where relative audio paths begin.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the corpus (default: that of its folder).")] = None,
    split: Annotated[str | None, typer.Option(help="Of records that name none, such as train.")] = None,
    lang: Annotated[str | None, typer.Option(help="Language of records that name none.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text that is not UTF-8, such as gbk.")] = None,
    within: Within = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Make a manifest of a table with audio, a folder of sound, or a Hugging Face data set.

    Ends with 0 when records came in (those left out are named), 1 when none did, 2 where it could not begin.
    """
    from echat.data.tabular.importer import ImportConfig, import_corpus, remedy_of

    config = ImportConfig(
        source=source,
        out=str(out),
        columns=column_map(map),
        audio_root=_text(audio_root),
        name=name,
        split=split,
        lang=lang,
        encoding=encoding,
        within=path_strings(within),
    )
    count, defects = import_corpus(config, strict)
    report_outcome(f"{out / 'manifest.jsonl'}: {count} records", count, defects, json)
    if not count:
        print(f"{source}: expected records, found none to use; {remedy_of(defects)}", file=sys.stderr)
        raise typer.Exit(DEFECTS_FOUND)


def report_outcome(line: str, records: int, defects: DefectReport, json: bool) -> None:
    """What was done on stdout, what is wrong with the data on stderr."""
    from echat.cli import display

    if json:
        display.json_line({"records": records, "defects": defects.as_dict()})
    else:
        print(line + (f", {defects.total} defects" if defects else ""))
        if defects:
            print(defects, file=sys.stderr)


def train_tokenizer(
    folder: Annotated[Path, typer.Argument(help="Folder of the text tokenizer.")],
    manifests: Annotated[list[Path], typer.Argument(help="manifest.jsonl files whose texts count.")],
    size: Annotated[int, typer.Option(help="Ids in all.")] = 2048,
) -> None:
    """Train a text tokenizer (byte-level BPE) on the texts of manifests."""
    from echat.data.tools.text_tokenizer_training import train_on_manifests

    ids, texts = train_on_manifests(folder, manifests, size)
    print(f"{folder}: {ids} ids from {texts} texts")


def _speech_tokenizer(name: str) -> Path:
    """The folder of the speech tokenizer, by itself or inside a model."""
    from echat.infer.loading import find_model
    from echat.model_files import SPEECH_TOKENIZER_FOLDER

    folder = find_model(name)
    inside = folder / SPEECH_TOKENIZER_FOLDER
    return (inside if inside.is_dir() else folder).absolute()


def column_map(map: list[str] | None) -> dict[str, str]:
    """field -> column of the --map options."""
    return dict(_pair(item) for item in map or [])


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _pair(item: str) -> tuple[str, str]:
    field, equals, column = item.partition("=")
    if not (field and equals and column):
        raise ValueError(f"--map {item}: expected field=column, such as text=sentence")
    return field, column
