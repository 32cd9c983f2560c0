"""Engines to measure: the shipped model, and larger shapes with random weights (speed does not read minds).

The larger shapes borrow the tokenizer of the shipped model, so their prompts are somewhat longer than with
their own.
"""

import torch
from torch import nn

from echat.dialogue.vocabulary import Vocabulary
from echat.infer.engine import Engine
from echat.infer.loading import load
from echat.model.llm import LLMConfig
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig
from echat.token2wav.token2wav import Token2Wav, Token2WavConfig
from echat.token2wav.voice import VoicePrompt

LLM_SHAPES = {
    "0.5b": LLMConfig(dim=896, layers=24, heads=14, kv_heads=2, mlp=4864),
    "3b": LLMConfig(),
}
PROMPT_IDS = 75  # of the voice: 3 s


def engine_of(size: str, dtype: torch.dtype, device: str = "cpu", speaks: bool = True) -> Engine:
    """`tiny`, or the released encoder and token2wav around a language model of that size."""
    tiny = load("echat-tiny", device)
    if size == "tiny":
        return tiny
    config = SpeechLLMConfig(llm=LLM_SHAPES[size])
    with torch.device("meta"):
        model = SpeechLLM(config)
    model = _random(model.to(dtype), device)
    model.reset_tables()
    model = model.to(dtype)
    vocabulary = Vocabulary.from_tokenizer(tiny.tokenizer, config.speech_codec_size, config.llm.vocab_size)
    token2wav = _random_token2wav(device) if speaks else None
    return Engine(model.eval(), tiny.tokenizer, vocabulary, "osum", token2wav, name=size)


def _random(module: nn.Module, device: str) -> nn.Module:
    """Weights of the usual size, filled in where they will stay."""
    module = module.to_empty(device=device).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for weight in module.parameters():
        if weight.ndim == 1:
            weight.fill_(1.0)
        else:
            weight.normal_(std=0.02, generator=generator)
    return module


def _random_token2wav(device: str) -> Token2Wav:
    torch.manual_seed(0)
    token2wav = Token2Wav(Token2WavConfig()).eval().requires_grad_(False).to(device)
    mel_frames = token2wav.config.flow.mel_frames(PROMPT_IDS)
    token2wav.voices["random"] = VoicePrompt(
        torch.randint(token2wav.config.flow.vocab_size, (PROMPT_IDS,)),
        torch.randn(mel_frames, token2wav.config.flow.output_size) - 5,
        torch.randn(192),
    )
    return token2wav
