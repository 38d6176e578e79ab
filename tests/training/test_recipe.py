"""Runs with the terms that weights add to the loss, and with an auxiliary head."""

import math

import pytest
import torch
from safetensors.torch import load_file

from gspn_dit import hub
from gspn_dit.checkpoint import latest_checkpoint, load_model
from gspn_dit.config import load_config
from gspn_dit.data.mnist import Digits
from gspn_dit.errors import UserError
from gspn_dit.evaluation.validation import Validator
from gspn_dit.processes import connect
from gspn_dit.training.build import build_diffusion
from gspn_dit.training.trainer import Trainer
from tests.training.run_state import final_state, log_rows
from tests.training.test_processes import assert_equal_runs, launch_processes

TERMS = ("diffusion.cosine_weight=1.0", "diffusion.contrastive_weight=0.05")
HEAD = ("model.depth=2", "model.auxiliary_head=0")
ALL = (*TERMS, *HEAD, "diffusion.auxiliary_weight=0.25")


def assert_same_training(run_a, run_b) -> None:
    for row, other in zip(log_rows(run_a), log_rows(run_b), strict=True):
        assert other == pytest.approx(row, rel=1e-5)
    tensors = [load_file(latest_checkpoint(run) / "ema.safetensors") for run in (run_a, run_b)]
    torch.testing.assert_close(*tensors, rtol=1e-3, atol=1e-4)


def test_the_log_has_the_terms_and_the_loss_is_their_sum(train_run):
    for row in log_rows(train_run("run", *ALL)):
        assert list(row)[2:8] == ["loss", "mse", "cosine", "contrastive", "auxiliary", "grad_norm"]
        last = row["mse"] + row["cosine"] - 0.05 * row["contrastive"]
        assert row["loss"] == pytest.approx(last + 0.25 * row["auxiliary"], rel=1e-5)
    plain = log_rows(train_run("plain"))[0]
    assert list(plain)[2:5] == ["loss", "mse", "grad_norm"] and plain["loss"] == plain["mse"]


def test_the_contrast_of_a_step_is_that_of_its_batch(train_run, monkeypatch):
    """A fresh network predicts zero: the squared distance of its first step is the contrast's own square."""
    batches, backward = [], Trainer.backward
    monkeypatch.setattr(
        Trainer, "backward", lambda self, batch: batches.append(batch) or backward(self, batch)
    )
    row = log_rows(train_run("run", *TERMS, "train.steps=1"))[0]
    assert row["contrastive"] == pytest.approx(float(batches[0].contrast.square().mean()), rel=1e-5)


def test_the_weight_of_a_head_is_a_half_unless_set(train_run, tiny_yaml):
    for row in log_rows(train_run("run", *HEAD)):
        assert row["loss"] == pytest.approx(row["mse"] + 0.5 * row["auxiliary"], rel=1e-5)
    assert build_diffusion(load_config(tiny_yaml)).auxiliary_weight == 0
    ddpm = load_config(tiny_yaml, ["diffusion.objective=ddpm", *HEAD])
    assert build_diffusion(ddpm).auxiliary_weight == 0.5


def test_the_auxiliary_head_and_its_average_are_trained_and_released(train_run, tmp_path):
    run = train_run("run", *HEAD, "train.ema_decay=0.5")
    tensors = {name: load_file(latest_checkpoint(run) / f"{name}.safetensors") for name in ("model", "ema")}
    for kind in ("modulation", "proj"):
        last, average = (tensors[name][f"auxiliary.{kind}.weight"] for name in ("model", "ema"))
        assert last.any() and average.any() and not torch.equal(last, average)
    release = hub.release(run, tmp_path / "release")
    released = load_model(release)[0].state_dict()
    assert torch.equal(released["auxiliary.proj.weight"], tensors["ema"]["auxiliary.proj.weight"])


def test_a_ddpm_run_trains_its_head(train_run):
    for row in log_rows(train_run("run", "diffusion.objective=ddpm", *HEAD)):
        assert row["loss"] == pytest.approx(row["mse"] + row["vb"] + 0.5 * row["auxiliary"], rel=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        "train.micro_batch=2",
        "model.checkpoint_activations=true",
        pytest.param("train.compile=true", marks=pytest.mark.slow),
    ],
)
def test_the_terms_are_the_same_however_the_work_is_cut(train_run, changed):
    assert_same_training(train_run("whole", *ALL), train_run("cut", *ALL, changed))


