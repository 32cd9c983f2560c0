"""A folder of spoken pairs in, an ordinary model folder out; what is wrong with the data is named first."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import echat
from echat.audio.waveform import write
from echat.checkpoint import read_tensors
from echat.cli import app
from echat.config import apply_override, load_config, validate
from echat.data.formats.manifest import read_manifest
from echat.dialogue.capabilities import Capabilities
from echat.infer.loading import find_model
from echat.model.model_folder import ModelFolderConfig
from echat.token2wav.quantizer import QuantizerConfig
from echat.token2wav.speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from echat.train.tools.finetune import FineTune, finetune, write_recipe
from echat.train.trainer import train

pytest.importorskip("peft")
ASSETS = Path(__file__).parents[2] / "assets"
COLUMNS = ("question", "answer", "text", "reply", "emotion", "age", "gender")
QUICK = [
    "budget.steps=2",
    "validate_steps=2",
    "checkpoint.every_steps=1",
    "lora.rank=2",
    "data.batch_cost=600",
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """A dozen pairs of noise with a table."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number in range(12):
            for kind in ("q", "a"):
                noise = (0.1 * rng.standard_normal(9600 + 160 * number)).astype(np.float32)
                write(folder / f"{kind}{number}.wav", noise, 16000)
            row = (
                f"q{number}.wav",
                f"a{number}.wav",
                "the bus is late",
                "I am sorry.",
                "sad",
                "adult",
                "male",
            )
            table.writerow(row)
    return folder


@pytest.fixture(scope="module")
def speaking(random_model, tmp_path_factory) -> Path:
    """The random model with a random speech tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "speaking"
    shutil.copytree(random_model, folder)
    config = SpeechTokenizerConfig(
        dim=16, heads=2, hidden=16, blocks_before=1, blocks_after=1, quantizer=QuantizerConfig(size=32, dim=4)
    )
    SpeechTokenizer(config).save(folder / "speech_tokenizer")
    return folder


def damaged(pairs: Path, folder: Path, change) -> Path:
    shutil.copytree(pairs, folder)
    path = folder / "metadata.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    change(rows, folder)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.mark.slow
def test_pairs_become_a_model_that_answers(pairs, speaking, tmp_path, corpus):
    messages: list[str] = []
    out = tmp_path / "run"
    job = FineTune(
        str(speaking), str(pairs), out, replay=[str(corpus / "manifest.jsonl")], info=messages.append
    )
    folder = finetune(job, QUICK)
    samples = read_manifest(out / "data" / "tokenized" / "dialogues.jsonl")
    assert [sample.split for sample in samples].count("dev") == 1 and len(samples) == 12
    assert all(sample.speech_ids and max(sample.speech_ids) < 32 for sample in samples)
    assert "11 training dialogues, 1 held out; tasks s2s_think_label" in messages[-1]
    before, after = read_tensors(speaking / "model.safetensors"), read_tensors(folder / "model.safetensors")
    assert before.keys() == after.keys() and (folder / "speech_tokenizer").is_dir()
    assert any((before[name] != tensor).any() for name, tensor in after.items())
    engine = echat.load(folder)
    assert engine.understand(str(pairs / "q0.wav"), "emotion").raw_text is not None
    again = train(out / "finetune.yaml", [*QUICK, f"output={tmp_path / 'again'}"])  # a recipe like any other
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_recipe_says_what_the_model_learned_so_that_an_override_changes_one_field(pairs, tmp_path):
    job = FineTune("echat-tiny", str(pairs), tmp_path / "run")
    values = write_recipe(job, find_model("echat-tiny"))
    assert values["learned"]["languages"] == ["en"] and values["learned"]["history_turns"] == 0
    apply_override(values, "learned.history_turns=3")
    declared = load_config(ModelFolderConfig, find_model("echat-tiny") / "config.yaml").learned
    learned = validate(Capabilities, values["learned"], "recipe")
    assert learned == declared.model_copy(update={"history_turns": 3})


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_its_recipe_and_data(pairs, speaking, tmp_path):
    job = FineTune(str(speaking), str(pairs), tmp_path / "run", info=lambda _: None)
    finetune(job, QUICK)
    shutil.rmtree(tmp_path / "run" / "model")
    recipe = (tmp_path / "run" / "finetune.yaml").read_bytes()
    gone = FineTune(str(speaking), str(tmp_path / "gone"), tmp_path / "run", info=lambda _: None)
    finetune(gone, [*QUICK, "budget.steps=3"], resume=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert (tmp_path / "run" / "finetune.yaml").read_bytes() == recipe


@pytest.mark.slow
def test_a_released_file_is_fine_tuned_in_its_dialect(pairs, tmp_path):
    start = tmp_path / "released"
    shutil.copytree(ASSETS / "model" / "llm", start / "llm")
    for name in ("tiny_echat.pt", "config.json"):
        shutil.copyfile(ASSETS / "model" / name, start / name)
    messages: list[str] = []
    folder = finetune(FineTune(str(start), str(pairs), tmp_path / "run", info=messages.append), QUICK)
    assert "answers are trained as text alone" in messages[0]
    assert echat.load(folder).profile == "osum"


def _no_file(rows, folder):
    (folder / "q3.wav").unlink()


def _silent(rows, folder):
    write(folder / "a2.wav", np.zeros(16000, np.float32), 16000)


def _unknown_emotion(rows, folder):
    for row in rows:
        row["reply"] = ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"), [(_no_file, "q3.wav"), (_silent, "a2.wav")], ids=["missing", "silent"]
)
def test_a_bad_record_is_named_and_stops_unless_told_otherwise(pairs, speaking, tmp_path, change, says):
    messages: list[str] = []
    data = damaged(pairs, tmp_path / "data", change)
    job = FineTune(str(speaking), str(data), tmp_path / "run", info=messages.append)
    with pytest.raises(ValueError, match="found 1 that cannot, named above; mend them, or add --skip-bad"):
        finetune(job, QUICK)
    assert says in messages[0]
    skipping = FineTune(str(speaking), str(data), tmp_path / "run", skip_bad=True, info=messages.append)
    finetune(skipping, QUICK)
    assert "10 training dialogues, 1 held out" in messages[-1]


def test_without_replies_there_is_nothing_to_learn_but_to_listen(pairs, speaking, tmp_path):
    messages: list[str] = []
    data = damaged(pairs, tmp_path / "data", _unknown_emotion)
    finetune(FineTune(str(speaking), str(data), tmp_path / "run", info=messages.append), QUICK)
    assert "tasks understand, asr" in messages[-1]


def test_the_command_says_what_to_mend(tmp_path, speaking):
    command = ["finetune", str(speaking), "--data", str(tmp_path / "absent"), "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "absent" in result.stderr and not (tmp_path / "run" / "model").exists()
