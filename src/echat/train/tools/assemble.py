"""`python -m echat.train.tools.assemble [--dialogue D] --tokenizer T --flow F --vocoder V --voice N=WAV OUT`.

Joins what the trainings exported to one model folder: the speech language model, rounded to 16 bits, and what
makes it speak, `OUTPUT/speech_tokenizer` and `OUTPUT/token2wav` with its voices.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from echat.audio.waveform import read
from echat.checkpoint import atomic_path, load_strict, read_tensors
from echat.config import load_config
from echat.errors import Arguments, command
from echat.model.model_folder import load_model, save_model
from echat.model_files import CONFIG_FILE, FLOW_FILE, SPEECH_TOKENIZER_FOLDER, TOKEN2WAV_FOLDER, VOCODER_FILE
from echat.token2wav.flow import FlowConfig
from echat.token2wav.hift.vocoder import VocoderConfig
from echat.token2wav.speech_tokenizer import SpeechTokenizer
from echat.token2wav.token2wav import Token2Wav, Token2WavConfig

LOWEST_PROMPT_RATE = 16_000  # Hz; voices of our own models were learned from recordings of this rate


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
    config, name = loaded.config, output.name
    save_model(
        output,
        loaded.model,
        loaded.tokenizer,
        config.profile,
        name,
        torch.float16,
        ctc=config.ctc,
        learned=config.learned,
    )


@command
def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m echat.train.tools.assemble", description="Join the parts of a model that speaks."
    )
    parser.add_argument("--dialogue", type=Path, help="what the last stage exported; none: a voice alone")
    for part in ("tokenizer", "flow", "vocoder"):
        parser.add_argument(f"--{part}", type=Path, required=True, help=f"what training the {part} exported")
    parser.add_argument("--voice", action="append", default=[], metavar="NAME=RECORDING", help="repeatable")
    parser.add_argument("--prompt", action="store_true", help="voices keep their recording as a prompt")
    parser.add_argument("output", type=Path, help="model folder")
    options = parser.parse_args(arguments)
    voices = {name: Path(path) for name, _, path in (voice.partition("=") for voice in options.voice)}
    if options.dialogue is not None:
        write_dialogue_model(options.output, options.dialogue)
    write_speech_folders(
        options.output, options.tokenizer, options.flow, options.vocoder, voices, options.prompt
    )
    print(f"{options.output}: {SPEECH_TOKENIZER_FOLDER} and {TOKEN2WAV_FOLDER} with {len(voices)} voices")


if __name__ == "__main__":
    sys.exit(main())
