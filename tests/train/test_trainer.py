"""Killed and resumed equals uninterrupted, for everything that learns; and what the loop refuses."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.train.command import echat

from echat.checkpoint import CheckpointError, read_tensors
from echat.train import step as step_module
from echat.train import trainer
from echat.train.checkpointing.checkpoints import load_tensors
from echat.train.distributed import Ranks
from echat.train.objectives import encoder_ctc as ctc_objective
from echat.train.parallel import ParallelModel
from echat.train.recipe import OBJECTIVES, load_recipe, objective_module
from echat.train.trainer import TrainingStopped, train


def metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def die_in_micro_batch(objective: str, recipe: Path, number: int, resume: bool = False) -> None:
    """Train in a process of its own that is killed, SIGKILL, in the loss of micro-batch ``number``."""
    child = os.fork()
    if child == 0:
        try:
            module = objective_module(objective)
            build, seen = module.build, [0]

            def deadly(settings):
                built = build(settings)
                loss = built.loss

                def count(batch):
                    seen[0] += 1
                    if seen[0] == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return loss(batch)

                built.loss = count
                return built

            module.build = deadly
            train(recipe, resume=resume)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.slow
def test_killed_in_mid_step_resumes_to_the_same_curve(objective, recipe, tmp_path):
    whole = train(recipe(objective, "whole"))
    killed = recipe(objective, "killed")
    # two micro-batches a step; those of validation come after steps 3 and 6
    die_in_micro_batch(objective, killed, 6)
    assert [p.name for p in sorted((tmp_path / "killed" / "checkpoints").iterdir())] == ["step-00000002"]
    die_in_micro_batch(objective, killed, 2, resume=True)
    resumed = train(killed, resume=True)
    assert (whole.parent / "metrics.jsonl").read_bytes() == (resumed.parent / "metrics.jsonl").read_bytes()
    assert len([row for row in metrics(whole.parent) if "loss" in row]) == 6
    for path in whole.glob("*.safetensors"):
        tensors, again = read_tensors(path), read_tensors(resumed / path.name)
        assert tensors.keys() == again.keys()
        assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())


def test_the_loss_falls_and_parts_are_logged(recipe):
    folder = train(recipe("encoder_ctc", budget={"steps": 40}, accumulate=1)).parent
    losses = [row["loss"] for row in metrics(folder) if "loss" in row]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert {"characters", "emotion", "emotion_accuracy"} <= metrics(folder)[0]["parts"].keys()
    assert any("validation" in row for row in metrics(folder))
    assert list((folder / "tensorboard").iterdir())


@pytest.mark.slow
def test_workers_change_nothing_and_padding_is_logged(recipe):
    path = recipe("speech_llm", "alone", budget={"steps": 3})
    alone = train(path).parent
    helped = train(path, ["data.workers=2", f"output={alone.with_name('helped')}"]).parent
    assert (alone / "metrics.jsonl").read_bytes() == (helped / "metrics.jsonl").read_bytes()
    assert all(0 <= row["padding"] < 0.2 for row in metrics(alone) if "loss" in row)


def test_what_was_left_out_is_said_at_the_end(recipe, capsys):
    train(recipe("encoder_ctc", budget={"steps": 2}), ["data.filters={max_seconds: 0.7}"])
    assert "left out of the data, counted each time:\ntoo-long: " in capsys.readouterr().out


@pytest.mark.slow
def test_only_the_newest_checkpoints_stay(recipe, tmp_path):
    train(recipe("encoder_ctc", checkpoint={"every_steps": 1, "keep": 3, "keep_best": False}))
    names = [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert names == ["step-00000004", "step-00000005", "step-00000006"]


def test_micro_batches_weigh_by_their_targets(recipe):
    """Two micro-batches give the gradient of one batch that holds both."""
    encoder = {"dim": 16, "blocks": 1, "heads": 2, "dropout": 0.0}
    settings = load_recipe(recipe("encoder_ctc", precision="fp32", encoder=encoder), ["data.augment=null"])
    objective = ctc_objective.build(settings)
    batches = [objective.batches.next() for _ in range(2)]
    losses = [objective.loss(batch) for batch in batches]
    expected = sum(loss.total for loss in losses) / sum(loss.count for loss in losses)
    expected.backward()
    want = objective.module.head.weight.grad.clone()
    objective.module.zero_grad()
    parallel_model = ParallelModel(objective, settings, Ranks(), torch.device("cpu"))
    sums = trainer.StepStats()
    for batch in batches:
        sums.add(parallel_model.forward_backward(batch), batch)
    torch.testing.assert_close(objective.module.head.weight.grad / sums.count, want)


@pytest.mark.slow
def test_a_run_folder_in_use_needs_resume(recipe):
    path = recipe("encoder_ctc")
    train(path)
    with pytest.raises(TrainingStopped, match="add --resume"):
        train(path)
    assert (train(path, resume=True) / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_longer_budget_goes_on_where_the_run_ended(recipe):
    path = recipe("encoder_ctc")
    train(path)
    folder = train(path, ["budget.steps=9"], resume=True).parent
    assert [row["step"] for row in metrics(folder) if "loss" in row] == list(range(1, 10))


@pytest.mark.slow
def test_the_clock_ends_a_run_too(recipe):
    folder = train(recipe("encoder_ctc", budget={"minutes": 0.02})).parent
    assert len(metrics(folder)) >= 1 and (folder / "model" / "model.safetensors").is_file()


def spoil(monkeypatch, number: int, forever: bool = False, factor: float = float("nan")) -> None:
    """The loss of micro-batch ``number`` times ``factor``; with ``forever`` of all that follow, too."""
    build = ctc_objective.build

    def spoiled(settings):
        objective = build(settings)
        loss, calls = objective.loss, []

        def times(batch):
            calls.append(batch)
            good = loss(batch)
            hit = len(calls) >= number if forever else len(calls) == number
            return replace(good, total=good.total * factor) if hit else good

        objective.loss = times
        return objective

    monkeypatch.setattr(ctc_objective, "build", spoiled)


def test_a_loss_that_is_not_finite_is_skipped_and_its_samples_are_named(
    recipe, monkeypatch, tmp_path, capsys
):
    spoil(monkeypatch, 3)  # two micro-batches a step
    folder = train(recipe("encoder_ctc", validate_steps=100)).parent
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert "found nan" in rows[1]["skipped"] and "loss" not in rows[1]
    assert rows[1]["samples"] > rows[0]["samples"] and all(math.isfinite(row["loss"]) for row in rows[2:])
    (dump,) = map(json.loads, (folder / "skipped.jsonl").read_text().splitlines())
    spoiled, fine = dump["batches"]
    assert dump["step"] == 2 and spoiled["loss"] == "nan" and math.isfinite(fine["loss"])
    said = capsys.readouterr().out.replace("\n", " ")
    assert (
        "step 2 skipped" in said
        and spoiled["keys"][0] in said
        and fine["keys"][0] not in said.split("step 2")[1]
    )
    assert all(
        torch.isfinite(tensor).all() for tensor in read_tensors(folder / "model/model.safetensors").values()
    )


def test_gradients_out_of_proportion_are_not_followed(recipe, monkeypatch):
    monkeypatch.setattr(step_module, "NORM_WARMUP_STEPS", 3)
    spoil(monkeypatch, 9, factor=1e6)
    folder = train(recipe("encoder_ctc", validate_steps=100)).parent
    skipped = [row for row in metrics(folder) if "skipped" in row]
    assert [row["step"] for row in skipped] == [5] and "times the usual" in skipped[0]["skipped"]


@pytest.mark.slow
def test_a_diverged_run_stops_and_goes_on_from_its_last_good_checkpoint(recipe, monkeypatch, tmp_path):
    path = recipe("encoder_ctc", guard={"patience": 2}, checkpoint={"every_steps": 1})
    with monkeypatch.context() as broken:
        spoil(broken, 7, forever=True)
        with pytest.raises(
            TrainingStopped, match="step 5: 2 steps in a row .* weights are those of step 3.*skipped.jsonl"
        ):
            train(path)
    saved = [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert saved[-1] == "step-00000003" and not (tmp_path / "run" / "model").exists()
    folder = train(path, resume=True).parent
    assert [row["step"] for row in metrics(folder) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert not (folder / "skipped.jsonl").read_text()  # those steps were taken after all


def test_the_best_checkpoint_stays_and_becomes_a_model(recipe, monkeypatch, tmp_path):
    losses = iter([{"loss": 2.0}, {"loss": 1.0}, {"loss": 3.0}, {"loss": 1.5}, {"loss": 1.2}])
    monkeypatch.setattr(trainer, "validate", lambda *_: next(losses))
    path = recipe(
        "encoder_ctc", budget={"steps": 5}, validate_steps=1, checkpoint={"every_steps": 1, "keep": 1}
    )
    folder = train(path).parent
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["step-00000002", "step-00000005"]
    for choice, step in (["--best"], 2), (["--step", "5"], 5), ([], 5):
        assert echat("export", [str(folder), str(tmp_path / "out"), *choice]) == 0
        stored = read_tensors(tmp_path / "out" / "model.safetensors")
        expected = ctc_objective.build(load_recipe(path)).module
        load_tensors(folder / "checkpoints" / f"step-{step:08d}", expected)
        assert all(torch.equal(tensor, stored[name]) for name, tensor in expected.state_dict().items())
    assert echat("export", [str(folder), str(tmp_path / "out"), "--step", "3"]) == 2


def test_a_full_disk_does_not_end_the_run_but_its_last_checkpoint_must_be_written(
    recipe, monkeypatch, tmp_path, capsys
):
    save, room = dcp.save, iter([True, False, True])
    full = OSError(errno.ENOSPC, "No space left on device")

    def sometimes(*arguments, **options):
        if not next(room, False):
            raise full
        return save(*arguments, **options)

    monkeypatch.setattr(dcp, "save", sometimes)
    path = recipe("encoder_ctc", checkpoint={"every_steps": 2, "keep_best": False})
    assert train(path).is_dir()  # saved after 2, not after 4, after 6
    assert "No space left on device" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="No space left .*step-00000006 before it is whole"):
        train(path, ["budget.steps=7"], resume=True)


@pytest.mark.slow
def test_a_stop_file_saves_and_ends_well(recipe, monkeypatch, tmp_path, capsys):
    path, add = recipe("encoder_ctc"), trainer.StepStats.add

    def add_and_stop(sums, *arguments):
        add(sums, *arguments)
        (tmp_path / "run" / "stop").touch()

    with monkeypatch.context() as stopping:
        stopping.setattr(trainer.StepStats, "add", add_and_stop)
        folder = train(path).parent
    assert "stopped after step 1, all saved" in capsys.readouterr().out
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000001"]
    assert train(path, resume=True).is_dir()  # the file has done its work


def test_a_budget_in_epochs_counts_samples(recipe):
    folder = train(recipe("encoder_ctc", budget={"epochs": 2.5}, accumulate=1)).parent
    counts = [row["samples"] for row in metrics(folder) if "loss" in row]
    assert counts[-2] < 2.5 * 14 <= counts[-1]  # 14 records to learn from


def test_an_epoch_of_random_cuts_is_refused(recipe):
    with pytest.raises(ValueError, match=r"budget\.epochs: .*vocoder"):
        train(recipe("vocoder", budget={"epochs": 1}))


@pytest.mark.slow
def test_sigterm_saves_and_ends_well(recipe, tmp_path):
    path = recipe("encoder_ctc", budget={"steps": 100_000}, checkpoint={"every_steps": 100_000})
    command = [sys.executable, "-m", "echat", "train", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.is_file() and log.stat().st_size):
        time.sleep(0.1)
    process.terminate()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "go on with --resume" in output
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())  # the best before it may be there, too
    assert saved[-1].name == f"step-{metrics(tmp_path / 'run')[-1]['step']:08d}"


def test_the_command_says_what_to_mend_in_one_line(recipe, capsys):
    assert echat("train", [str(recipe("encoder_ctc")), "optimizer.learning_rate=1"]) == 2
    assert "unknown key 'learning_rate'" in capsys.readouterr().err
    assert echat("train", [str(recipe("encoder_ctc")), "budget.steps=1", "accumulate=1"]) == 0
