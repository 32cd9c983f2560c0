"""A fresh language model with heads set by hand writes down what stood before, blanks left out."""

from __future__ import annotations

import pytest
import torch

from echat.model.llm import LanguageModel, LLMConfig
from echat.train.extras.induction_init import init_induction_heads

SHAPE = LLMConfig(
    vocab_size=300, dim=256, layers=2, heads=4, kv_heads=2, mlp=64, max_positions=512, table_std=0.0625
)
BLANK = 0


def share_copied(gap: int, heads: bool = True) -> float:
    """How often the likeliest id is the one that followed before, of 40 with `gap` blanks before each.

    The id just written, which a tied table always favours at first, does not count.
    """
    torch.manual_seed(1)
    llm = LanguageModel(SHAPE).eval()
    if heads:
        init_induction_heads(llm, BLANK, torch.Generator().manual_seed(2))
    ids = torch.randperm(SHAPE.vocab_size - 1)[:40] + 1
    context_ids = torch.cat([torch.tensor([*[BLANK] * gap, int(one)]) for one in ids])
    sequence = torch.cat([context_ids, ids])
    with torch.no_grad():
        hidden = llm(llm.text_embedding(sequence)[None])[0, len(context_ids) :]
        guessed = llm.logits(hidden).scatter(-1, ids[:, None], -torch.inf).argmax(-1)
    return float((guessed[:-1] == ids[1:]).float().mean())


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_what_was_heard_is_copied_through_blanks(gap: int) -> None:
    assert share_copied(gap) >= 0.25
    assert share_copied(gap, heads=False) <= 0.1


def test_a_model_of_one_layer_cannot_hold_them() -> None:
    with pytest.raises(ValueError, match="at least 2 layers, found 1"):
        init_induction_heads(LanguageModel(SHAPE.model_copy(update={"layers": 1})), BLANK)


def test_narrow_heads_cannot_hold_them() -> None:
    narrow = SHAPE.model_copy(update={"dim": 32, "heads": 4})
    with pytest.raises(ValueError, match="expected head_dim above 16, found 8"):
        init_induction_heads(LanguageModel(narrow), BLANK)


def test_every_position_knows_which_words_there_were() -> None:
    """Exchanging an early word changes what a late position holds, as much wherever the word stood."""
    torch.manual_seed(1)
    llm = LanguageModel(SHAPE).eval()
    init_induction_heads(llm, BLANK, torch.Generator().manual_seed(2))
    words = torch.randperm(SHAPE.vocab_size - 2)[:30] + 1
    seen: list[torch.Tensor] = []
    llm.model.layers[0].self_attn.o_proj.register_forward_hook(lambda *call: seen.append(call[2][0, -1]))

    def change(place: int) -> float:
        ids = words.clone()
        ids[[3, place]] = words[[place, 3]]
        for word in (words[3], SHAPE.vocab_size - 1):
            ids[place] = word
            with torch.no_grad():
                llm(llm.text_embedding(ids)[None])
        return float((seen[-1] - seen[-2]).norm())

    early, late = change(3), change(20)
    assert early == pytest.approx(late, rel=0.1)
    assert early > 0.15 * float(llm.text_embedding.weight.norm(dim=1).mean())


def test_one_key_value_head_cannot_hold_them() -> None:
    with pytest.raises(ValueError, match="at least 2 key-value heads, found 1"):
        init_induction_heads(LanguageModel(SHAPE.model_copy(update={"kv_heads": 1})), BLANK)
