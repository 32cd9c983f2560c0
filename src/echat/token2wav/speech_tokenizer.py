"""Speech tokenizer: waveform -> speech ids, 25 a second, by a vector quantizer inside a small recogniser.

Words (CTC loss) and sound (mel regression) are predicted from the ids alone, so that the ids keep both.

Legend: batch, time = log-mel frames (100 a second), n = ids (25 a second), dim = width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from echat.audio.features import MEL_RATE, SPEECH_TOKENIZER_N_MELS, log_mel
from echat.audio.speech_tokens import SPEECH_TOKEN_RATE
from echat.checkpoint import load_strict, write_tensors
from echat.config import Config, load_config, save_config
from echat.model_files import CONFIG_FILE, SPEECH_TOKENIZER_FILE, WEIGHTS_FILE
from echat.quantized_weights import Quantization, read_weights
from echat.safe_loading import build_on_meta
from echat.token2wav.onnx_session import onnx_session, released_tokenizer_note
from echat.token2wav.quantizer import Quantizer, QuantizerConfig
from echat.token2wav.token_encoder import EncoderBlock, TokenEncoderConfig, relative_positions

FRAMES_PER_ID = MEL_RATE // SPEECH_TOKEN_RATE  # 4: two convolutions halve time
CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"  # class 0 is the CTC blank, character i is class i + 1


class SpeechTokenizerConfig(Config):
    """Sizes of our own speech tokenizer."""

    OMITTED_AT_DEFAULT: ClassVar = frozenset({"quantization"})

    kind: Literal["trained"] = "trained"
    n_mels: int = SPEECH_TOKENIZER_N_MELS
    dim: int = Field(192, description="width of all layers")
    heads: int = 4
    hidden: int = Field(768, description="width of the feed-forward layers")
    kernel: int = Field(9, description="reach of the depth-wise convolutions, in ids")
    blocks_before: int = Field(2, ge=1, description="blocks before the quantizer")
    blocks_after: int = Field(3, ge=1, description="blocks after it")
    mel_weight: float = Field(
        3.0, ge=0, description="weight of the mel regression beside the transcription loss"
    )
    quantizer: QuantizerConfig = QuantizerConfig()
    quantization: Quantization = {}  # of the weights on disk

    @model_validator(mode="after")
    def _consistent(self) -> "SpeechTokenizerConfig":
        if self.dim % (2 * self.heads) or self.kernel % 2 == 0:
            raise ValueError(
                f"expected dim a multiple of 2 * heads and an odd kernel, found {self.dim}, {self.heads}, "
                f"{self.kernel}"
            )
        return self

    @property
    def block(self) -> TokenEncoderConfig:
        """The attention block of this width."""
        return TokenEncoderConfig(
            input_size=self.dim, output_size=self.dim, attention_heads=self.heads, linear_units=self.hidden
        )


def id_count(mel_frames: int) -> int:
    """Speech ids of a clip of `mel_frames` log-mel frames."""
    return -(-mel_frames // FRAMES_PER_ID)


class ConformerBlock(nn.Module):
    """A depth-wise convolution for the near context, then attention and feed-forward."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.near = nn.Conv1d(
            config.dim, config.dim, config.kernel, padding=config.kernel // 2, groups=config.dim
        )
        self.mix = nn.Linear(config.dim, config.dim)
        self.block = EncoderBlock(config.block)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        near = self.near((self.norm(x) * mask[..., None]).transpose(1, 2)).transpose(1, 2)
        return self.block(x + self.mix(F.silu(near)), positions, mask)


