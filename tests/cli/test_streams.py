"""`-` is stdin and stdout; several inputs do not depend on each other; any encoding of stdout will do."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import echat
from echat.cli import app, errors
from echat.dialogue.labels import REPLY_EMOTIONS, VALUES, in_english
from echat.dialogue.thinking import LabelThought
from echat.infer.events import Reply

SHIPPED = Path(echat.__file__).parent / "models" / "echat-tiny"
QUESTION = SHIPPED / "examples" / "question.wav"


def run(*arguments: object, stdin: bytes = b"") -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture
def questions(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    for number, path in enumerate(paths):
        soundfile.write(path, 0.3 * np.sin(np.arange(16000) / (10 + 5 * number)), 16000)
    return paths


def test_stdin_is_heard_like_a_file(questions, random_model):
    settings = ["--model", random_model, "--json"]
    piped = run("understand", "-", *settings, stdin=questions[0].read_bytes())
    assert piped.exit_code == 0, piped.stderr
    alone = run("understand", questions[0], *settings)
    assert json.loads(piped.stdout) == json.loads(alone.stdout) | {"audio": "-"}


@pytest.mark.slow
def test_speech_on_stdout_has_stdout_for_itself(tmp_path):
    answer = tmp_path / "answer.wav"
    assert run("reply", QUESTION, "-o", answer, "--seed", 0).exit_code == 0
    piped = run("reply", "-", "-o", "-", "--seed", 0, stdin=QUESTION.read_bytes())
    assert piped.exit_code == 0 and piped.stdout_bytes == answer.read_bytes()
    assert "reply:" in piped.stderr and "stdout (" in piped.stderr
    said = run("say", "-", "-o", "-", "--seed", 0, "--json", stdin=b"hello there")
    assert soundfile.info(io.BytesIO(said.stdout_bytes)).duration > 0.3
    assert json.loads(said.stderr)["text"] == "hello there"


def test_several_inputs_are_as_each_alone(questions, random_model):
    settings = ["--model", random_model, "--json"]
    together = run("understand", *questions, *settings).stdout
    assert together == "".join(run("understand", path, *settings).stdout for path in questions)


def test_a_bad_one_of_several_loses_no_other(questions, random_model, tmp_path):
    bad, missing = tmp_path / "bad.wav", tmp_path / "missing.wav"
    bad.write_text("no sound")
    result = run("understand", questions[0], bad, missing, questions[1], "--model", random_model, "--json")
    assert result.exit_code == 2
    assert [json.loads(line)["audio"] for line in result.stdout.splitlines()] == [
        str(p) for p in questions[:2]
    ]
    errors = result.stderr.splitlines()
    assert len(errors) == 3 and str(bad) in errors[0] and str(missing) in errors[1]
    assert errors[2] == "2 of 4 inputs could not be used"


@pytest.mark.slow
def test_answers_to_several_go_into_a_folder(tmp_path):
    copy = tmp_path / "again.wav"
    copy.write_bytes(QUESTION.read_bytes())
    folder = tmp_path / "answers"
    result = run("reply", QUESTION, copy, "-o", folder, "--seed", 0)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["again.wav", "question.wav"]
    assert (folder / "again.wav").read_bytes() == (folder / "question.wav").read_bytes()
    assert f"{copy}:\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reply", "A", "B", "-o", "one.wav"], "expected a folder for 2 answers"),
        (["reply", "A", "A", "-o", "answers"], "several for a.wav"),
        (["reply", "-", "-"], "expected stdin once"),
        (["reply", "-"], "stdin: expected an audio file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_made(questions, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    names = {"A": questions[0], "B": questions[1]}
    result = run(*(names.get(word, word) for word in arguments))
    assert result.exit_code == 2 and says in result.stderr, result.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16"])
def test_a_report_is_printed_in_any_encoding(tmp_path, encoding, monkeypatch):
    (tmp_path / "manifest.jsonl").write_text(
        '{"key": "k", "audio": "\U0001f3a4悲伤.wav", "text": "é"}\n', "utf-8"
    )
    for options in ([], ["--json"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            app(["data", "check", str(tmp_path), *options])
        assert ended.value.code == 1
        text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        if options:  # nothing is lost of what programs read
            assert "\U0001f3a4悲伤" in json.dumps(json.loads(text), ensure_ascii=False)
        else:
            assert ".wav" in text and "defects: 1" in text


@pytest.mark.parametrize("label", [*VALUES["style"], *REPLY_EMOTIONS])
def test_labels_are_shown_in_english(label, capsys):
    from echat.cli import display

    assert in_english(label).isascii() and in_english("happy") == "happy"
    thought = LabelThought("hello", "adult", "male", "sad", None, reply_emotion=label)
    display.reply(Reply(text="hi", raw_text="hi", thought=thought, reply_emotion=label), None)
    shown = capsys.readouterr().out
    assert shown.isascii() and in_english(label) in shown


@pytest.mark.parametrize("label", [*VALUES["style"], *REPLY_EMOTIONS])
def test_reports_name_labels_in_english(label):
    from rich.console import Console

    from echat.data.tools.statistics import CorpusStatistics
    from echat.eval.report import WIDTH, confusion_table
    from echat.metrics import Confusion

    kind = "style" if label in VALUES["style"] else "reply_emotion"
    totals = CorpusStatistics()
    totals.words[kind][label] += 2
    assert f"{in_english(label)} 2" in str(totals) and label not in str(totals)
    confusion = Confusion.of([(label, label)])
    console = Console(file=io.StringIO(), width=WIDTH)
    console.print(confusion_table(kind, confusion, [label]))
    table = console.file.getvalue()  # type: ignore[attr-defined]
    assert in_english(label).split()[0] in table and label not in table


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "echat", "info"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (errors.INTERNAL_ERROR, "")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RecursionError("maximum recursion depth exceeded"), 2, "nested"),
        (OverflowError("int too big to convert"), 2, "does not fit (int too big to convert)"),
        (ImportError("HTTPFileSystem requires requests and aiohttp"), 2, "requires requests and aiohttp"),
        (ModuleNotFoundError("No module named 'jiwer'", name="jiwer"), 2, "echat-speech[eval]"),
        (ModuleNotFoundError("No module named 's3fs'", name="s3fs"), 2, "No module named 's3fs'"),
        (ModuleNotFoundError("No module named 'echat.x'", name="echat.x"), 1, "echat-speech"),
        (KeyError("x"), 1, "unexpected KeyError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_exception_is_a_sentence_with_its_code(error, code, says):
    assert errors.explain(error)[0] == code and says in errors.explain(error)[1]