def test_a_resumed_run_is_bit_equal(train_run):
    settings = (*ALL, "train.schedule=constant", "train.checkpoint_every=5", "train.validate_every=5")
    straight = train_run("straight", *settings)
    train_run("broken", *settings, "train.steps=5")
    assert final_state(train_run("broken", *settings)) == final_state(straight)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train.py", "tests/training/fsdp2_on_cpu.py"], ids=["ddp", "fsdp2"])
def test_two_processes_equal_one(train_run, tiny_yaml, tmp_path, program):
    one = train_run("one", *ALL)
    two = tmp_path / "two"
    cut = ("train.micro_batch=2", "train.sample_every=5", "sample.internal_guidance=1.5")
    launch_processes(program, str(tiny_yaml), f"run_dir={two}", *ALL, *cut)
    assert_equal_runs(one, two)


def test_validation_is_the_plain_error_of_the_last_layer(train_run):
    run = train_run("run", *ALL)
    found = log_rows(run)[-1]["validation_loss"]
    model, _, _ = load_model(run)
    (batch,) = Validator(Digits("heldout"), "flow", images=512, batch_size=512).batches
    with torch.no_grad():
        predicted = model(torch.lerp(batch.x, batch.noise, batch.t.view(-1, 1, 1, 1)), batch.t, batch.y)
    plain = (predicted - (batch.noise - batch.x)).square().mean()
    assert found == pytest.approx(float(plain), rel=1e-5)
    assert connect().num_processes == 1


def test_grids_of_training_are_guided_by_the_head(train_run, monkeypatch):
    asked = []
    original = Trainer.sample
    monkeypatch.setattr(
        Trainer,
        "sample",
        lambda self: (asked.append(self.config.sample.internal_guidance), original(self))[0],
    )
    settings = (*HEAD, "train.sample_every=4", "train.learning_rate=0.05")
    plain = train_run("plain", *settings)
    guided = train_run("guided", *settings, "sample.internal_guidance=3.0")
    assert asked == [1.0, 1.0, 3.0, 3.0]
    grids = [(run / "samples" / "step_00000008.png").read_bytes() for run in (plain, guided)]
    assert grids[0] != grids[1]


@pytest.mark.parametrize("changed", ["diffusion.cosine_weight=0.5", "diffusion.auxiliary_weight=0.1"])
def test_a_weight_does_not_change_within_a_run(train_run, changed):
    train_run("run", *ALL)
    with pytest.raises(UserError, match=rf"{changed.replace('=', ' is ')}, but .* was trained with "):
        train_run("run", *ALL, changed)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("diffusion.objective=ddpm", "diffusion.cosine_weight=1.0"),
            "diffusion.cosine_weight: expected null for objective ddpm, whose network predicts no velocity, got 1.0",
        ),
        (
            ("diffusion.objective=ddpm", "diffusion.contrastive_weight=0.05"),
            "diffusion.contrastive_weight: expected null for objective ddpm",
        ),
        (
            ("diffusion.contrastive_weight=0.05", "train.batch_size=1"),
            "train.batch_size: expected at least 2 with diffusion.contrastive_weight, got 1",
        ),
        (("diffusion.contrastive_weight=1.0",), "contrastive_weight is 1.0; expected a number below 1"),
        (("diffusion.cosine_weight=-1",), "cosine_weight is -1.0; expected a finite number, at least 0"),
        (
            ("diffusion.auxiliary_weight=0.5",),
            "diffusion.auxiliary_weight: expected null without model.auxiliary_head, got 0.5",
        ),
        (
            (*HEAD, "diffusion.auxiliary_weight=0"),
            "diffusion.auxiliary_weight: expected above 0 with model.auxiliary_head, got 0.0",
        ),
        (
            ("sample.internal_guidance=1.5",),
            "sample.internal_guidance: expected 1.0 (none) without model.auxiliary_head, got 1.5",
        ),
        ((*HEAD, "sample.internal_guidance=0.5"), "sample.internal_guidance: expected at least 1.0"),
        (("model.auxiliary_head=0",), "model: auxiliary_head is 0; expected none"),
        (("model.name=GSPN-S/4", *HEAD), "model: auxiliary_head is 0; expected none: long skips pass"),
    ],
)
def test_what_cannot_be_is_one_line(train_run, overrides, message):
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        train_run("run", *overrides)
    assert message in str(caught.value)


def test_a_contrastive_run_stays_finite_below_zero(train_run):
    """The loss may be negative, which the curve of a run must bear."""
    run = train_run("run", "diffusion.contrastive_weight=0.99", "train.learning_rate=0.01")
    assert all(math.isfinite(row["loss"]) for row in log_rows(run))
    assert log_rows(run)[-1]["loss"] < 0 and (run / "loss.png").exists()
