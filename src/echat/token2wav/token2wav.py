"""Speech ids + voice -> waveform: the flow makes a mel, the vocoder makes the sound.

Legend: n = speech ids (25 a second), time = mel frames, samples = 256 * time at 22.05 kHz.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echat.audio.features import VOCODER_RATE
from echat.checkpoint import load_strict, read_tensors, write_tensors
from echat.config import Config, load_config, save_config
from echat.token2wav.cosyvoice_weights import fold_vocoder, read_cosyvoice_yaml, read_weights
from echat.token2wav.flow import Flow, FlowConfig
from echat.token2wav.speaker import MelStatistics
from echat.token2wav.vocoder import Vocoder, VocoderConfig
from echat.token2wav.voice import VoicePrompt


class Token2WavConfig(Config):
    """Both networks, and what kind of speaker embedding they were trained with."""

    speaker: Literal["mel_stats", "campplus"] = "campplus"
    flow: FlowConfig = FlowConfig()
    vocoder: VocoderConfig = VocoderConfig()


class Token2Wav(nn.Module):
    """Flow and vocoder; holds no state between calls, so many conversations may share one."""

    rate = VOCODER_RATE

    def __init__(self, config: Token2WavConfig) -> None:
        super().__init__()
        self.config = config
        self.flow = Flow(config.flow)
        self.vocoder = Vocoder(config.vocoder)

    @property
    def device(self) -> torch.device:
        return self.flow.input_embedding.weight.device

    @torch.inference_mode()
    def synthesize(
        self,
        speech_ids: Sequence[int] | Tensor,
        voice: VoicePrompt,
        seed: int | None = 0,
        speed: float = 1.0,
        *,
        z: Tensor | None = None,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Waveform `(samples,)` at 22.05 kHz on the CPU; no ids give an empty one.

        The same ids, voice, seed and speed give the same samples; `seed=None` draws anew. `speed` 1.25 is faster.
        `z`, `phase` and `noise` replace the draws of flow and vocoder.
        """
        if not (math.isfinite(speed) and 0.1 <= speed <= 10):
            raise ValueError(f"speed: expected 0.1 to 10, found {speed}; 1.0 is as learned, 1.25 is faster")
        ids = self.checked_ids(speech_ids)
        if not len(ids):
            return torch.zeros(0)
        generator = seeded(seed)
        mel = self.mel(ids, voice, z, generator)
        if speed != 1.0:
            mel = F.interpolate(mel, size=int(mel.shape[2] / speed), mode="linear")
        waveform, _ = self.vocoder(mel, phase=phase, noise=noise, generator=generator)
        return waveform[0].float().cpu()

    def mel(
        self, ids: Tensor, voice: VoicePrompt, z: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Mel `(1, 80, time)` of checked ids `(n,)`."""
        prompt_ids, prompt_mel, embedding = self.placed(voice)
        return self.flow(ids[None], prompt_ids, prompt_mel, embedding, z, generator)

    def placed(self, voice: VoicePrompt) -> tuple[Tensor, Tensor, Tensor]:
        """The voice as a batch of one, where the networks are."""
        weight = self.flow.input_embedding.weight
        ids = self.checked_ids(voice.speech_ids)
        return ids[None], voice.mel[None].to(weight), voice.embedding[None].to(weight)

    def checked_ids(self, speech_ids: Sequence[int] | Tensor) -> Tensor:
        """Ids `(n,)` on the device; refuses what is not in the codebook."""
        ids = torch.as_tensor(speech_ids, dtype=torch.long).flatten()
        size = self.config.flow.vocab_size
        wrong = ((ids < 0) | (ids >= size)).nonzero().flatten()
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(
                f"speech ids: expected integers in 0..{size - 1}, found {int(ids[at])} at position {at}; "
                "strip begin and end marks before synthesis"
            )
        return ids.to(self.device)

    def save(self, folder: str | Path, dtype: torch.dtype | None = torch.float16) -> None:
        """Write `config.yaml`, `flow.safetensors` and `hift.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, folder / "config.yaml")
        write_tensors(folder / "flow.safetensors", self.flow.state_dict(), dtype)
        write_tensors(folder / "hift.safetensors", self.vocoder.state_dict(), dtype)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Token2Wav":
        """The networks saved in `folder`, in fp32 on the CPU, ready to speak."""
        folder = Path(folder)
        token2wav = cls(load_config(Token2WavConfig, folder / "config.yaml"))
        for module, name in ((token2wav.flow, "flow"), (token2wav.vocoder, "hift")):
            path = folder / f"{name}.safetensors"
            load_strict(module, read_tensors(path), str(path))
        return token2wav.eval()

    @classmethod
    def from_released(cls, folder: str | Path) -> "Token2Wav":
        """The released `flow.pt` and `hift.pt`, with the sizes of `cosyvoice.yaml` when that lies beside them."""
        folder = Path(folder)
        config = Token2WavConfig()
        if (folder / "cosyvoice.yaml").is_file():
            flow, vocoder = read_cosyvoice_yaml((folder / "cosyvoice.yaml").read_text(encoding="utf-8"))
            config = Token2WavConfig(flow=flow, vocoder=vocoder)
        token2wav = cls(config)
        load_strict(token2wav.flow, read_weights(folder / "flow.pt"), str(folder / "flow.pt"))
        load_strict(token2wav.vocoder, fold_vocoder(read_weights(folder / "hift.pt")), str(folder / "hift.pt"))
        return token2wav.eval()


def voices(folder: str | Path) -> dict[str, Path]:
    """The voices that come with a token2wav folder: name -> file."""
    return {path.stem: path for path in sorted((Path(folder) / "voices").glob("*.safetensors"))}


def speaker_embedding(config: Token2WavConfig, folder: str | Path) -> MelStatistics:
    """What makes speaker embeddings for this token2wav; CAM++ is `campplus.onnx` in its folder."""
    if config.speaker == "mel_stats":
        return MelStatistics()
    from echat.token2wav.speaker import CampPlus

    return CampPlus(Path(folder) / "campplus.onnx")


def seeded(seed: int | None) -> torch.Generator | None:
    """A generator that starts at `seed`; None = the global one."""
    return None if seed is None else torch.Generator().manual_seed(seed)
