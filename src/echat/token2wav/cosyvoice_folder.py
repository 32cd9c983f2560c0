"""The released `CosyVoice-300M-25Hz.tar`, or a folder with its contents -> `token2wav/` and
`speech_tokenizer/` of a model folder.

Weights stay in float32: pitch is summed up to phases, so that rounding gives another sound.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from echat.checkpoint import TOKEN2WAV_FOLDER
from echat.token2wav.archive import unpack
from echat.token2wav.cosyvoice_weights import read_weights
from echat.token2wav.onnx_model import TOKENIZER_25HZ_SHA256, TOKENIZER_50HZ_SHA256_START, sha256
from echat.token2wav.speech_tokenizer import load_speech_tokenizer
from echat.token2wav.token2wav import SPEAKER_FILE, TOKENIZER_FOLDER, Token2Wav

TOKENIZER_FILE = "speech_tokenizer_v1.onnx"
NETWORKS = ("flow.pt", "hift.pt")
WANTED = (*NETWORKS, "cosyvoice.yaml", SPEAKER_FILE, TOKENIZER_FILE)


@dataclass
class CosyvoiceReport:
    """What became of each file."""

    source: str
    lines: list[str] = field(default_factory=list)

    def add(self, name: str, what: str) -> None:
        self.lines.append(f"  {name}: {what}")

    def __str__(self) -> str:
        return "\n".join([f"{self.source}:", *self.lines])


def convert_cosyvoice(source: Path, folder: Path, voice: Path | None = None) -> CosyvoiceReport:
    """Write both folders into the model folder `folder`.

    A WAV in the release becomes a voice named after it, if the networks that hear it are there. `voice` is a
    recording (3 to 30 s) that becomes the default voice.
    """
    report = CosyvoiceReport(source.name)
    with _contents(source, folder, report) as home:
        token2wav = Token2Wav.from_released(home)
        for name in NETWORKS:
            report.add(name, _described(read_weights(home / name)))
        is_stated = (home / "cosyvoice.yaml").is_file()
        report.add("cosyvoice.yaml", "sizes read" if is_stated else "absent, released sizes used")
        _carry_networks(home, folder, report)
        if (folder / TOKENIZER_FOLDER / TOKENIZER_FILE).is_file():
            _add_voices(token2wav, sorted(home.glob("*.wav")), folder, report)
        if voice is not None:
            _add_voice(token2wav, voice, folder)
        default = voice.stem if voice is not None else next(iter(token2wav.voices), None)
        report.add("voices", f"{', '.join(token2wav.voices) or 'none'}; default {default or 'none'}")
        token2wav.config = token2wav.config.model_copy(update={"default_voice": default})
        token2wav.save(folder / TOKEN2WAV_FOLDER, dtype=None)
    return report


@contextmanager
def _contents(source: Path, folder: Path, report: CosyvoiceReport) -> Iterator[Path]:
    """The folder with the released files: given, one below it, or unpacked inside `folder` for as long as it
    is needed."""
    if source.is_dir():
        homes = [path for path in (source, *sorted(source.iterdir())) if (path / "flow.pt").is_file()]
        if not homes:
            raise ValueError(
                f"{source}: expected flow.pt and hift.pt in this folder or one below, found none; give the "
                "unpacked CosyVoice-300M-25Hz or its tar"
            )
        yield homes[0]
    elif source.is_file():
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=folder) as scratch:
            left = unpack(source, lambda name: name in WANTED or _is_sound(name), Path(scratch))
            if left:
                report.add("not needed", ", ".join(sorted(left)))
            yield Path(scratch)
    else:
        raise ValueError(
            f"{source}: expected CosyVoice-300M-25Hz.tar or its folder, found none; check the path"
        )


def _is_sound(name: str) -> bool:
    return name.endswith(".wav") and not name.startswith(".")


def _described(tensors: dict[str, Tensor]) -> str:
    layouts = {"weight_v": "old", "original1": "new"}
    found = [layout for mark, layout in layouts.items() if any(name.endswith(mark) for name in tensors)]
    values = sum(tensor.numel() for tensor in tensors.values())
    normed = f", {' and '.join(found)} weight-norm names folded" if found else ""
    return f"{len(tensors)} keys, {values:,} values, 0 missing, 0 left over{normed}"


def _carry_networks(home: Path, folder: Path, report: CosyvoiceReport) -> None:
    """The two ONNX networks that hear a voice prompt, to where token2wav looks for them."""
    for name, place in ((SPEAKER_FILE, TOKEN2WAV_FOLDER), (TOKENIZER_FILE, TOKENIZER_FOLDER)):
        if not (home / name).is_file():
            report.add(name, "absent, so no voice can be made from a recording")
            continue
        (folder / place).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(home / name, folder / place / name)
        kind = _tokenizer_kind(home / name) if name == TOKENIZER_FILE else ""
        report.add(name, f"carried to {place}/{kind}")


def _tokenizer_kind(path: Path) -> str:
    """Two files carry this name; the wrong one spoils every voice without a sign."""
    found = sha256(path)
    if found.startswith(TOKENIZER_50HZ_SHA256_START):
        raise ValueError(
            f"{path.name}: expected the 25 Hz tokenizer, found the 50 Hz one of the same name; take that of "
            "CosyVoice-300M-25Hz"
        )
    is_released = found == TOKENIZER_25HZ_SHA256
    return ", the released 25 Hz one" if is_released else f", of unknown sha256 {found[:8]}..."


def _add_voices(token2wav: Token2Wav, recordings: list[Path], folder: Path, report: CosyvoiceReport) -> None:
    """Voices of the release; one that cannot be used is named with its reason, the rest works without it."""
    for recording in recordings:
        try:
            _add_voice(token2wav, recording, folder)
        except ValueError as error:
            report.add(recording.name, f"left out: {error}")


def _add_voice(token2wav: Token2Wav, recording: Path, folder: Path) -> None:
    token2wav.use_tokenizer(load_speech_tokenizer(folder / TOKENIZER_FOLDER))
    token2wav.voices[recording.stem] = token2wav.voice_of(recording)
