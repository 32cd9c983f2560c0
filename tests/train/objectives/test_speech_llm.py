from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from echat.data.collation import collate_dialogues
from echat.data.mixture import SampledItem
from echat.dialogue.labels import VALUES
from echat.dialogue.vocabulary import IGNORE, TEXT
from echat.train.distributed import Ranks
from echat.train.objectives.ctc_loss import CTCConfig, CTCLoss
from echat.train.objectives.encoder_ctc import greedy_ctc_text
from echat.train.parallel import ParallelModel, apply_activation_checkpointing
from echat.train.recipe import load_recipe, objective_module
from echat.train.weights.parameters import set_trainable


def build(path, *overrides):
    settings = load_recipe(path, ["precision=fp32", *overrides])
    torch.manual_seed(0)
    objective = objective_module(settings.objective).build(settings)
    objective.module.eval()
    return objective


@pytest.fixture
def speaking(recipe):
    return build(recipe("speech_llm"), "ctc.weight=0")


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
    component = speaking.batches._stream.components
    samples = next(p for p in component if p.task == "s2s_think_label").samples
    build_example = speaking._builder(None)
    batch = collate_dialogues([build_example(SampledItem(s, "s2s_think_label", 0, 1)) for s in samples[:4]])
    vocabulary = speaking.vocabulary
    begin = vocabulary.text_size + vocabulary.speech_boundary
    for row in range(4):
        first = int((batch.labels[row] == begin).nonzero()[0])
        assert int(batch.ids[row, first]) == vocabulary.text_end


def test_speech_weight_counts_speech_targets_so_often(recipe):
    plain, heavy = (
        build(recipe("speech_llm"), "ctc.weight=0"),
        build(recipe("speech_llm"), "ctc.weight=0", "speech_weight=3"),
    )
    batch = plain.batches.next()
    one, three = plain.loss(batch), heavy.loss(batch)
    speech = sum(part for name, (part, _) in one.parts.items() if name.endswith("/speech"))
    assert float(three.total) == pytest.approx(float(one.total) + 2 * speech, rel=1e-4)


def test_ctc_moves_audio_frames_to_the_text_embeddings(recipe):
    objective = build(recipe("speech_llm"), "ctc.weight=1", "data.augment=null")
    module = objective.module
    batch = next(b for b in iter(objective.batches.next, None) if len(b.mel))
    loss = CTCLoss(CTCConfig(), objective._blank)
    lens = torch.full_like(batch.ctc_lens, 2)  # as many ids as fit into these short clips
    batch = replace(batch, ctc_ids=batch.ctc_ids[:, :2].contiguous(), ctc_lens=lens)
    optimizer = torch.optim.Adam([*module.projection.parameters(), *module.adapter.parameters()], lr=0.02)

    def ctc() -> float:
        part, count = objective.loss(batch).parts["spelling"]
        return float(part) / count

    before = ctc()
    for _ in range(20):
        optimizer.zero_grad()
        frames, lens = module.encode(batch.mel, batch.mel_lens)
        loss(frames, lens, batch, module.llm.text_embedding.weight.detach()).total.backward()
        optimizer.step()
    assert ctc() < 0.8 * before


def test_the_label_loss_does_not_depend_on_the_words(recipe):
    objective = build(recipe("speech_llm"), "ctc.weight=1", "ctc.label_weight=3", "data.augment=null")
    batch = next(b for b in iter(objective.batches.next, None) if len(b.mel))
    assert (batch.ctc_label_lens > 0).all()
    one = torch.ones_like(batch.ctc_label_lens)  # these clips are too short for more
    unknown = replace(batch, ctc_lens=torch.full_like(batch.ctc_lens, -1), ctc_label_lens=one)
    other = replace(unknown, ctc_ids=torch.cat([batch.ctc_ids[:, :1], 1 + batch.ctc_ids[:, 1:]], dim=1))
    frames, lens = objective.module.encode(batch.mel, batch.mel_lens)
    table = objective.module.llm.text_embedding.weight.detach()
    loss = CTCLoss(objective.recipe.ctc, objective._blank)
    losses = [loss(frames, lens, b, table) for b in (unknown, other)]
    assert losses[0].count == losses[1].count == 3.0 * len(batch.mel)
    assert float(losses[0].total) == float(losses[1].total) > 0
    assert losses[0].parts["cues"][1] == len(batch.mel) and losses[0].parts["spelling"][1] == 0
    (grad,) = torch.autograd.grad(losses[0].total, frames)
    assert torch.isfinite(grad).all() and grad.any()


