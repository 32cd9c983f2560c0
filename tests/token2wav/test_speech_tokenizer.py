"""Waveforms become ids: as many as promised, each clip by itself, and the codebook follows what it sees."""

import pytest
import torch

from echat.token2wav.quantizer import Quantizer, QuantizerConfig
from echat.token2wav.speech_tokenizer import (
    SpeechTokenizer,
    SpeechTokenizerConfig,
    character_classes,
    collapse,
    id_count,
    load_speech_tokenizer,
)

SMALL = SpeechTokenizerConfig(
    dim=16, heads=2, hidden=32, blocks_before=1, blocks_after=1,
    quantizer=QuantizerConfig(size=32, dim=8, warmup_steps=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> SpeechTokenizer:
    torch.manual_seed(0)
    return SpeechTokenizer(SMALL).eval()


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("samples", [320, 639, 640, 800, 16_000, 16_001, 17_123])
def test_25_ids_a_second(tokenizer, samples):
    (ids,) = tokenizer.encode([noise(samples)])
    assert len(ids) == id_count(samples // 160) == -(-(samples // 160) // 4)
    assert all(0 <= i < 32 for i in ids)


def test_a_row_in_a_batch_is_the_row_alone(tokenizer):
    clips = [noise(n, n) for n in (3200, 16_000, 7000)]
    together = tokenizer.encode(clips)
    assert together == [tokenizer.encode([clip])[0] for clip in clips]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=5.0)
    assert tokenizer.encode(padded, torch.tensor([3200, 16_000, 7000])) == together
    assert len(set(together[1])) > 1


def test_a_folder_needs_nothing_else(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "speech_tokenizer", dtype=None)
    again = load_speech_tokenizer(tmp_path / "speech_tokenizer")
    clip = noise(9000)
    assert again.encode([clip]) == tokenizer.encode([clip])
    assert again.transcribe([1, 2, 3]) == tokenizer.transcribe([1, 2, 3])
    with pytest.raises(ValueError, match="config.yaml"):
        load_speech_tokenizer(tmp_path / "nowhere")


def test_characters():
    assert collapse([c for x in character_classes("It's  7 o'clock!") for c in (x, 0)]) == "it's o'clock"
    assert collapse([0, 2, 2, 0, 2, 3, 3]) == "aab"


@pytest.mark.slow
def test_it_learns_to_spell_and_to_sound():
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer(SMALL)
    mel, lens = torch.randn(4, 64, 128), torch.tensor([64, 64, 60, 48])
    characters, character_lens = torch.tensor([character_classes("abc")] * 4), torch.full((4,), 3)
    optimizer = torch.optim.Adam(tokenizer.parameters(), 5e-3)
    totals = []
    for _ in range(60):
        rows, parts = tokenizer.loss(mel, lens, characters, character_lens)
        optimizer.zero_grad()
        rows.mean().backward()
        optimizer.step()
        totals.append(rows.mean().item())
    assert rows.shape == (4,) and set(parts) == {"ctc", "mel", "commitment"}
    assert totals[-1] < 0.6 * totals[0]
    assert tokenizer.quantizer.steps == 60
    assert tokenizer.conv1.weight.grad.abs().sum() > 0  # straight through the quantiser


def clusters(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors around 6 directions, and which."""
    centres = torch.nn.functional.normalize(
        torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), dim=1
    )
    which = torch.arange(n) % 6
    return centres[which] + 0.02 * torch.randn(n, 8, generator=torch.Generator().manual_seed(2)), which


def test_codebook_finds_the_clusters_and_no_row_stays_dead():
    torch.manual_seed(0)
    quantizer = Quantizer(QuantizerConfig(size=12, dim=8, warmup_steps=3, decay=0.8)).train()
    x, which = clusters(240)
    mask = torch.ones(1, 240, dtype=torch.bool)
    for _ in range(3):
        code, _, commitment = quantizer(x[None], mask)
        assert torch.allclose(code[0], torch.nn.functional.normalize(x, dim=1)) and commitment == 0
    for _ in range(30):
        code, ids, commitment = quantizer(x[None], mask)
    assert commitment < 0.02
    assert all(len(set(which[ids[0] == row].tolist())) <= 1 for row in range(12))  # no row mixes clusters
    assert len(ids.unique()) >= 9
    assert torch.equal(quantizer.vectors(ids)[0].argmax(-1), code[0].argmax(-1))


def test_padding_does_not_move_the_codebook():
    torch.manual_seed(0)
    x, _ = clusters(40)
    quantizers = []
    for padding in (0, 20):
        torch.manual_seed(1)
        quantizer = Quantizer(QuantizerConfig(size=12, dim=8, warmup_steps=1)).train()
        padded = torch.cat([x, torch.full((padding, 8), 9.0)])[None]
        mask = torch.arange(40 + padding)[None] < 40
        for _ in range(4):
            quantizer(padded, mask)
        quantizers.append(quantizer.codebook)
    assert torch.equal(*quantizers)


def test_impossible_sizes():
    with pytest.raises(ValueError, match="multiple of 2"):
        SpeechTokenizerConfig(dim=30, heads=4)
