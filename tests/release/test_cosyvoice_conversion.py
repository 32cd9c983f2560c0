"""The released synthesis becomes the two folders of a model, with the numbers of loading it directly."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from echat.release import cosyvoice_conversion as cosyvoice_folder
from echat.release.cosyvoice_conversion import convert_cosyvoice
from echat.release.cosyvoice_weights import load_cosyvoice
from echat.token2wav import token2wav
from echat.token2wav.token2wav import Token2Wav
from echat.token2wav.voice import VoicePrompt

GOLDEN = Path(__file__).parent.parent / "assets" / "token2wav"


def tone(samples: int) -> np.ndarray:
    return np.sin(np.arange(samples) / 10.0)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The unpacked release at a tiny size, with stand-ins for the networks that hear a voice."""
    home = tmp_path / "CosyVoice-300M-25Hz"
    home.mkdir()
    shutil.copyfile(GOLDEN / "tiny_flow.pt", home / "flow.pt")
    shutil.copyfile(GOLDEN / "tiny_hift_oldkeys.pt", home / "hift.pt")
    sizes = json.loads((GOLDEN / "config.json").read_text())
    flow = sizes["flow"]
    flow["decoder"] = {"cfm_params": flow["cfm"], "estimator": flow["estimator"]}
    harmful = f"evil: !!python/object/apply:os.mkdir [{tmp_path / 'evil'}]\n"
    harmful += f"worse: !apply:os.mkdir [{tmp_path / 'evil'}]\n"
    (home / "cosyvoice.yaml").write_text(yaml.safe_dump({"flow": flow, "hift": sizes["hift"]}) + harmful)
    (home / "campplus.onnx").write_bytes(b"speaker")
    (home / "speech_tokenizer_v1.onnx").write_bytes(b"tokenizer")
    (home / "llm.pt").write_bytes(b"not needed")
    soundfile.write(home / "prompt.wav", tone(22050), 22050)
    return home


@pytest.fixture
def stub_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Voices without the networks: as many ids as seconds."""
    monkeypatch.setattr(cosyvoice_folder, "load_speech_tokenizer", lambda folder: None)

    def voice_prompt(self: Token2Wav, waveform: torch.Tensor, rate: int, where: str) -> VoicePrompt:
        if len(waveform) < rate:
            raise ValueError(f"{where}: expected 1 s")
        return VoicePrompt(torch.arange(len(waveform) // rate), torch.zeros(0, 80), torch.ones(192))

    monkeypatch.setattr(Token2Wav, "voice_prompt", voice_prompt)
    monkeypatch.setattr(token2wav, "check_speech_duration", lambda *recording: None)


def packed(release: Path) -> Path:
    path = release.parent / "release.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(release, release.name)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tar", "folder", "folder above"])
def test_converted_is_direct(tmp_path: Path, release: Path, stub_networks: None, form: str) -> None:
    source = {"tar": packed(release), "folder": release, "folder above": release.parent}[form]
    out = tmp_path / "out"
    out.mkdir()
    report = str(convert_cosyvoice(source, out))
    direct = load_cosyvoice(release)
    found = Token2Wav.from_folder(out / "token2wav")
    assert found.config == direct.config.model_copy(update={"default_voice": "prompt"})
    assert all(torch.equal(value, direct.state_dict()[name]) for name, value in found.state_dict().items())
    assert (out / "token2wav" / "campplus.onnx").read_bytes() == b"speaker"
    assert (out / "speech_tokenizer" / "speech_tokenizer_v1.onnx").read_bytes() == b"tokenizer"
    assert sorted(path.name for path in out.iterdir()) == ["speech_tokenizer", "token2wav"]
    assert not (tmp_path / "evil").exists()  # the YAML was read, not executed
    assert found.voices["prompt"].speech_ids.tolist() == [0]
    assert "0 missing, 0 left over, old weight-norm names folded" in report
    assert "of unknown sha256" in report and ("not needed: llm.pt" in report) == (form == "tar")


def test_a_recording_becomes_the_default_voice(tmp_path: Path, release: Path, stub_networks: None) -> None:
    soundfile.write(tmp_path / "anna.wav", tone(48000), 24000)
    soundfile.write(release / "short.wav", tone(1000), 22050)
    report = str(convert_cosyvoice(release, tmp_path, tmp_path / "anna.wav"))
    assert "short.wav: left out: " in report and "voices: prompt, anna; default anna" in report
    assert Token2Wav.from_folder(tmp_path / "token2wav").voice(None).speech_ids.tolist() == [0, 1]


def test_absent_parts_are_named(tmp_path: Path, release: Path) -> None:
    for name in ("campplus.onnx", "speech_tokenizer_v1.onnx"):
        (release / name).unlink()
    report = str(convert_cosyvoice(release, tmp_path))
    assert report.count("absent, so no voice can be made from a recording") == 2
    assert "voices: none; default none" in report
    (release / "hift.pt").unlink()
    with pytest.raises(ValueError, match="hift.pt: expected released weights"):
        convert_cosyvoice(release, tmp_path)
    with pytest.raises(ValueError, match="expected flow.pt and hift.pt in this folder"):
        convert_cosyvoice(GOLDEN, tmp_path)
    with pytest.raises(ValueError, match="absent.tar: expected CosyVoice-300M-25Hz.tar"):
        convert_cosyvoice(tmp_path / "absent.tar", tmp_path)


def test_the_50_hz_tokenizer_is_refused(
    tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echat.token2wav.onnx_session._TOKENIZER_50HZ_SHA256_START", "")
    with pytest.raises(ValueError, match="found the 50 Hz one"):
        convert_cosyvoice(release, tmp_path)
