"""A speech encoder of other mel bins and another frame rate: data, training, inference follow its shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from echat.audio.waveform import write
from echat.data.audio_loading import AudioLoader
from echat.data.collation import collate_dialogues
from echat.data.examples import CachedTokenizer, DialogueBuilder
from echat.data.mixture import SampledItem
from echat.data.sample import AudioRef, Sample
from echat.dialogue.tasks import DecodingDefaults
from echat.dialogue.turns import ask
from echat.infer.audio_input import encode_audio, to_mel
from echat.infer.engine import Engine
from echat.model.adapter import AdapterConfig
from echat.model.llm import LLMConfig
from echat.model.model_folder import load_model, save_model
from echat.model.speech_encoder import EncoderConfig
from echat.model.speech_llm import AUDIO, SpeechLLM, SpeechLLMConfig
from echat.model.text_tokenizer import TextTokenizer
from echat.train.objectives.dialogue_loss import DialogueLoss

TOKENIZER = Path(__file__).parent.parent / "assets" / "model" / "llm"
ENCODER = EncoderConfig(
    n_mels=128, dim=16, blocks=1, heads=2, ffn=16, max_frames=600, subsampler_strides=(3, 1)
)  # 6 mel frames per position: 60 ms


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.from_folder(TOKENIZER)


@pytest.fixture(scope="module")
def model(tokenizer: TextTokenizer) -> SpeechLLM:
    torch.manual_seed(0)
    return SpeechLLM(SpeechLLMConfig(
        encoder=ENCODER,
        adapter=AdapterConfig(dim=16, blocks=1, heads=2, ffn=16, max_frames=200),
        llm=LLMConfig(vocab_size=len(tokenizer), dim=16, layers=1, heads=2, kv_heads=1, mlp=16),
        speech_codec_size=32,
    ))  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, paths = tmp_path_factory.mktemp("clips"), []
    for number, samples in enumerate((16_000, 9_001, 12_345)):
        paths.append(folder / f"{number}.wav")
        tone = 0.3 * torch.sin(torch.arange(samples) * (0.05 + 0.02 * number))
        write(paths[-1], tone + 0.01 * torch.randn(samples), 16_000)
    return paths


def test_the_shape_says_durations(model: SpeechLLM) -> None:
    assert (ENCODER.llm_frame_seconds, ENCODER.samples_per_llm_frame) == (pytest.approx(0.06), 960)
    mel = torch.randn(1, 100, 128)
    frames, lens = model.encode(mel, torch.tensor([100]))
    assert frames.shape[1] == int(lens) == ENCODER.llm_frames(100) == 17
    with pytest.raises(ValueError, match="subsampler_strides"):
        EncoderConfig(subsampler_strides=(2, 0))
    assert "subsampler_strides" not in EncoderConfig().model_dump()


def test_collated_dialogues_take_a_training_step(
    model: SpeechLLM, tokenizer: TextTokenizer, clips: list[Path]
) -> None:
    vocabulary = tokenizer.vocabulary(32, len(tokenizer))
    build = DialogueBuilder(CachedTokenizer(tokenizer), vocabulary, AudioLoader(), ENCODER)
    samples = [Sample(f"{n}", audio=AudioRef(str(path)), text="hello") for n, path in enumerate(clips)]
    examples = [build(SampledItem(sample, "asr", 0, 0)) for sample in samples]
    for example in examples:
        assert (example.kinds == AUDIO).sum() == ENCODER.llm_frames(len(example.mels[0]))
    batch = collate_dialogues(examples)
    assert batch.mel.shape[2] == 128
    loss = DialogueLoss(model, vocabulary.text_size, None)(batch)
    loss.total.backward()
    assert all(conv.weight.grad.abs().sum() > 0 for conv in model.subsampler.convs)
    model.zero_grad()


def test_a_model_folder_of_it_replies(
    model: SpeechLLM, tokenizer: TextTokenizer, clips: list[Path], tmp_path: Path
) -> None:
    save_model(tmp_path, model, tokenizer)
    loaded = load_model(tmp_path)
    assert loaded.config.model.encoder == ENCODER
    engine = Engine(loaded.model.requires_grad_(False), loaded.tokenizer, loaded.vocabulary)
    mel = to_mel(clips[0], 128)
    (frames,) = encode_audio(engine.model, [mel])
    assert len(frames) == ENCODER.llm_frames(len(mel))
    reply = engine.run(ask(audio=clips[0]), "asr", decoding=DecodingDefaults(max_new_ids=3))
    assert len(reply.text_ids) <= 3