def test_the_text_stage_needs_no_sound(recipe, corpus, tmp_path):
    manifest = tmp_path / "text.jsonl"
    rows = (corpus / "manifest.jsonl").read_text().replace('"audio"', '"no_audio"')
    manifest.write_text(rows)
    data = {
        "sources": [{"path": str(manifest), "tasks": {"s2t_think_label": 1, "asr": 1}, "pseudo_audio": True}]
    }
    objective = build(recipe("speech_llm", data=data | {"pseudo_audio": {"blanks": 1.5}, "pool": 4}))
    batch = objective.batches.next()
    assert not len(batch.mel) and torch.isfinite(objective.loss(batch).total)


def test_a_model_smaller_than_its_tokenizer_is_refused(recipe):
    with pytest.raises(ValueError, match="expected at least the .* ids of the tokenizer, found 50"):
        build(recipe("speech_llm"), "model.llm.vocab_size=50")


def test_a_start_without_shape_is_refused(recipe):
    with pytest.raises(ValueError, match="init_from"):
        build(recipe("speech_llm", model=None))


def test_unknown_words_and_labels_teach_nothing(recipe):
    objective = build(recipe("encoder_ctc"))
    batch = objective.batches.next()
    whole = objective.loss(batch)
    assert whole.count == float(batch.target_lens.sum()) + 2.0 * int((batch.labels != IGNORE).sum())
    mute = type(batch)(**{**vars(batch), "target_lens": torch.full_like(batch.target_lens, -1)})
    assert objective.loss(mute).count == 2.0 * int((batch.labels != IGNORE).sum())


def test_greedy_ctc_decoding():
    scores = torch.eye(4)[[0, 1, 1, 0, 1, 2, 0, 3, 3]]
    assert greedy_ctc_text(scores, "abc") == "aabc"


# --- memory: what is not kept is computed again, and nothing else changes


def gradients(objective, batch) -> dict[str, torch.Tensor]:
    objective.module.zero_grad(set_to_none=True)
    objective.loss(batch).total.backward()
    return {n: p.grad.clone() for n, p in objective.module.named_parameters() if p.grad is not None}


def test_logits_in_pieces_change_nothing(recipe):
    whole = build(recipe("speech_llm"))
    pieces = build(recipe("speech_llm"), "max_logits=1300")  # three positions of both heads
    batch = next(
        b for b in iter(whole.batches.next, None) if b.writes_speech.any() and not b.writes_speech.all()
    )
    assert float(pieces.loss(batch).total) == pytest.approx(float(whole.loss(batch).total), rel=1e-6)
    expected, found = gradients(whole, batch), gradients(pieces, batch)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        rounding = 1e-5 * float(gradient.abs().max()) + 1e-7  # sums in another order: as large as their terms
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=rounding)


def test_activation_checkpointing_changes_nothing_but_memory(recipe):
    plain, lean = build(recipe("speech_llm")), build(recipe("speech_llm"))
    apply_activation_checkpointing(lean.module, ["encoder.*", "llm.*"])
    for part in (plain, lean):
        part.module.train()  # dropout draws the same again
    batch = next(b for b in iter(plain.batches.next, None) if len(b.mel))
    torch.manual_seed(1)
    expected = gradients(plain, batch)
    torch.manual_seed(1)
    found = gradients(lean, batch)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    kept = [count_saved(lambda part=part: part.loss(batch)) for part in (plain, lean)]
    assert kept[1] < 0.8 * kept[0]


