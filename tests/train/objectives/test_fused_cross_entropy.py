"""The loss of targets against the plain one: all logits in float32, torch's cross-entropy, its gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echat.train.objectives import fused_cross_entropy as module
from echat.train.objectives.fused_cross_entropy import Heads, Targets, fused_cross_entropy

N, TEXT_ONLY, DIM, TEXT, SPEECH = 41, 12, 24, 60, 31
PIECES = (1, 7, 12, 40, 41, 1000)  # rows at a time: single, crossing, touching the border, all but one, all
Found = tuple[Tensor, Tensor, dict[str, Tensor]]


class Model(nn.Module):
    """A text head that is the table as well, and a speech head with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TEXT, DIM)
        self.speech = nn.Linear(DIM, SPEECH)
        self.body = nn.Linear(DIM, DIM)

    def hidden(self, ids: Tensor) -> Tensor:
        return self.body(self.table(ids)).tanh() * 3

    def heads(self) -> Heads:
        weights = (self.table.weight, *self.speech.parameters())
        return Heads(lambda h: F.linear(h, self.table.weight), self.speech, TEXT + SPEECH, weights)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def targets() -> Targets:
    torch.manual_seed(1)
    labels = torch.cat([torch.randint(TEXT, (TEXT_ONLY,)), torch.randint(TEXT + SPEECH, (N - TEXT_ONLY,))])
    return Targets(labels, torch.where(labels >= TEXT, 0.4, 1.0), TEXT_ONLY)


IDS = torch.arange(N) % TEXT


def gradients(model: Model) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def plain(model: Model, targets: Targets, factor: float = 1.0) -> Found:
    hidden = model.hidden(IDS)
    logits = torch.cat([F.linear(hidden, model.table.weight), model.speech(hidden)], dim=1).float()
    alone = torch.arange(N) < targets.text_only
    logits = logits.masked_fill(alone[:, None] & (torch.arange(TEXT + SPEECH) >= TEXT), -torch.inf)
    losses = F.cross_entropy(logits, targets.labels, reduction="none")
    total = (losses * targets.weights).sum()
    (total * factor).backward()
    return total.detach(), losses.detach(), gradients(model)


def ours(model: Model, targets: Targets, rows: int, factor: float = 1.0) -> Found:
    at_once = rows * (TEXT + SPEECH)
    total, losses = fused_cross_entropy(model.hidden(IDS), targets, model.heads(), at_once)
    (total * factor).backward()
    return total.detach(), losses, gradients(model)


def equal(found: Found, expected: Found, tolerance: float) -> None:
    for one, two in zip(found[:2], expected[:2]):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)
    assert found[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        assert (found[2][name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.parametrize("rows", PIECES)
@pytest.mark.parametrize("softmax_rows", [1, 5, 1000])
def test_gradients_are_those_of_the_plain_loss(model, targets, rows, softmax_rows, monkeypatch):
    monkeypatch.setattr(module, "SOFTMAX_CHUNK", softmax_rows * (TEXT + SPEECH))
    for factor in (1.0, -2.5):
        equal(ours(model, targets, rows, factor), plain(model, targets, factor), 1e-5)


@pytest.mark.parametrize("rows", (7, 1000))
@pytest.mark.parametrize("text_only", (0, N))
def test_one_kind_of_target(model, targets, rows, text_only):
    targets = replace(targets, labels=targets.labels % TEXT, text_only=text_only)
    expected = plain(model, targets)
    found = ours(model, targets, rows)
    if text_only == N:  # nothing comes to a head that nobody asked
        del expected[2]["speech.weight"], expected[2]["speech.bias"]
    equal(found, expected, 1e-5)


@pytest.mark.parametrize("rows", (7, 1000))
@pytest.mark.parametrize("frozen", ("table", "speech", "table speech", "body table", "body table speech"))
def test_frozen_weights_get_no_gradient(model, targets, rows, frozen):
    for name in frozen.split():
        model.get_submodule(name).requires_grad_(False)
    if frozen == "body table speech":
        total, _ = fused_cross_entropy(model.hidden(IDS), targets, model.heads(), rows * (TEXT + SPEECH))
        assert not total.requires_grad
        return
    equal(ours(model, targets, rows), plain(model, targets), 1e-5)


@pytest.mark.parametrize("rows", (7, 1000))
def test_half_precision_is_that_of_autocast(model, targets, rows):
    exact = plain(model, targets)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = plain(model, targets), ours(model, targets, rows)
    assert all(gradient.dtype == torch.float32 for gradient in found[2].values())
    equal(found, exact, 0.03)
    off = {name: (found[2][name] - g).norm() / (expected[2][name] - g).norm() for name, g in exact[2].items()}
    assert max(off.values()) < 1.3  # no further from the truth than the plain loss under autocast


@pytest.mark.parametrize("rows", (7, 1000))
def test_weights_in_half_precision(model, targets, rows):
    expected = plain(model.bfloat16(), targets)
    found = ours(model, targets, rows)
    assert all(gradient.dtype == torch.bfloat16 for gradient in found[2].values())
    equal((found[0], found[1], found[2]), expected, 0.03)


@pytest.mark.parametrize("rows", (7, 1000))
def test_a_second_way_back_finds_the_same(model, targets, rows):
    total, _ = fused_cross_entropy(model.hidden(IDS), targets, model.heads(), rows * (TEXT + SPEECH))
    (3 * total).backward(retain_graph=True)
    first = gradients(model)
    (3 * total).backward()
    assert all(torch.equal(gradient, first[name]) for name, gradient in gradients(model).items())


@pytest.mark.parametrize("rows", (7, 1000))
def test_without_gradients_heads_run_forwards_only(model, targets, rows):
    expected = plain(model, targets)
    with torch.no_grad():
        total, losses = fused_cross_entropy(model.hidden(IDS), targets, model.heads(), rows * (TEXT + SPEECH))
    torch.testing.assert_close((total, losses), expected[:2])
    assert not total.requires_grad


def test_logits_are_made_once_and_a_piece_at_a_time(model, targets):
    sizes = []
    heads = model.heads()

    def counted(hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return heads.text(hidden)

    total, _ = fused_cross_entropy(
        model.hidden(IDS), targets, replace(heads, text=counted), 10 * (TEXT + SPEECH)
    )
    total.backward()
    assert sizes == [10, 10, 10, 10, 1]


def test_no_tensor_of_positions_by_classes_is_kept_beyond_a_piece(model, targets):
    """But the gradient of the heads themselves."""
    labels = targets.labels.repeat(50)
    many = Targets(labels, targets.weights.repeat(50), 0)
    hidden = model.hidden(torch.zeros(len(labels), dtype=torch.long))
    assert largest_saved(hidden, many, model, 10**9) == len(labels) * TEXT
    assert largest_saved(hidden, many, model, 10_000) <= len(labels) * DIM


def largest_saved(hidden: Tensor, targets: Targets, model: Model, max_logits: int) -> int:
    """Elements of the largest tensor that a graph keeps."""
    sizes = [0]

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        fused_cross_entropy(hidden, targets, model.heads(), max_logits)
    return max(sizes)