class SpeechTokenizer(nn.Module):
    """mel -> two strided convolutions -> blocks -> quantiser -> blocks -> characters and mel."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.conv1 = nn.Conv1d(config.n_mels, dim, 3, 2, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, 2, padding=1)
        self.before = nn.ModuleList(ConformerBlock(config) for _ in range(config.blocks_before))
        self.to_code = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, config.quantizer.dim))
        self.quantizer = Quantizer(config.quantizer)
        self.from_code = nn.Linear(config.quantizer.dim, dim)
        self.after = nn.ModuleList(ConformerBlock(config) for _ in range(config.blocks_after))
        self.norm = nn.LayerNorm(dim)
        self.ctc_head = nn.Linear(dim, len(CHARACTERS) + 1)
        self.mel_head = nn.Linear(dim, FRAMES_PER_ID * config.n_mels)

    def encode_mel(self, mel: Tensor, mel_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors before the quantiser `(batch, n, code dim)` and their mask `(batch, n)`.

        `mel (batch, time, n_mels)`; what lies behind `mel_lens` has no influence.
        """
        lens = mel_lens
        x = mel.transpose(1, 2)
        for conv in (self.conv1, self.conv2):
            x = F.gelu(conv(x * _mask(lens, x.shape[2])[:, None]))
            lens = (lens + 1) // 2
        x, mask = x.transpose(1, 2), _mask(lens, x.shape[2])
        for block in self.before:
            x = block(x, self._positions(x), mask)
        return self.to_code(x), mask

    def decode_codes(self, code: Tensor, mask: Tensor) -> Tensor:
        """What the ids say, `(batch, n, dim)`, from quantised vectors."""
        x = self.from_code(code)
        for block in self.after:
            x = block(x, self._positions(x), mask)
        return self.norm(x)

    def _positions(self, x: Tensor) -> Tensor:
        return relative_positions(x.shape[1], self.config.dim).to(x)

    def loss(
        self, mel: Tensor, mel_lens: Tensor, characters: Tensor, character_lens: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss per clip `(batch,)`, and its parts.

        `characters (batch, length)` are CTC classes of :func:`character_classes`.
        """
        vectors, mask = self.encode_mel(mel, mel_lens)
        with torch.autocast(mel.device.type, enabled=False):
            code, _, commitment = self.quantizer(vectors, mask)
        x = self.decode_codes(code, mask)
        log_probs = self.ctc_head(x).float().log_softmax(-1).transpose(0, 1)
        lens = mask.sum(1)
        ctc = F.ctc_loss(
            log_probs, characters, lens, character_lens, reduction="none", zero_infinity=True
        ) / character_lens.clamp(min=1)
        time = mel.shape[1]
        made = self.mel_head(x).float().unflatten(-1, (FRAMES_PER_ID, -1)).flatten(1, 2)[:, :time]
        frame_mask = _mask(mel_lens, time)
        mel_error = ((made - mel).abs().mean(-1) * frame_mask).sum(1) / mel_lens
        parts = {"ctc": ctc, "mel": mel_error, "commitment": commitment}
        total = (
            ctc + self.config.mel_weight * mel_error + self.config.quantizer.commitment_weight * commitment
        )
        return total, parts

    @torch.inference_mode()
    def encode(self, waveforms: Sequence[Tensor] | Tensor, lens: Tensor | None = None) -> list[list[int]]:
        """Speech ids of 16 kHz waveforms, `ceil(samples // 160 / 4)` for each.

        A list of `(samples,)`, or one padded `(batch, samples)` with its `lens`.
        """
        if lens is not None:
            waveforms = [row[:n] for row, n in zip(waveforms, lens.tolist(), strict=True)]
        device = self.conv1.weight.device
        mels = [log_mel(waveform.cpu(), self.config.n_mels) for waveform in waveforms]
        mel_lens = torch.tensor([len(mel) for mel in mels], device=device)
        vectors, mask = self.encode_mel(pad_sequence(mels, batch_first=True).to(self.conv1.weight), mel_lens)
        ids = self.quantizer.ids(vectors)
        return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]

    @torch.inference_mode()
    def transcribe(self, speech_ids: Sequence[int]) -> str:
        """The words that the ids alone carry (greedy CTC): a cheap check of ids, not a recogniser."""
        ids = torch.tensor([list(speech_ids)], device=self.conv1.weight.device)
        x = self.decode_codes(self.quantizer.vectors(ids), torch.ones_like(ids, dtype=torch.bool))
        return collapse(self.ctc_head(x)[0].argmax(-1).tolist())

    def save(self, folder: str | Path, dtype: torch.dtype | None = torch.float16) -> None:
        """Write `config.yaml` and `model.safetensors`, without what only training needs of the codebook."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, folder / CONFIG_FILE)
        tensors = {k: v for k, v in self.state_dict().items() if not k.startswith(_TRAINING_ONLY)}
        codebook = {"quantizer.codebook": tensors.pop("quantizer.codebook")}
        half = {k: v.to(dtype) if dtype else v for k, v in tensors.items()}
        write_tensors(folder / WEIGHTS_FILE, half | codebook)  # the codebook stays in full precision

    @classmethod
    def from_folder(cls, folder: str | Path) -> "SpeechTokenizer":
        """The tokenizer saved in `folder`, ready to encode."""
        folder = Path(folder)
        config = load_config(SpeechTokenizerConfig, folder / CONFIG_FILE)
        path = folder / WEIGHTS_FILE
        tensors = read_weights(path, config.quantization).tensors
        config = config.model_copy(update={"quantization": {}})  # what is saved again is plain
        ignore = [name + "*" for name in _TRAINING_ONLY]
        build_on_meta(lambda: cls(config), tensors, str(path), ignore)
        tokenizer = cls(config)
        load_strict(tokenizer, tensors, str(path), ignore)
        return tokenizer.eval()


_TRAINING_ONLY = ("quantizer.counts", "quantizer.sums", "quantizer.pool", "quantizer.steps")


def _mask(lens: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=lens.device) < lens[:, None]


def character_classes(text: str) -> list[int]:
    """CTC classes of a text; all but a-z, apostrophe and space becomes a space, spaces are single."""
    plain = "".join(c if c in CHARACTERS else " " for c in text.lower())
    return [CHARACTERS.index(c) + 1 for c in " ".join(plain.split())]


def collapse(classes: Sequence[int]) -> str:
    """Text of a CTC path: repeats merged, blanks dropped."""
    kept = [c for c, before in zip(classes, [0, *classes], strict=False) if c and c != before]
    return "".join(CHARACTERS[c - 1] for c in kept).strip()


def load_speech_tokenizer(folder: str | Path) -> "SpeechTokenizer | OnnxSpeechTokenizer":
    """Our own tokenizer, or the released one when `folder` holds its ONNX file."""
    folder = Path(folder)
    onnx_file = folder / SPEECH_TOKENIZER_FILE
    if onnx_file.is_file():
        return OnnxSpeechTokenizer(onnx_file)
    return SpeechTokenizer.from_folder(folder)


# --- The released speech tokenizer (`speech_tokenizer_v1.onnx` of CosyVoice-300M-25Hz).

MAX_SECONDS = 30


class OnnxSpeechTokenizer:
    """16 kHz waveforms -> speech ids 0..4095, 25 a second, each clip at most 30 s."""

    def __init__(self, path: str | Path) -> None:
        """Refuses the 50 Hz file, which has the same name, by its hash."""
        self.path = Path(path)
        self._session: Any = onnx_session(self.path)
        released_tokenizer_note(self.path)

    def encode(self, waveforms: Sequence[Tensor] | Tensor, lens: Tensor | None = None) -> list[list[int]]:
        """Speech ids of a list of `(samples,)`, or of one padded `(batch, samples)` with its `lens`."""
        if lens is not None:
            waveforms = [row[:n] for row, n in zip(waveforms, lens.tolist(), strict=True)]
        return [self._encode(waveform) for waveform in waveforms]

    def _encode(self, waveform: Tensor) -> list[int]:
        mel = log_mel(waveform, SPEECH_TOKENIZER_N_MELS)
        if len(mel) > MAX_SECONDS * MEL_RATE:
            raise ValueError(
                f"speech tokenizer: expected at most {MAX_SECONDS} s, found {len(mel) / MEL_RATE:.1f} s; "
                "cut the clip"
            )
        features, length = self._session.get_inputs()[:2]
        inputs = {
            features.name: mel.T[None].contiguous().numpy(),
            length.name: np.array([len(mel)], dtype=np.int32),
        }
        ids = [int(i) for i in np.asarray(self._session.run(None, inputs)[0]).flatten()]
        if abs(len(ids) - id_count(len(mel))) > 1:
            raise ValueError(
                f"{self.path}: expected {id_count(len(mel))} ids ({SPEECH_TOKEN_RATE} a second), "
                f"found {len(ids)}; "
                "this is a tokenizer of another rate, take that of CosyVoice-300M-25Hz"
            )
        return ids
