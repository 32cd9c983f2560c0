"""The model: padding never changes a row, caches never change a state, positions hold what was put there."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echat.dialogue.vocabulary import AUDIO, PAD, SPEECH, TEXT
from echat.model.adapter import AdapterConfig
from echat.model.blocks import sinusoids
from echat.model.llm import LLMConfig
from echat.model.optimized import optimize
from echat.model.speech_encoder import EncoderConfig, SpeechEncoder, Subsampler
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig

CONFIG = SpeechLLMConfig(
    encoder=EncoderConfig(dim=16, blocks=2, heads=2, ffn=32, max_frames=60),
    adapter=AdapterConfig(dim=12, blocks=1, heads=2, ffn=24, max_frames=40),
    llm=LLMConfig(vocab_size=50, dim=32, layers=2, heads=4, kv_heads=2, mlp=48),
    speech_codec_size=20,
)


@pytest.fixture(scope="module")
def model() -> SpeechLLM:
    torch.manual_seed(0)
    return SpeechLLM(CONFIG).eval().requires_grad_(False)


@given(st.integers(0, 10**6))
def test_llm_frames_halve_then_quarter_rounding_up(mel_frames: int) -> None:
    halved = math.ceil(mel_frames / 2)
    assert EncoderConfig().llm_frames(mel_frames) == math.ceil(halved / 4)


@settings(max_examples=20, deadline=None)
@given(lens=st.lists(st.integers(3, 70), min_size=1, max_size=4), extra=st.integers(0, 3))
def test_padded_row_is_the_row_alone(model: SpeechLLM, lens: list[int], extra: int) -> None:
    mel = torch.randn(len(lens), max(lens) + extra, 80, generator=torch.Generator().manual_seed(1))
    frames, frame_lens = model.encode(mel, torch.tensor(lens))
    for row, length in enumerate(lens):
        alone, alone_lens = model.encode(mel[row : row + 1, :length], torch.tensor([length]))
        assert alone.shape[1] == alone_lens[0] == frame_lens[row] == CONFIG.encoder.llm_frames(length)
        torch.testing.assert_close(frames[row, : frame_lens[row]], alone[0], atol=1e-5, rtol=1e-5)


def test_a_layer_mix_of_the_last_alone_is_no_mix() -> None:
    torch.manual_seed(0)
    shape = CONFIG.encoder.model_copy(update={"layer_mix": True})
    mixing, plain = SpeechEncoder(shape).eval(), SpeechEncoder(CONFIG.encoder).eval()
    own = {name: tensor for name, tensor in mixing.state_dict().items() if not name.startswith("layer_mix.")}
    plain.load_state_dict(own)
    mel, lens = torch.randn(2, 40, 80), torch.tensor([40, 21])
    with torch.no_grad():
        mixing.layer_mix.scores[-1] = 1e4
        wanted, wanted_lens = plain(mel, lens)
        found, found_lens = mixing(mel, lens)
    assert torch.equal(found_lens, wanted_lens)
    torch.testing.assert_close(found, wanted)


def test_a_layer_mix_learns_and_packs() -> None:
    torch.manual_seed(0)
    config = CONFIG.model_copy(update={"encoder": CONFIG.encoder.model_copy(update={"layer_mix": True})})
    model = SpeechLLM(config).eval()
    mel, lens = torch.randn(1, 40, 80), torch.tensor([40])
    frames, _ = model.encode(mel, lens)
    frames.square().sum().backward()
    assert (model.encoder.layer_mix.scores.grad != 0).all()
    packed = optimize(model, "fp32")
    torch.testing.assert_close(packed.encode(mel, lens)[0], frames.detach(), atol=1e-5, rtol=1e-5)


def test_subsampler_hears_nothing_ahead() -> None:
    subsampler = Subsampler(8, (1, 2, 2)).requires_grad_(False)
    frames = torch.randn(1, 21, 8)
    changed = frames.clone()
    changed[:, 13:] += 1.0
    before, _ = subsampler(frames, torch.tensor([21]))
    after, _ = subsampler(changed, torch.tensor([21]))
    assert torch.equal(before[:, :4], after[:, :4])  # output 3 hears frames up to 12
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_long_audio_is_refused_in_seconds(model: SpeechLLM) -> None:
    with pytest.raises(ValueError, match=r"at most 1 s, found about 2 s"):
        model.encode(torch.zeros(1, 160, 80), torch.tensor([160]))


def test_position_layouts() -> None:
    halves, woven = sinusoids(5, 6, "halves"), sinusoids(5, 6, "interleaved")
    assert torch.equal(halves[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    assert torch.equal(woven[0], torch.tensor([0.0, 1, 0, 1, 0, 1]))
    torch.testing.assert_close(halves[3, 0], torch.tensor(3.0).sin())
    torch.testing.assert_close(woven[3, 1], torch.tensor(3.0).cos())
    with pytest.raises(ValueError, match="even width"):
        sinusoids(5, 7, "halves")


def test_assemble_puts_each_kind_in_its_place(model: SpeechLLM) -> None:
    audio = torch.randn(3, 32)
    kinds = torch.tensor([[TEXT, AUDIO, SPEECH, PAD], [AUDIO, AUDIO, TEXT, SPEECH]])
    ids = torch.tensor([[7, 2, 21, 0], [0, 1, 7, 3]])
    embeds = model.assemble(kinds, ids, audio)
    text, speech = model.llm.text_embedding.weight, model.speech_embedding.weight
    assert torch.equal(embeds[0], torch.stack([text[7], audio[2], speech[21], torch.zeros(32)]))
    assert torch.equal(embeds[1], torch.stack([audio[0], audio[1], text[7], speech[3]]))


def test_assemble_lets_gradients_through() -> None:
    model = SpeechLLM(CONFIG)
    audio = torch.randn(2, 32, requires_grad=True)
    model.assemble(torch.tensor([[AUDIO, TEXT, SPEECH]]), torch.tensor([[1, 4, 5]]), audio).sum().backward()
    assert audio.grad is not None and audio.grad[1].eq(1).all() and audio.grad[0].eq(0).all()
    assert model.speech_embedding.weight.grad is not None
    assert model.speech_embedding.weight.grad.abs().sum(1).nonzero().tolist() == [[5]]


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_cached_equals_whole(model: SpeechLLM, chunk: int) -> None:
    embeds = torch.randn(2, 23, 32)
    whole, _ = model.hidden(embeds)
    cache, pieces = model.llm.new_cache(2, capacity=4), []
    for start in range(0, 23, chunk):
        piece, cache = model.hidden(embeds[:, start : start + chunk], cache=cache)
        pieces.append(piece)
    assert cache is not None and cache.length == 23
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 23])
def test_padding_on_the_left_changes_nothing(model: SpeechLLM, chunk: int) -> None:
    alone = torch.randn(1, 17, 32)
    whole, _ = model.hidden(alone)
    embeds = torch.cat([torch.zeros(1, 6, 32), alone], dim=1)
    mask = torch.arange(23)[None] >= 6
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    cache, pieces = model.llm.new_cache(), []
    for start in range(0, 23, chunk):
        stop = min(start + chunk, 23)
        piece, cache = model.llm.extend(
            embeds[:, start:stop], cache, mask[:, :stop], positions[:, start:stop]
        )
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1)[:, 6:], whole, atol=1e-5, rtol=1e-5)


def test_padding_on_the_right_needs_no_mask(model: SpeechLLM) -> None:
    embeds = torch.randn(1, 9, 32)
    padded = torch.cat([embeds, torch.randn(1, 4, 32)], dim=1)
    torch.testing.assert_close(model.hidden(padded)[0][:, :9], model.hidden(embeds)[0], atol=1e-5, rtol=1e-5)


def test_a_forked_cache_is_independent(model: SpeechLLM) -> None:
    cache = model.llm.new_cache()
    _, cache = model.llm.extend(torch.randn(1, 5, 32), cache)
    fork, step = cache.fork(), torch.randn(1, 1, 32)
    model.llm.extend(torch.randn(1, 1, 32), cache)
    after_other, _ = model.llm.extend(step, cache)  # continues the same length-5 value
    after_fork, _ = model.llm.extend(step, fork)
    assert torch.equal(after_other, after_fork)
    assert torch.equal(cache.expand(3).keys[:, 2], cache.keys[:, 0])


def test_heads_and_classes(model: SpeechLLM) -> None:
    hidden = torch.randn(2, 3, 32)
    combined = model.combined_logits(hidden)
    assert combined.shape == (2, 3, 50 + 21)
    assert torch.equal(combined[..., :50], model.text_logits(hidden))
    assert torch.equal(combined[..., 50:], model.speech_logits(hidden))
    assert model.speech_embedding.num_embeddings == 23


def test_untied_text_head() -> None:
    config = CONFIG.model_copy(update={"llm": CONFIG.llm.model_copy(update={"tie_embeddings": False})})
    model = SpeechLLM(config)
    hidden = torch.randn(1, 32)
    assert torch.equal(model.text_logits(hidden), hidden @ model.llm.lm_head.weight.T)


def test_parts_keep_the_names_that_recipes_use(model: SpeechLLM) -> None:
    parts = {name.split(".")[0] for name in model.state_dict()}
    assert parts == {
        "encoder", "subsampler", "adapter", "projection", "llm", "speech_embedding", "speech_head",
    }  # fmt: skip


def test_rotary_frequencies_keep_their_precision(model: SpeechLLM) -> None:
    low = SpeechLLM(CONFIG).to(torch.bfloat16)
    assert low.projection.weight.dtype == torch.bfloat16
    assert torch.equal(low.llm.model.rotary_emb.inv_freq, model.llm.model.rotary_emb.inv_freq)


def test_bfloat16_autocast_trains() -> None:
    model = SpeechLLM(CONFIG)
    with torch.autocast("cpu", torch.bfloat16):
        frames, lens = model.encode(torch.randn(2, 40, 80), torch.tensor([40, 31]))
        embeds = model.assemble(
            torch.full((2, 5), AUDIO), torch.arange(5).expand(2, 5), frames[:, :5].flatten(0, 1)
        )
        loss = model.combined_logits(model.hidden(embeds)[0]).float().logsumexp(-1).mean()
    loss.backward()
    assert lens.tolist() == [5, 4]
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    assert silent == {"speech_embedding.weight"}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
