from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from echat.data.collating import collate_dialogues
from echat.data.examples import IGNORE
from echat.data.stream import Draw
from echat.train.objectives.ctc import spell
from echat.train.recipe import load_recipe, objective_module


def build(path, *overrides):
    settings = load_recipe(path, ["precision=fp32", *overrides])
    torch.manual_seed(0)
    objective = objective_module(settings.objective).build(settings)
    objective.module.eval()
    return objective


@pytest.fixture
def speaking(recipe):
    return build(recipe("speech_llm"), "spell_weight=0")


def slow_loss(objective, batch) -> tuple[float, int]:
    """Every position's logits over every class, one dialogue after another: what a student writes."""
    total, count = 0.0, 0
    model = objective.module
    alone = [model.encode(mel[None, :size], size[None])[0][0] for mel, size in zip(batch.mel, batch.mel_lens)]
    audio = torch.cat(alone) if alone else None
    for row in range(len(batch.keys)):
        length = int((batch.kinds[row] != 0).sum())
        embeds = model.assemble(batch.kinds[row : row + 1, :length], batch.ids[row : row + 1, :length], audio)
        hidden = model.hidden(embeds)[0][0]
        logits = model.combined_logits(hidden) if batch.writes_speech[row] else model.text_logits(hidden)
        labels = batch.labels[row, :length]
        total += F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum").item()
        count += int((labels != IGNORE).sum())
    return total, count


def test_the_loss_is_that_of_each_dialogue_alone(speaking):
    for _ in range(3):
        batch = speaking.batches.next()
        loss = speaking.loss(batch)
        total, count = slow_loss(speaking, batch)
        assert loss.count == count
        assert loss.total.item() == pytest.approx(total, rel=1e-4)


def test_the_parts_add_up_to_the_whole(speaking):
    loss = speaking.loss(speaking.batches.next())
    assert sum(part for part, _ in loss.parts.values()) == pytest.approx(float(loss.total), rel=1e-4)
    assert sum(count for _, count in loss.parts.values()) == loss.count


def test_the_first_speech_id_is_learnt_from_the_end_of_the_text(speaking, corpus):
    """Whatever else is in the batch: no padding lies between text and speech."""
    pair = speaking.batches._stream.pairs
    samples = next(p for p in pair if p.task == "s2s_think_label").samples
    build_example = speaking._builder(None)
    batch = collate_dialogues([build_example(Draw(s, "s2s_think_label", 0, 1)) for s in samples[:4]])
    vocabulary = speaking.vocabulary
    begin = vocabulary.combined_class(vocabulary.speech_boundary)
    for row in range(4):
        first = int((batch.labels[row] == begin).nonzero()[0])
        assert int(batch.ids[row, first]) == vocabulary.text_end


def test_speech_weight_counts_speech_targets_so_often(recipe):
    plain, heavy = (
        build(recipe("speech_llm"), "spell_weight=0"),
        build(recipe("speech_llm"), "spell_weight=0", "speech_weight=3"),
    )
    batch = plain.batches.next()
    one, three = plain.loss(batch), heavy.loss(batch)
    speech = sum(part for name, (part, _) in one.parts.items() if name.endswith("/speech"))
    assert float(three.total) == pytest.approx(float(one.total) + 2 * speech, rel=1e-4)


def test_spelling_draws_sound_to_the_text_vectors(recipe):
    objective = build(recipe("speech_llm"), "spell_weight=1", "data.augment=null")
    module = objective.module
    batch = next(b for b in iter(objective.batches.next, None) if len(b.mel))
    lens = torch.full_like(batch.heard_lens, 2)  # as many ids as fit into these short clips
    batch = replace(batch, heard=batch.heard[:, :2].contiguous(), heard_lens=lens)
    optimizer = torch.optim.Adam([*module.projection.parameters(), *module.adapter.parameters()], lr=0.02)

    def spelling() -> float:
        part, count = objective.loss(batch).parts["spelling"]
        return float(part) / count

    before = spelling()
    for _ in range(20):
        optimizer.zero_grad()
        frames, lens = module.encode(batch.mel, batch.mel_lens)
        objective._spelling(frames, lens, batch).total.backward()
        optimizer.step()
    assert spelling() < 0.8 * before


def test_the_text_stage_needs_no_sound(recipe, corpus, tmp_path):
    manifest = tmp_path / "text.jsonl"
    rows = (corpus / "manifest.jsonl").read_text().replace('"audio"', '"no_audio"')
    manifest.write_text(rows)
    data = {"sources": [{"path": str(manifest), "tasks": {"s2t_think_label": 1, "asr": 1}, "as_text": True}]}
    objective = build(recipe("speech_llm", data=data | {"spread": 1.5, "pool": 4}))
    batch = objective.batches.next()
    assert not len(batch.mel) and torch.isfinite(objective.loss(batch).total)


def test_a_model_smaller_than_its_tokenizer_is_refused(recipe):
    with pytest.raises(ValueError, match="expected at least the .* ids of the tokenizer, found 50"):
        build(recipe("speech_llm"), "model.llm.vocab_size=50")


def test_a_start_without_shape_is_refused(recipe):
    with pytest.raises(ValueError, match="init_from"):
        build(recipe("speech_llm", model=None))


def test_unknown_words_and_labels_teach_nothing(recipe):
    objective = build(recipe("ctc"))
    batch = objective.batches.next()
    whole = objective.loss(batch)
    assert whole.count == float(batch.target_lens.sum()) + 2.0 * int((batch.labels != IGNORE).sum())
    mute = type(batch)(**{**vars(batch), "target_lens": torch.full_like(batch.target_lens, -1)})
    assert objective.loss(mute).count == 2.0 * int((batch.labels != IGNORE).sum())


def test_a_best_path_is_spelled():
    scores = torch.eye(4)[[0, 1, 1, 0, 1, 2, 0, 3, 3]]
    assert spell(scores, "abc") == "aabc"
