"""Commands that inspect a corpus: check, show."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echat.audio.speech_tokens import CODEC_SIZE
from echat.cli.errors import exit_on_defects
from echat.cli.options import (
    CodecSize,
    Engine,
    EngineName,
    Json,
    Root,
    Source,
    SourceFormat,
    Strict,
    Within,
    Workers,
    path_strings,
)
from echat.progress import progress

if TYPE_CHECKING:
    from echat.data.tools.check import CheckConfig, Findings
    from echat.data.tools.inspection import SequenceSpan
    from echat.dialogue.tasks import Profile
    from echat.dialogue.vocabulary import Vocabulary
    from echat.model.speech_encoder import EncoderConfig
    from echat.model.text_tokenizer import TextTokenizer


def add_to(group: typer.Typer) -> None:
    group.command()(check)
    group.command()(show)


def check(
    source: Source,
    format: SourceFormat = "auto",
    workers: Workers = 1,
    engine: Engine = EngineName.local,
    json: Json = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the report as JSON to this file.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for histograms as PNG.")] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Folder for the corpus without its defects, in the same format.")
    ] = None,
    min_seconds: Annotated[float, typer.Option(min=0, help="Of each sound.")] = 0.025,
    max_seconds: Annotated[float, typer.Option(min=0, help="Of each sound.")] = 600.0,
    codec_size: CodecSize = CODEC_SIZE,
    root: Root = None,
    within: Within = None,
    strict: Strict = False,
) -> None:
    """Read every record, decode all sound, report statistics and defects.

    Ends with 0 for data without defects, 1 for data with some, 2 where it could not begin.
    """
    from echat.data.tools.check import CheckConfig
    from echat.data.tools.check import check as run

    if strict and fix is not None:
        raise ValueError("--fix: expected a check of all records, found --strict, too; drop one of the two")
    config = CheckConfig(
        source=source,
        format=format,  # type: ignore[arg-type]
        root=None if root is None else str(root),
        within=path_strings(within),
        codec_size=codec_size,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
    )
    _keep_apart(config, fix, output)
    with progress("checking") as step:
        found = run(config, workers, strict, step, engine.value)
    _report(source, found, json, output, plots)
    if fix is not None:
        from echat.data.tools.cleaning import clean

        with progress("cleaning") as step:
            clean(config, found.bad, fix, workers, step, engine.value)
        if not json:
            print(f"{fix}: {found.totals.records:,} records without defects")
    exit_on_defects(source, found.totals.records, found.defects)


def _keep_apart(config: CheckConfig, fix: Path | None, output: Path | None) -> None:
    """Refuse results that would overwrite what is checked, before hours are spent on it."""
    from echat.data.storage import refuse_file
    from echat.data.tools.check import open_checked
    from echat.data.tools.cleaning import refuse_output
    from echat.data.tools.output_files import files_of

    if fix is not None:
        refuse_output(config, fix)
    if output is not None:
        refuse_file(output, files_of(open_checked(config)))


def _report(source: str, found: Findings, json: bool, output: Path | None, plots: Path | None) -> None:
    from echat.cli.display import json_line

    if json:
        json_line({"source": source, **found.as_dict()})
    else:
        print(f"{source}\n{found}")
        print(f"defects: {found.defects.total:,}" if found.defects else "defects: none")
        if found.defects:
            print(found.defects)
    if output is not None:
        from echat.checkpoint import atomic_path

        text = json_module.dumps({"source": source, **found.as_dict()}, ensure_ascii=False, indent=1) + "\n"
        with atomic_path(output) as temporary:
            temporary.write_text(text, "utf-8", errors="replace")
    if plots is not None:
        from echat.data.tools.statistics import write_histograms

        write_histograms(found.totals, plots)


def show(
    source: Source,
    key: Annotated[str, typer.Argument(help="Of the record.")],
    task: Annotated[
        str | None, typer.Option(help="To render (default: the record's own, or one it serves).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for its sounds and their spectrograms.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A model whose tokenizer cuts the text: a shipped one or a folder.")
    ] = "echat-tiny",
    format: SourceFormat = "auto",
    root: Root = None,
    within: Within = None,
    json: Json = False,
) -> None:
    """Print one record and the training sequence that it becomes; positions with a loss are marked."""
    from echat.cli import display
    from echat.data.formats.corpus import open_corpus
    from echat.data.tools.inspection import as_json, facts, sequence, write_sounds

    corpus = open_corpus(source, format, root=root, within=within)
    sample = corpus[corpus.find(key)]
    name, spans = sequence(sample, task, *_input_of(model))
    written = write_sounds(sample, out) if out is not None else []
    if json:
        display.json_line(as_json(sample, name, spans, written))
        return
    display.facts(facts(sample))
    _print_sequence(name, spans)
    for path in written:
        print(path)


def _input_of(model: str) -> tuple[TextTokenizer, Vocabulary, EncoderConfig, Profile]:
    """Tokenizer, vocabulary, shape of the speech encoder and profile of a model folder, without its weights.

    Speech ids of the published tokenizer can be shown beside a model that speaks others.
    """
    from echat.config import load_config
    from echat.infer.loading import find_model
    from echat.model.model_folder import ModelFolderConfig
    from echat.model.text_tokenizer import TextTokenizer
    from echat.model_files import CONFIG_FILE, TOKENIZER_FOLDER

    folder = find_model(model)
    config = load_config(ModelFolderConfig, folder / CONFIG_FILE)
    tokenizer = TextTokenizer.from_folder(folder / TOKENIZER_FOLDER)
    sizes = config.model
    codec_size = max(sizes.speech_codec_size, CODEC_SIZE)
    vocabulary = tokenizer.vocabulary(codec_size, sizes.llm.vocab_size)
    return tokenizer, vocabulary, sizes.encoder, config.profile


def _print_sequence(task: str, spans: list[SequenceSpan]) -> None:
    """One line for each span: position, length, kind, content; spans with a loss in green, with a mark."""
    from rich.text import Text

    from echat.cli.display import console

    positions = sum(span.count for span in spans)
    learned = sum(span.count for span in spans if span.learn)
    terminal = console()
    terminal.print(Text(f"\nas {task}: {positions} positions, {learned} learned (▶)"))
    for span in spans:
        mark, style = ("▶", "bold green") if span.learn else (" ", "dim")
        line = Text()
        line.append(f"{span.begin:>5} {span.count:>5} {span.kind:<6} ", style="dim")
        line.append(f"{mark} {span.content.replace(chr(10), '⏎')}", style=style)
        terminal.print(line)
