"""`echat convert` makes a folder that `echat.load` reads; bad input is one line and nothing is written."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import echat
from echat.cli import app
from echat.dialogue.turns import ask
from echat.infer.loading import load, load_released
from echat.verify.comparison import Backend
from echat.verify.golden_folder import GoldenFolder, cosyvoice_yaml
from echat.verify.verification import bundled_folders

SPEECH, DIALOGUE = (
    next(path for path in bundled_folders() if path.name == name) for name in ("token2wav", "model")
)
WEIGHTS, LLM = DIALOGUE / "tiny_echat.pt", DIALOGUE / "llm"


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *says: str) -> None:
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert all(part in result.stderr for part in says), result.stderr


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The tar of the synthesis at a tiny size."""
    home = tmp_path / "release"
    home.mkdir()
    shutil.copyfile(SPEECH / "tiny_flow.pt", home / "flow.pt")
    shutil.copyfile(SPEECH / "tiny_hift.pt", home / "hift.pt")
    (home / "cosyvoice.yaml").write_text(cosyvoice_yaml(GoldenFolder(SPEECH, Backend()).config))
    with tarfile.open(tmp_path / "release.tar", "w") as tar:
        tar.add(home, "CosyVoice-300M-25Hz")
    return tmp_path / "release.tar"


def test_the_command_makes_a_folder_that_answers(tmp_path: Path, release: Path) -> None:
    out = tmp_path / "model"
    result = run("convert", WEIGHTS, out, "--llm", LLM, "--token2wav", release)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(f"written: {out}\n") and result.stdout.count("0 missing, 0 left over") == 3
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "config.yaml", "model.safetensors", "token2wav", "tokenizer"}
    assert "0 of another shape" in (out / "README.md").read_text()
    engine = echat.load(out)
    assert engine.model.projection.weight.dtype == torch.bfloat16  # as it is stored
    assert engine.token2wav is not None and engine.profile == "osum" and engine.name == "tiny_echat"
    assert not any(parameter.requires_grad for parameter in engine.model.parameters())
    direct = load_released(WEIGHTS, LLM, encoder_heads=4, dtype=torch.bfloat16)
    mel = np.load(DIALOGUE / "frontend.npz")["wave_a_logmel"]
    question = ask(audio=torch.from_numpy(mel))
    for task in ("asr", "s2s"):
        assert (
            engine.run(question, task, seed=3, speak=False).raw_text
            == direct.run(question, task, seed=3, speak=False).raw_text
        )


def test_the_asked_precision_wins_over_the_stored_one(tmp_path: Path) -> None:
    run("convert", WEIGHTS, tmp_path / "model", "--llm", LLM, "--dtype", "fp16")
    for asked, found in (
        (None, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ):
        model = load(tmp_path / "model", dtype=asked).model
        assert {parameter.dtype for parameter in model.parameters()} == {found}
        assert model.llm.model.rotary_emb.inv_freq.dtype == torch.float32


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, release: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    broken = tmp_path / "broken.pt"
    broken.write_bytes(WEIGHTS.read_bytes()[:100_000])
    soundfile.write(tmp_path / "voice.wav", np.sin(np.arange(16000)), 16000)
    out = tmp_path / "out"
    refused(run("convert", tmp_path / "no.pt", out, "--llm", LLM), "no.pt: expected a .pt file")
    refused(run("convert", broken, out, "--llm", LLM), "broken.pt: expected a torch file of plain tensors")
    refused(run("convert", WEIGHTS, out, "--llm", tmp_path), "expected a Qwen2 folder with config.json")
    refused(run("convert", WEIGHTS, full, "--llm", LLM), "full: expected a new folder to write")
    refused(run("convert", WEIGHTS, out), "Missing option '--llm'")
    refused(run("convert", WEIGHTS, out, "--llm", LLM, "--dtype", "int8"), "'int8' is not one of")
    refused(
        run("convert", WEIGHTS, out, "--llm", LLM, "--token2wav", WEIGHTS), "expected a whole tar archive"
    )
    refused(
        run("convert", WEIGHTS, out, "--llm", LLM, "--voice", tmp_path / "voice.wav"),
        "voice.wav: expected token2wav files to speak with",
    )
    refused(
        run("convert", WEIGHTS, out, "--llm", LLM, "--token2wav", release, "--voice", tmp_path / "voice.wav"),
        "speech_tokenizer",
    )
    assert not out.exists() and [path.name for path in full.iterdir()] == ["mine.txt"]
    assert not list(tmp_path.glob(".*"))
