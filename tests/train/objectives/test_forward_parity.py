"""The loss of every published output type, against recorded numbers.

The recorded batches pad every piece of a sequence by itself, so that in a batch of two the shorter text is
followed by padding, and the first speech id is predicted from that padding. Our sequences are contiguous.
Where no label stands behind padding the two losses are equal. Where one does, the right loss of that label is
the one it has in its dialogue by itself; all other labels keep their recorded loss.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from echat.data.collation import DialogueBatch
from echat.dialogue.vocabulary import IGNORE
from echat.model.model_folder import save_model
from echat.model.speech_encoder import EncoderConfig
from echat.train.objectives.speech_llm import build
from echat.train.recipe import load_recipe
from echat.verify.comparison import Backend
from echat.verify.golden_layout import LayoutReader
from echat.verify.model_checks import GoldenModel

FOLDER = Path(__file__).parents[2] / "assets" / "model"
CASES = json.loads((FOLDER / "forward.json").read_text())
DIALOGUES = 2  # of every recorded batch
BEHIND_PADDING = {  # cases with a label behind padding
    "speech2text_token",  # speech, behind the shorter of two texts
    "speech2text_token_think",
    "speech2text_token_history",
    "text_unk",  # text, behind the hole that the placeholder && leaves
}


@pytest.fixture(scope="module")
def golden() -> GoldenModel:
    return GoldenModel(FOLDER, Backend())


@pytest.fixture
def objective(golden, recipe, tmp_path):
    """The recorded weights in a real objective, started from as a stage starts from another."""
    engine = golden.engine
    save_model(tmp_path / "start", engine.model, engine.tokenizer, "osum", name="start")
    start = {"all": str(tmp_path / "start")}
    path = recipe("speech_llm", model=None, tokenizer=None, init_from=start, precision="fp32", ctc=None)
    built = build(load_recipe(path))
    built.module.eval()
    encode = built.module.encode

    def as_recorded(mel: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """The clips of the batch with the padding that leaks in, those of the past by themselves."""
        longest = int(lens[:DIALOGUES].max())
        frames, sizes = encode(mel[:DIALOGUES, :longest], lens[:DIALOGUES], released_padding=True)
        past = [encode(clip[None, :size], size[None])[0][0] for clip, size in zip(mel[2:], lens[2:])]
        sizes = torch.tensor([*sizes.tolist(), *map(len, past)])
        every = [*frames, *past]
        return torch.stack([F.pad(row, (0, 0, 0, int(sizes.max()) - len(row))) for row in every]), sizes

    built.module.encode = as_recorded
    return built


def contiguous(golden: GoldenModel, case: str) -> tuple[DialogueBatch, list[list[bool]]]:
    """The recorded dialogues without holes, and for each label whether it stood behind one."""
    about, arrays = CASES[case], golden.arrays("forward.npz")
    values = {key.removeprefix(f"{case}/"): v for key, v in arrays.items() if key.startswith(f"{case}/")}
    vocabulary = golden.engine.vocabulary
    names = [f"row {item} of the batch features" for item in range(DIALOGUES)]
    sizes = values["in_feats_lengths"].tolist()
    clips = [mel[:size] for mel, size in zip(arrays[about["inputs"]["feats"]], sizes)]
    for turn in (turn for turns in about["inputs"].get("history", []) for turn in turns):
        names.append(turn["feat"])
        clips.append(arrays[turn["feat"]])
    counts = [EncoderConfig().llm_frames(len(clip)) for clip in clips]
    rows = {name: range(sum(counts[:n]), sum(counts[: n + 1])) for n, name in enumerate(names)}
    read = LayoutReader(
        golden.engine.tokenizer.encode,
        vocabulary.text_size,
        golden.config["ids"]["unk_label"],
        vocabulary.user_audio_begin,
        frames_of=rows.__getitem__,
        labels_of=lambda item: values["in_target"][item].tolist(),
    ).read(about["layout"])

    def without_holes(part: Tensor, fill: int) -> Tensor:
        kept = [row[keep] for row, keep in zip(part, read.mask)]
        return torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=fill)

    behind = [(~keep[:-1])[labels[1:] != IGNORE].tolist() for labels, keep in zip(read.labels, read.mask)]
    batch = DialogueBatch(
        keys=tuple(about["keys"]),
        tasks=tuple(about["task"]),
        mel=torch.nn.utils.rnn.pad_sequence(clips, batch_first=True),
        mel_lens=torch.tensor([len(clip) for clip in clips]),
        kinds=without_holes(read.kinds, 0),
        ids=without_holes(read.ids, 0),
        labels=F.pad(without_holes(read.labels, IGNORE)[:, 1:], (0, 1), value=IGNORE),
        writes_speech=torch.tensor([about["n_classes"] > vocabulary.text_size] * DIALOGUES),
        ctc_ids=torch.zeros(len(clips), 1, dtype=torch.long),
        ctc_lens=torch.full((len(clips),), -1),
        ctc_label_lens=torch.zeros(len(clips), dtype=torch.long),
    )
    return batch, behind


def recorded_losses(golden: GoldenModel, case: str) -> list[Tensor]:
    """The loss of every label, per dialogue, from the recorded logits."""
    arrays = golden.arrays("forward.npz")
    logits, places, labels = (arrays[f"{case}/{name}"] for name in ("label_logits", "label_pos", "labels"))
    item, position = places.T.long()
    losses = F.cross_entropy(logits, labels[item, position + 1].long(), reduction="none")
    return [losses[item == row] for row in range(DIALOGUES)]


@torch.no_grad()
def losses_alone(objective, batch: DialogueBatch, case: str) -> list[Tensor]:
    """The loss of every label of each dialogue by itself, from all logits at all positions."""
    model, found = objective.module, []
    frames, sizes = model.encode(batch.mel, batch.mel_lens)
    audio = torch.cat([row[:size] for row, size in zip(frames, sizes)])
    for row in range(DIALOGUES):
        length = int((batch.kinds[row] != 0).sum())
        embeds = model.assemble(batch.kinds[row : row + 1, :length], batch.ids[row : row + 1, :length], audio)
        hidden = model.hidden(embeds)[0][0]
        logits = model.combined_logits(hidden) if batch.writes_speech[row] else model.text_logits(hidden)
        losses = F.cross_entropy(logits, batch.labels[row, :length], ignore_index=IGNORE, reduction="none")
        found.append(losses[batch.labels[row, :length] != IGNORE])
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_loss_of_every_output_type(golden, objective, case):
    batch, behind = contiguous(golden, case)
    recorded, alone = recorded_losses(golden, case), losses_alone(objective, batch, case)
    right = [torch.where(torch.tensor(hole), a, r) for hole, a, r in zip(behind, alone, recorded)]
    for a, r in zip(alone, right):  # every label but those behind padding has its recorded loss
        torch.testing.assert_close(a, r, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        loss = objective.loss(batch)
    assert loss.count == sum(map(len, recorded))
    assert float(loss.total) / loss.count == pytest.approx(float(torch.cat(right).mean()), abs=1e-5)
    assert any(map(any, behind)) == (case in BEHIND_PADDING)
    if case not in BEHIND_PADDING:
        assert float(loss.total) / loss.count == pytest.approx(CASES[case]["loss"], abs=1e-5)


def test_what_padding_hid_is_learnt_from_the_end_of_the_text(golden, objective):
    """One label of one dialogue differs from the recorded one: the first speech id of the shorter text."""
    batch, behind = contiguous(golden, "speech2text_token")
    alone, recorded = losses_alone(objective, batch, ""), recorded_losses(golden, "speech2text_token")
    changed = [(a - r).abs() > 1e-3 for a, r in zip(alone, recorded)]
    assert [row.tolist() for row in changed] == behind and sum(map(sum, behind)) == 1
