"""Token2wav, the synthesis: speech ids + voice prompt -> mel (flow matching) -> waveform (vocoder).

Legend: n = speech ids, time = mel frames, samples = hop * time; 25 ids a second, 256 and 22.05 kHz released.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from echat.audio.features import SAMPLE_RATE, VOCODER_RATE, vocoder_mel
from echat.audio.resampling import resample
from echat.audio.speech_tokens import AnySpeechTokenizer
from echat.audio.waveform import check, read
from echat.checkpoint import atomic_path, load_strict, write_tensors
from echat.config import Config, load_config, nearest, save_config
from echat.model_files import (
    CONFIG_FILE,
    FLOW_FILE,
    SPEAKER_FILE,
    SPEECH_TOKENIZER_FOLDER,
    VOCODER_FILE,
    VOICES_FOLDER,
)
from echat.quantized_weights import Quantization, read_weights
from echat.safe_loading import build_on_meta
from echat.token2wav.flow import Flow, FlowConfig
from echat.token2wav.hift.vocoder import Vocoder, VocoderConfig
from echat.token2wav.noise import seeded_generator
from echat.token2wav.speaker_embedding import CampPlus, MelStatistics
from echat.token2wav.speech_tokenizer import load_speech_tokenizer
from echat.token2wav.voice import MAX_PROMPT_SECONDS, VoicePrompt, check_speech_duration


class Token2WavConfig(Config):
    """Both networks, and what voices they were trained with."""

    OMITTED_AT_DEFAULT: ClassVar = frozenset({"quantization"})

    speaker: Literal["mel_stats", "campplus"] = "campplus"
    default_voice: str | None = Field(None, description="name of the default voice")
    min_prompt_rate: int = Field(VOCODER_RATE, description="lowest sample rate of a reference recording, Hz")
    quantization: Quantization = {}  # of the weights on disk; names begin with flow. or hift.
    flow: FlowConfig = FlowConfig()
    vocoder: VocoderConfig = VocoderConfig()

    @model_validator(mode="after")
    def _same_mel(self) -> "Token2WavConfig":
        if self.flow.mel != self.vocoder.mel:
            raise ValueError(
                f"flow: expected to make {self.vocoder.mel}, which the vocoder reads, found {self.flow.mel}; "
                "set its output_size, sampling_rate and hop"
            )
        return self


class Token2Wav(nn.Module):
    """Flow and vocoder; stateless between calls, so many conversations may share one."""

    def __init__(self, config: Token2WavConfig, folder: str | Path | None = None) -> None:
        """`folder` is where voices, speaker network and (beside it) speech tokenizer are looked for."""
        super().__init__()
        self.config = config
        self.flow = Flow(config.flow)
        self.vocoder = Vocoder(config.vocoder)
        self.voices: dict[str, VoicePrompt] = {}
        self._folder = None if folder is None else Path(folder)
        self._tokenizer: AnySpeechTokenizer | None = None
        self._speaker: Callable[[Tensor, Tensor], Tensor] | None = None
        if self._folder is not None:
            for path in sorted((self._folder / VOICES_FOLDER).glob("*.safetensors")):
                self.voices[path.stem] = VoicePrompt.load(path)

    @property
    def rate(self) -> int:
        """Samples per second of what it speaks."""
        return self.config.vocoder.sampling_rate

    @property
    def device(self) -> torch.device:
        return self.flow.input_embedding.weight.device

    @torch.inference_mode()
    def synthesize(
        self,
        speech_ids: Sequence[int] | Tensor,
        voice: VoicePrompt | str | None = None,
        seed: int | None = 0,
        speed: float = 1.0,
        *,
        z: Tensor | None = None,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Waveform `(samples,)` at `rate` on the CPU; no ids give an empty one.

        `voice` may be a name of :attr:`voices`; None is the default voice.
        The same ids, voice, seed and speed give the same samples; `seed=None` chooses one. `speed` 1.25 is
        faster.
        `z`, `phase` and `noise` replace the random numbers of flow and vocoder.
        """
        if not (math.isfinite(speed) and 0.1 <= speed <= 10):
            raise ValueError(f"speed: expected 0.1 to 10, found {speed}; 1.0 is as trained, 1.25 is faster")
        ids = self.check_ids(speech_ids)
        if not len(ids):
            return torch.zeros(0)
        generator = seeded_generator(seed)
        mel = self.mel(ids, self.voice(voice), z, generator)
        if speed != 1.0:
            mel = F.interpolate(mel, size=int(mel.shape[2] / speed), mode="linear")
        waveform, _ = self.vocoder(mel, phase=phase, noise=noise, generator=generator)
        return waveform[0].float().cpu()

    def mel(
        self,
        ids: Tensor,
        voice: VoicePrompt,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mel `(1, 80, time)` of checked ids `(n,)`."""
        prompt_ids, prompt_mel, embedding = self.voice_tensors(voice)
        return self.flow(ids[None], prompt_ids, prompt_mel, embedding, z, generator)

    def voice(self, voice: VoicePrompt | str | None) -> VoicePrompt:
        """A voice by name; None is the default voice, a prompt is itself."""
        if isinstance(voice, VoicePrompt):
            return voice
        name = voice or self.config.default_voice
        if name is None and len(self.voices) == 1:
            return next(iter(self.voices.values()))
        if name is None:
            raise ValueError(
                "voice: this model has no default voice; expected a reference recording or one of "
                + (", ".join(self.voices) or "(none)")
            )
        if name not in self.voices:
            raise ValueError(f"voice: {name!r} is unknown, {nearest(name, self.voices)}")
        return self.voices[name]

    @property
    def tokenizer(self) -> AnySpeechTokenizer:
        """The speech tokenizer that lies beside this token2wav's folder."""
        if self._tokenizer is None:
            if self._folder is None:
                raise ValueError("voice prompt: this token2wav came from no folder, give it a tokenizer")
            self.use_tokenizer(load_speech_tokenizer(self._folder.parent / SPEECH_TOKENIZER_FOLDER))
            assert self._tokenizer is not None
        return self._tokenizer

    def use_tokenizer(self, tokenizer: AnySpeechTokenizer) -> None:
        """Make voice prompts with this tokenizer, which does not become a part of the synthesis."""
        object.__setattr__(self, "_tokenizer", tokenizer)  # past the registration of submodules

    @property
    def speaker(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The speaker embedding network of this token2wav."""
        if self._speaker is None:
            if self.config.speaker == "mel_stats":
                self._speaker = MelStatistics(self.rate)
            else:
                self._speaker = CampPlus((self._folder or Path()) / SPEAKER_FILE)
        return self._speaker

    def voice_from_file(self, path: str | Path) -> VoicePrompt:
        """The voice of a sound file in which somebody speaks."""
        waveform, rate = read(path)
        check_speech_duration(waveform, rate, str(path))
        return self.voice_prompt(waveform, rate, str(path))

    def voice_prompt(self, waveform: Tensor, rate: int, where: str = "voice prompt") -> VoicePrompt:
        """The voice of a mono reference recording `(samples,)`; compute once, use for many replies.

        The mel is in the format of the flow; ids and speaker embedding come from that same wave at 16 kHz. A
        recording of less than `min_prompt_rate` lacks the upper band of a voice and is refused.
        """
        mel, min_rate = self.config.flow.mel, self.config.min_prompt_rate
        if rate < min_rate:
            raise ValueError(
                f"{where}: expected a recording of at least {min_rate} Hz, found {rate} Hz; record it anew"
            )
        check(waveform, rate, where, min_seconds=(mel.edge + 1) / mel.rate, max_seconds=MAX_PROMPT_SECONDS)
        waveform = resample(waveform.float(), rate, mel.rate)
        waveform_16k = resample(waveform, mel.rate, SAMPLE_RATE)
        ids = torch.tensor(self.tokenizer.encode([waveform_16k])[0], dtype=torch.long)
        return VoicePrompt(ids, vocoder_mel(waveform, mel), self.speaker(waveform, waveform_16k))

    def voice_tensors(self, voice: VoicePrompt) -> tuple[Tensor, Tensor, Tensor]:
        """The voice as a batch of one, where the networks are."""
        weight = self.flow.input_embedding.weight
        ids = self.check_ids(voice.speech_ids)
        return ids[None], voice.mel[None].to(weight), voice.embedding[None].to(weight)

    def check_ids(self, speech_ids: Sequence[int] | Tensor) -> Tensor:
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
        """Write `config.yaml`, `flow.safetensors`, `hift.safetensors`, `voices/`, and the speaker network if
        there is one."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, folder / CONFIG_FILE)
        write_tensors(folder / FLOW_FILE, self.flow.state_dict(), dtype)
        write_tensors(folder / VOCODER_FILE, self.vocoder.state_dict(), dtype)
        for name, voice in self.voices.items():
            voice.save(folder / VOICES_FOLDER / f"{name}.safetensors")
        network = (self._folder or folder) / SPEAKER_FILE
        if network.is_file() and network.parent.resolve() != folder.resolve():
            with atomic_path(folder / SPEAKER_FILE) as temporary:
                shutil.copyfile(network, temporary)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Token2Wav":
        """The networks saved in `folder`, in fp32 on the CPU, ready to speak."""
        folder = Path(folder)
        config = load_config(Token2WavConfig, folder / CONFIG_FILE)
        paths = {name: folder / f"{name}.safetensors" for name in ("flow", "hift")}
        tensors = {
            name: read_weights(path, config.quantization, f"{name}.").tensors for name, path in paths.items()
        }
        config = config.model_copy(update={"quantization": {}})  # what is saved again is plain
        build_on_meta(lambda: Flow(config.flow), tensors["flow"], str(paths["flow"]))
        build_on_meta(lambda: Vocoder(config.vocoder), tensors["hift"], str(paths["hift"]))
        token2wav = cls(config, folder)
        for module, name in ((token2wav.flow, "flow"), (token2wav.vocoder, "hift")):
            load_strict(module, tensors[name], str(paths[name]))
        return token2wav.eval()
