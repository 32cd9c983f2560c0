"""The page of a run holds everything it shows and asks nobody for anything."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from echat.cli import app
from echat.train.tools.report import curves, downsample, running_mean, write_report
from echat.train.trainer import train

pytest.importorskip("matplotlib")


class Addresses(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data")]


@pytest.mark.slow
def test_one_page_with_everything(recipe, corpus, tmp_path):
    source = {"path": str(corpus / "manifest.jsonl"), "tasks": {"asr": 1, "s2s": 1}}
    data = {"sources": [source], "validation": [source | {"split": "dev"}], "batch_cost": 400, "pool": 6}
    decode = {"every_steps": 10, "records": 2, "samples": 1}
    path = recipe(
        "speech_llm", data=data, decode=decode, budget={"steps": 20}, validate_steps=10, accumulate=1
    )
    folder = train(path).parent
    page = write_report(folder, tmp_path / "page.html").read_text()
    addresses = Addresses()
    addresses.feed(page)
    assert any(address.startswith("data:audio/flac;base64,") for address in addresses.found)
    assert not [a for a in addresses.found if not a.startswith(("data:", "#"))]
    assert not re.search(r"@import|url\((?!#)|<script|<link", page)
    for text in ("learning rate", "samples per second", "s2s/speech", "asr/word_errors", "Configuration"):
        assert text in page, text
    (start,) = json.loads((folder / "provenance.json").read_text())["starts"]
    assert start["git"] in page and start["data"][str(corpus / "manifest.jsonl")] in page
    assert page.count("<svg") == len(re.findall("<figure>", page)) >= 8


def test_a_folder_that_is_no_run_is_named(tmp_path):
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2 and "expected the run folder of a training" in result.stderr


@pytest.mark.slow
def test_a_resumed_run_names_each_start(recipe, tmp_path):
    path = recipe("encoder_ctc", budget={"steps": 2})
    folder = train(path).parent
    train(path, ["budget.steps=4"], resume=True)
    starts = json.loads((folder / "provenance.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 2]


def test_curves_pair_training_with_held_out_values():
    rows = [
        {"step": s, "loss": 2.0 / s, "lr": 1.0, "grad_norm": 1.0, "parts": {"asr": 1.0 / s}} for s in (1, 2)
    ]
    rows += [{"step": s, "validation": {"asr": 0.4, "asr/word_errors": 0.5}} for s in (1, 2)]
    rows.append({"step": 2, "validation": {"asr/once": 0.5}})
    speeds = [{"step": 10, "samples": 10, "seconds": 1.0}, {"step": 20, "samples": 40, "seconds": 3.0}]
    found = {curve.name: curve for curve in curves(rows, speeds)}
    assert found["asr"].points == [(1, 1.0), (2, 0.5)] and found["asr"].validation == [(1, 0.4), (2, 0.4)]
    assert found["asr/word_errors"].validation == [(1, 0.5), (2, 0.5)]
    assert "asr/once" not in found  # one value is no curve
    assert found["samples per second"].points == [(20, 15.0)]


def test_the_running_mean_of_a_constant_is_the_constant_and_thinning_keeps_the_ends():
    assert [value for _, value in running_mean([(n, 3.0) for n in range(5)])] == pytest.approx([3.0] * 5)
    points = [(n, float(n)) for n in range(10_001)]
    kept = downsample(points)
    assert kept[0] == points[0] and kept[-1] == points[-1] and len(kept) <= 2100