def count_saved(loss) -> int:
    """Elements of all tensors that a graph keeps, each once."""
    sizes: dict[int, int] = {}

    def note(tensor):
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss()
    return sum(sizes.values())


def test_a_misspelt_block_is_refused(recipe):
    with pytest.raises(
        ValueError,
        match=r"activation_checkpointing: pattern 'decoder\.\*' matches no block; blocks start with",
    ):
        apply_activation_checkpointing(build(recipe("speech_llm")).module, ["decoder.*"])


def test_frozen_parts_make_no_noise_and_keep_no_graph(recipe):
    path = recipe("speech_llm")
    settings = load_recipe(path, ["precision=fp32", 'trainable=["projection.*", "llm.*"]'])
    objective = objective_module("speech_llm").build(settings)
    set_trainable(objective.module, settings.trainable)
    ParallelModel(objective, settings, Ranks(), torch.device("cpu"))
    module = objective.module
    batch = next(b for b in iter(objective.batches.next, None) if len(b.mel))
    one, _ = module.encoder(batch.mel, batch.mel_lens)
    two, _ = module.encoder(batch.mel, batch.mel_lens)
    assert torch.equal(one, two) and not one.requires_grad and not module.encoder.training
    assert module.llm.training and module.projection.training
    assert module.encode(batch.mel, batch.mel_lens)[0].requires_grad


# --- mixtures


def test_sequential_and_interleaved_layouts_share_a_batch(recipe, corpus):
    """Dialogues of every layout in one batch: the loss is that of each alone, whatever stands beside it."""
    long_enough = {"tts_stream": 1, "s2s_stream": 1, "s2s_think_label": 1, "asr": 1}
    source = {"path": str(corpus / "manifest.jsonl"), "split": "train", "tasks": long_enough}
    objective = build(recipe("speech_llm", data={"sources": [source], "pool": 64}), "ctc.weight=0")
    make = objective._builder(None)
    examples = []
    for component in objective.batches._stream.components:
        sample = next(
            s for s in (component.samples[n] for n in range(len(component.samples))) if s.speech_ids
        )
        sample = replace(sample, reply="i", speech_ids=sample.speech_ids + tuple(range(20)))
        examples.append(make(SampledItem(sample, component.task, 0, 1)))
    batch = collate_dialogues(examples)
    assert set(batch.tasks) == set(long_enough)
    loss = objective.loss(batch)
    total, count = slow_loss(objective, batch)
    assert loss.count == count and loss.total.item() == pytest.approx(total, rel=1e-4)
    assert {"tts_stream/speech", "tts_stream", "s2s_stream/speech", "asr"} <= loss.parts.keys()


def test_an_unknown_label_is_read_as_any_and_never_learnt(recipe):
    """A label thought whose age nobody knows: some age stands there, and no position predicts it."""
    objective = build(recipe("speech_llm"))
    components = objective.batches._stream.components
    sample = next(p for p in components if p.task == "s2s_think_label").samples[0]
    sample = replace(sample, labels=sample.labels.replace(age=None))
    make = objective._builder(None)
    guesses = set()
    for seed in range(8):
        example = make(SampledItem(sample, "s2s_think_label", 0, seed))
        is_text = (example.labels != IGNORE) & (example.labels < objective.vocabulary.text_size)
        read, learnt = (
            objective.tokenizer.decode(ids.tolist())
            for ids in (example.ids[example.kinds == TEXT], example.labels[is_text])
        )
        guesses |= {age for age in VALUES["age"] if f"年龄为:<{age.upper()}>" in read}
        assert "&&" not in read and "年龄为:<>" in learnt
    assert len(guesses) > 1
