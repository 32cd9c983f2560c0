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

from echat.model_files import SPEAKER_FILE, SPEECH_TOKENIZER_FILE, SPEECH_TOKENIZER_FOLDER, TOKEN2WAV_FOLDER
from echat.release.archive import extract
from echat.release.cosyvoice_weights import load_cosyvoice, read_weights
from echat.token2wav.onnx_session import released_tokenizer_note
from echat.token2wav.speech_tokenizer import load_speech_tokenizer
from echat.token2wav.token2wav import Token2Wav

NETWORKS = ("flow.pt", "hift.pt")
NEEDED_FILES = (*NETWORKS, "cosyvoice.yaml", SPEAKER_FILE, SPEECH_TOKENIZER_FILE)


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

    A WAV in the release becomes a voice named after it, if its ONNX networks are there. `voice` is a
    recording (3 to 30 s) that becomes the default voice.
    """
    report = CosyvoiceReport(source.name)
    with _open_release(source, folder, report) as release:
        token2wav = load_cosyvoice(release)
        for name in NETWORKS:
            report.add(name, _described(read_weights(release / name)))
        is_stated = (release / "cosyvoice.yaml").is_file()
        report.add("cosyvoice.yaml", "sizes read" if is_stated else "absent, released sizes used")
        _copy_onnx_networks(release, folder, report)
        if (folder / SPEECH_TOKENIZER_FOLDER / SPEECH_TOKENIZER_FILE).is_file():
            _add_voices(token2wav, sorted(release.glob("*.wav")), folder, report)
        if voice is not None:
            _add_voice(token2wav, voice, folder)
        default = voice.stem if voice is not None else next(iter(token2wav.voices), None)
        report.add("voices", f"{', '.join(token2wav.voices) or 'none'}; default {default or 'none'}")
        token2wav.config = token2wav.config.model_copy(update={"default_voice": default})
        token2wav.save(folder / TOKEN2WAV_FOLDER, dtype=None)
    return report


@contextmanager
def _open_release(source: Path, folder: Path, report: CosyvoiceReport) -> Iterator[Path]:
    """The folder with the released files: given, one below it, or unpacked inside `folder` for as long as it
    is needed."""
    if source.is_dir():
        candidates = [path for path in (source, *sorted(source.iterdir())) if (path / "flow.pt").is_file()]
        if not candidates:
            raise ValueError(
                f"{source}: expected flow.pt and hift.pt in this folder or one below, found none; give the "
                "unpacked CosyVoice-300M-25Hz or its tar"
            )
        yield candidates[0]
    elif source.is_file():
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=folder) as scratch:
            skipped = extract(source, lambda name: name in NEEDED_FILES or _is_recording(name), Path(scratch))
            if skipped:
                report.add("not needed", ", ".join(sorted(skipped)))
            yield Path(scratch)
    else:
        raise ValueError(
            f"{source}: expected CosyVoice-300M-25Hz.tar or its folder, found none; check the path"
        )


def _is_recording(name: str) -> bool:
    return name.endswith(".wav") and not name.startswith(".")


def _described(tensors: dict[str, Tensor]) -> str:
    layouts = {"weight_v": "old", "original1": "new"}
    found = [layout for mark, layout in layouts.items() if any(name.endswith(mark) for name in tensors)]
    values = sum(tensor.numel() for tensor in tensors.values())
    normed = f", {' and '.join(found)} weight-norm names folded" if found else ""
    return f"{len(tensors)} keys, {values:,} values, 0 missing, 0 left over{normed}"


def _copy_onnx_networks(release: Path, folder: Path, report: CosyvoiceReport) -> None:
    """The two ONNX networks of voice prompts, to where token2wav looks for them."""
    for name, target in ((SPEAKER_FILE, TOKEN2WAV_FOLDER), (SPEECH_TOKENIZER_FILE, SPEECH_TOKENIZER_FOLDER)):
        if not (release / name).is_file():
            report.add(name, "absent, so no voice can be made from a recording")
            continue
        (folder / target).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(release / name, folder / target / name)
        note = f", {released_tokenizer_note(release / name)}" if name == SPEECH_TOKENIZER_FILE else ""
        report.add(name, f"carried to {target}/{note}")


def _add_voices(token2wav: Token2Wav, recordings: list[Path], folder: Path, report: CosyvoiceReport) -> None:
    """Voices of the release; one that cannot be used is named with its reason, the rest works without it."""
    for recording in recordings:
        try:
            _add_voice(token2wav, recording, folder)
        except ValueError as error:
            report.add(recording.name, f"left out: {error}")


def _add_voice(token2wav: Token2Wav, recording: Path, folder: Path) -> None:
    token2wav.use_tokenizer(load_speech_tokenizer(folder / SPEECH_TOKENIZER_FOLDER))
    token2wav.voices[recording.stem] = token2wav.voice_from_file(recording)
