"""Assembly of a model folder from what several trainings exported.

The speech language model is rounded to 16 bits; beside it lie `speech_tokenizer` and `token2wav` with voices.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from echat.audio.waveform import read
from echat.checkpoint import atomic_path, load_strict, read_tensors
from echat.config import load_config
from echat.model.model_folder import load_model, save_model
from echat.model_files import CONFIG_FILE, FLOW_FILE, SPEECH_TOKENIZER_FOLDER, TOKEN2WAV_FOLDER, VOCODER_FILE
from echat.token2wav.flow import FlowConfig
from echat.token2wav.hift.vocoder import VocoderConfig
from echat.token2wav.speech_tokenizer import SpeechTokenizer
from echat.token2wav.token2wav import Token2Wav, Token2WavConfig

LOWEST_PROMPT_RATE = 16_000  # Hz; our own models were trained on recordings of this rate


def write_speech_folders(
    output: Path, tokenizer: Path, flow: Path, vocoder: Path, voices: Mapping[str, Path], prompt: bool = False
) -> Token2Wav:
    """Write both folders; the first voice is the default. `prompt`: voices keep their recording as a prompt.

    Without it a voice is its embedding alone, and synthesis is faster by the length of the recording.
    """
    config = Token2WavConfig(
        speaker="mel_stats",
        default_voice=next(iter(voices), None),
        min_prompt_rate=LOWEST_PROMPT_RATE,
        flow=load_config(FlowConfig, flow / CONFIG_FILE),
        vocoder=load_config(VocoderConfig, vocoder / CONFIG_FILE),
    )
    token2wav = Token2Wav(config).eval()
    for module, path in (
        (token2wav.flow, flow / FLOW_FILE),
        (token2wav.vocoder, vocoder / VOCODER_FILE),
    ):
        load_strict(module, read_tensors(path), str(path))
    token2wav.use_tokenizer(SpeechTokenizer.from_folder(tokenizer))
    for name, recording in voices.items():
        voice = token2wav.voice_prompt(*read(recording), where=str(recording))
        token2wav.voices[name] = voice if prompt else voice.without_prompt()
    with atomic_path(output / TOKEN2WAV_FOLDER) as temporary:
        token2wav.save(temporary)
    with atomic_path(output / SPEECH_TOKENIZER_FOLDER) as temporary:
        shutil.copytree(tokenizer, temporary)
    return token2wav


def write_dialogue_model(output: Path, dialogue: Path) -> None:
    """Copy the speech language model in half precision, which halves the folder."""
    loaded = load_model(dialogue)
    config = loaded.config
    about = (config.profile, output.name, torch.float16, config.ctc, config.learned)
    save_model(output, loaded.model, loaded.tokenizer, *about)
