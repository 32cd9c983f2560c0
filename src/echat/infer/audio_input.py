"""Audio of a user turn -> log-mel -> encoder frames for the language model (step 1 of `Engine.reply`).

Legend: T mel frames (10 ms), D frames for the language model (80 ms), dim its width.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from echat.audio import waveform as waveforms
from echat.audio.features import HOP, SAMPLE_RATE, log_mel
from echat.audio.lead_in import with_lead_in
from echat.audio.vad import has_speech
from echat.checkpoint import COPY_AGAIN
from echat.dialogue.rendering import AudioSegment, Segment
from echat.model.blocks import PositionTable
from echat.model.speech_llm import SpeechLLM
from echat.safe_loading import describe_non_finite


@dataclass(frozen=True)
class Recording:
    """Audio in pieces, each a path, a 16 kHz waveform or a mel that is encoded by itself.

    The frames of a piece do not depend on the next one, so a long question can be encoded and prefilled while
    it is spoken, in bounded RAM.
    """

    pieces: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ValueError("recording: expected at least one piece of sound, found none")


def split_recordings(segments: Sequence[Segment]) -> Iterator[Segment]:
    """The same prompt with every piece of a recording as a segment."""
    for segment in segments:
        if isinstance(segment, AudioSegment) and isinstance(segment.audio, Recording):
            yield from (AudioSegment(piece, segment.is_target) for piece in segment.audio.pieces)
        else:
            yield segment


def to_mel(audio: Any, n_mels: int, lead_in: bool = True, most_seconds: float = math.inf) -> Tensor:
    """Log-mel (T, n_mels) of a file path, a 16 kHz waveform (samples,), or a mel that is returned as it is.

    Audio that begins abruptly gets a lead-in of background noise here, as does each piece of a recording:
    unless `lead_in` is False or the audio would become longer than `most_seconds`.
    """
    audio = _load_audio(audio)
    if not isinstance(audio, Tensor) or audio.ndim not in (1, 2):
        found = f"shape {tuple(audio.shape)}" if isinstance(audio, Tensor) else type(audio).__name__
        raise ValueError(
            f"audio: expected a path, a 16 kHz waveform (samples,) or a mel (frames, {n_mels}), "
            f"found {found}; average the channels of stereo sound first"
        )
    if audio.ndim == 1:
        samples = _in_full_scale(audio)
        waveforms.check(samples, SAMPLE_RATE, "audio")
        led = with_lead_in(samples) if lead_in else samples
        return log_mel(led if len(led) <= most_seconds * SAMPLE_RATE else samples, n_mels)
    if audio.shape[1] != n_mels or not len(audio):
        raise ValueError(
            f"mel: expected (frames, {n_mels}) with at least one frame, found {tuple(audio.shape)}"
        )
    return audio


def _load_audio(audio: Any) -> Any:
    """A path as its waveform, an array as a tensor; anything else as it is."""
    if isinstance(audio, str | Path):
        audio, _ = waveforms.read(str(audio), SAMPLE_RATE)
    return torch.from_numpy(audio) if isinstance(audio, np.ndarray) else audio


def _in_full_scale(samples: Tensor) -> Tensor:
    """Samples in [-1, 1], also of integers and of floats that hold integers."""
    if samples.is_floating_point():
        return waveforms.in_full_scale(samples)
    return samples / float(torch.iinfo(samples.dtype).max + 1)


def holds_speech(audio: Any) -> bool:
    """Voice activity detection: False only for a waveform, or a file of one, without any speech."""
    if isinstance(audio, Recording):
        return any(holds_speech(piece) for piece in audio.pieces)
    audio = _load_audio(audio)
    if not isinstance(audio, Tensor) or audio.ndim != 1:
        return True
    return has_speech(_in_full_scale(audio).float().cpu().numpy())


def fingerprint(audio: Any, lead_in: bool = True) -> bytes:
    """Cache key of audio: a digest of the file or of the samples, equal for equal audio."""
    digest = hashlib.blake2b(digest_size=16, person=b"" if lead_in else b"as it is")
    if isinstance(audio, str | Path):
        path = Path(audio)  # decoding refuses one that is no file
        digest.update(path.read_bytes() if path.is_file() else str(path).encode())
    elif isinstance(audio, Tensor):
        digest.update(f"{audio.dtype} {tuple(audio.shape)}".encode())
        digest.update(audio.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(audio, np.ndarray):
        digest.update(f"{audio.dtype} {audio.shape}".encode() + audio.tobytes())
    else:  # refused by `to_mel`
        digest.update(str(id(audio)).encode())
    return digest.digest()


@torch.inference_mode()
def encode_audio(model: SpeechLLM, mels: Sequence[Tensor], released_padding: bool = False) -> list[Tensor]:
    """Encode mels (T_i, n_mels), together in one batch -> frames (D_i, dim) each, as if each were alone."""
    if not mels:
        return []
    _refuse_longer_than_positions(model, max(len(mel) for mel in mels))
    weight = model.projection.weight
    lens = torch.tensor([len(mel) for mel in mels], device=weight.device)
    batch = pad_sequence([mel.to(weight.device) for mel in mels], batch_first=True)
    frames, frame_lens = model.encode(batch, lens, released_padding)
    refuse_not_finite(model, frames)
    return [row[:length] for row, length in zip(frames, frame_lens.tolist())]


def longest_seconds(model: SpeechLLM) -> float:
    """The longest audio that the position tables allow."""
    tables: tuple[PositionTable, ...] = (model.encoder.positions, model.adapter.positions)
    return min(table.max_frames * table.frame_seconds for table in tables)


def _refuse_longer_than_positions(model: SpeechLLM, mel_frames: int) -> None:
    """AudioError, in seconds, for audio beyond the position tables."""
    limit = longest_seconds(model)
    seconds = mel_frames * HOP / SAMPLE_RATE
    if seconds > limit:
        raise waveforms.AudioError(
            f"audio: expected at most {limit:g} s for this model, found {seconds:.1f} s; cut it into pieces"
        )


def refuse_not_finite(model: nn.Module, values: Tensor) -> None:
    """ValueError for NaN or infinity among computed values; it names weights that are not finite."""
    if bool(torch.isfinite(values).all()):
        return
    found = describe_non_finite(model.state_dict())
    if found:
        raise ValueError(f"model: expected finite weights, found {found}; {COPY_AGAIN}")
    raise ValueError(
        "model: expected finite numbers, found others though all weights are finite: they grow beyond the "
        "precision; load the model with dtype float32"
    )
