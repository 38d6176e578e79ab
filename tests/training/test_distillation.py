"""Runs with a teacher: what it adds to the loss, that nothing else changes, and which teachers are refused."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gspn_dit import hub
from gspn_dit.checkpoint import latest_checkpoint, load_model, read_state
from gspn_dit.config import load_config
from gspn_dit.data.mnist import Digits
from gspn_dit.errors import UserError
from gspn_dit.evaluation.validation import Validator
from gspn_dit.training import trainer
from gspn_dit.training.distillation import check_data
from gspn_dit.training.trainer import Trainer, train
from tests.conftest import TINY
from tests.training.run_state import final_state, log_rows
from tests.training.test_processes import assert_equal_runs, launch_processes
from tests.training.test_recipe import assert_same_training
from tests.training.test_transfer import name_classes

TWO = "model.depth=2"
FAST = (TWO, "train.validation_images=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a DiT that is away from its start: its gates are open, its prediction is not zero."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"run_dir": str(folder / "run"), **TINY}))
    moved = ("model.name=DiT-S/8", "train.learning_rate=0.02", "train.ema_decay=0.5")
    assert train(load_config(folder / "tiny.yaml", [*FAST, *moved])) == 0
    return folder / "run"


@pytest.fixture
def teacher(trained, tmp_path):
    """The same, for one test alone."""
    return shutil.copytree(trained, tmp_path / "teacher")


@pytest.fixture
def taught(train_run, teacher):
    """taught("name", "key=value", ...) trains with that teacher."""

    def run(name, *overrides):
        return train_run(name, f"train.teacher={teacher}", *FAST, *overrides)

    return run


def test_the_log_has_the_terms_and_the_loss_is_their_sum(taught, capsys):
    for row in log_rows(taught("run", "train.teacher_weight=0.3", "train.teacher_blocks_weight=2.0")):
        assert list(row)[2:7] == ["loss", "mse", "teacher", "teacher_blocks", "grad_norm"]
        added = 0.3 * row["teacher"] + 2 * row["teacher_blocks"]
        assert row["loss"] == pytest.approx(row["mse"] + added, rel=1e-5)
    assert "step_00000010: prediction 0.3, mixers' outputs 2" in capsys.readouterr().out


def test_the_weights_are_a_half_unless_set_and_none_is_a_term_left_out(taught):
    for row in log_rows(taught("run", "train.steps=2")):
        added = 0.5 * (row["teacher"] + row["teacher_blocks"])
        assert row["loss"] == pytest.approx(row["mse"] + added, rel=1e-5)
    assert list(log_rows(taught("alone", "train.steps=1", "train.teacher_blocks_weight=0"))[0])[2:6] == [
        *("loss", "mse", "teacher", "grad_norm")
    ]
    blocks = log_rows(taught("blocks", "train.steps=1", "train.teacher_weight=0"))[0]
    assert list(blocks)[2:6] == ["loss", "mse", "teacher_blocks", "grad_norm"]


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_terms_by_hand(train_run, monkeypatch, objective):
    """Both networks asked for what the first batch asks, their mixers heard by other means."""
    settings = (*FAST, f"diffusion.objective={objective}", "train.class_dropout=0.5")
    teacher = train_run("teacher", *settings, "train.learning_rate=0.02", "train.ema_decay=0.5")
    first = train_run("first", *settings, "train.seed=3", "train.learning_rate=0.01")
    batches, backward = [], Trainer.backward
    monkeypatch.setattr(
        Trainer, "backward", lambda self, batch: batches.append(batch) or backward(self, batch)
    )
    run = train_run("run", *settings, "train.steps=1", f"train.teacher={teacher}", f"train.init_from={first}")
    (batch,) = batches
    t = batch.t.view(-1, 1, 1, 1)
    signal, noise = 1 - t, t
    if objective == "ddpm":
        alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[t.long()]
        signal, noise = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    predictions, outputs = [], []
    for source in (first, teacher):
        network, _, _ = load_model(source)
        for block in network.blocks:
            block.mixer.forward = keeping(block.mixer.forward, outputs)
        with torch.no_grad():
            predictions.append(network(signal * batch.x + noise * batch.noise, batch.t, batch.y))
    row = log_rows(run)[0]
    expected = (predictions[0] - predictions[1]).square().mean()
    assert expected > 1e-4 and row["teacher"] == pytest.approx(float(expected), rel=1e-4)
    shares = [
        ((mine[i] - theirs[i]).square().sum() / theirs[i].square().sum())
        for mine, theirs in zip(outputs[:2], outputs[2:], strict=True)
        for i in range(8)
    ]
    assert row["teacher_blocks"] == pytest.approx(float(sum(shares) / 16), rel=1e-4)


def keeping(forward, outputs):
    def keep(*inputs):
        outputs.append(forward(*inputs))
        return outputs[-1]

    return keep


def test_who_begins_as_the_teacher_has_nothing_to_learn_of_it(train_run, teacher):
    same = (*FAST, "model.name=DiT-S/8", f"train.init_from={teacher}", "train.steps=1")
    row = log_rows(train_run("same", *same, f"train.teacher={teacher}"))[0]
    assert row["teacher"] == row["teacher_blocks"] == 0 and row["loss"] == row["mse"] > 0


def test_outputs_of_zero_have_a_loss_of_one(train_run, teacher):
    """As those of the mixers that begin anew."""
    row = log_rows(
        train_run("run", *FAST, f"train.init_from={teacher}", f"train.teacher={teacher}", "train.steps=1")
    )
    assert row[0]["teacher_blocks"] == pytest.approx(1)


def test_the_teacher_is_learned_from(taught):
    rows = log_rows(taught("run", "train.steps=40", "train.learning_rate=0.01"))
    for term in ("teacher", "teacher_blocks"):
        assert rows[-1][term] < 0.7 * rows[0][term]


def test_the_teacher_is_no_part_of_the_checkpoint(train_run, taught, teacher):
    before = final_state(teacher)
    plain, run = train_run("plain", *FAST), taught("run")
    for name in ("model", "ema", "optimizer"):
        ours, theirs = (load_file(latest_checkpoint(r) / f"{name}.safetensors") for r in (run, plain))
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert "teacher" not in read_state(latest_checkpoint(plain))
    weights = read_state(latest_checkpoint(teacher))["files"]["ema.safetensors"]["sha256"]
    assert read_state(latest_checkpoint(run))["teacher"] == weights
    assert final_state(teacher) == before


@pytest.mark.parametrize(
    "changed",
    [
        "train.micro_batch=2",
        "model.checkpoint_activations=true",
        pytest.param("train.compile=true", marks=pytest.mark.slow),
        pytest.param("train.compile=true model.checkpoint_activations=true", marks=pytest.mark.slow),
    ],
)
def test_the_terms_are_the_same_however_the_work_is_cut(taught, changed):
    watched = ("train.validation_images=8", "train.validate_every=4", "train.sample_every=4")
    settings = (*watched, "train.steps=6")
    assert_same_training(taught("whole", *settings), taught("cut", *settings, *changed.split()))


def test_with_an_auxiliary_head_the_last_layer_is_taught(taught):
    for row in log_rows(taught("run", "model.auxiliary_head=0", "train.steps=3")):
        added = 0.5 * (row["auxiliary"] + row["teacher"] + row["teacher_blocks"])
        assert row["loss"] == pytest.approx(row["mse"] + added, rel=1e-5)


def test_bf16_asks_the_teacher_in_bf16(train_run, teacher):
    same = (
        *FAST,
        "model.name=DiT-S/8",
        f"train.init_from={teacher}",
        "train.steps=1",
        "train.precision=bf16",
    )
    row = log_rows(train_run("same", *same, f"train.teacher={teacher}"))[0]
    assert row["teacher"] == row["teacher_blocks"] == 0


def test_a_resumed_run_is_bit_equal(taught, teacher, tmp_path):
    watched = ("train.validation_images=8", "train.validate_every=5")
    settings = ("train.schedule=constant", "train.checkpoint_every=5", *watched)
    straight = taught("straight", *settings)
    taught("broken", *settings, "train.steps=5")
    shutil.copytree(teacher, tmp_path / "moved")  # where it lies decides nothing
    again = taught("broken", *settings, f"train.teacher={tmp_path / 'moved'}")
    assert final_state(again) == final_state(straight)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train.py", "tests/training/fsdp2_on_cpu.py"], ids=["ddp", "fsdp2"])
def test_two_processes_equal_one(taught, teacher, tiny_yaml, tmp_path, program):
    two = tmp_path / "two"
    watched = ("train.validation_images=33", "train.validate_every=5")
    cut = ("train.micro_batch=2", "train.sample_every=5", f"train.teacher={teacher}", TWO, *watched)
    for steps in (5, 10):
        more = ("train.schedule=constant", f"train.steps={steps}")
        launch_processes(program, str(tiny_yaml), f"run_dir={two}", *cut, *more)
    one = taught("one", "train.schedule=constant", *watched)
    assert_equal_runs(one, two)
    for row, other in zip(log_rows(one), log_rows(two), strict=True):
        assert other["teacher_blocks"] == pytest.approx(row["teacher_blocks"], rel=1e-4)


def test_validation_is_the_plain_error(taught):
    run = taught("run", "train.validation_images=512")
    model, _, _ = load_model(run)
    (batch,) = Validator(Digits("heldout"), "flow", images=512, batch_size=512).batches
    with torch.no_grad():
        predicted = model(torch.lerp(batch.x, batch.noise, batch.t.view(-1, 1, 1, 1)), batch.t, batch.y)
    plain = (predicted - (batch.noise - batch.x)).square().mean()
    assert log_rows(run)[-1]["validation_loss"] == pytest.approx(float(plain), rel=1e-5)


def test_a_release_teaches_as_its_run_does(train_run, taught, teacher, tmp_path):
    release = hub.release(teacher, tmp_path / "release")
    run = train_run("released", *FAST, f"train.teacher={release}")
    assert final_state(run) == final_state(taught("run"))


def test_a_teacher_of_another_depth_teaches_its_prediction_alone(train_run, teacher, capsys):
    run = train_run("run", f"train.teacher={teacher}", "train.steps=1", "train.validation_images=0")
    assert "teacher_blocks" not in log_rows(run)[0] and log_rows(run)[0]["teacher"] > 0
    assert "prediction 0.5, no mixers' outputs" in capsys.readouterr().out


def refused(monkeypatch, train_run, *overrides):
    for name in ("build_model", "open_decoder", "create_optimizer"):
        monkeypatch.setattr(trainer, name, lambda *_: pytest.fail("the work was begun"))
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        train_run("run", *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("diffusion.objective=ddpm",), "has objective flow; expected ddpm, as the network to be trained"),
        (
            ("train.teacher_blocks_weight=1", "model.depth=1"),
            "expected 0 or null: train.teacher {teacher}/checkpoints/step_00000010 has block_count 2, the network 1",
        ),
        (("train.teacher_blocks_weight=1", "model.width=32"), "has width 16, the network 32"),
        (("train.teacher_blocks_weight=1", "model.name=DiT-S/4"), "has patch_size 8, the network 4"),
        (("train.teacher_weight=-1",), "train.teacher_weight: expected a finite number, at least 0, or null"),
        (("train.teacher_blocks_weight=.inf",), "train.teacher_blocks_weight: expected a finite number"),
        (("train.teacher_weight=0", "train.teacher_blocks_weight=0"), "where both of its weights are 0"),
        (("train.teacher=null", "train.teacher_weight=1"), "expected null without train.teacher, got 1.0"),
        (("train.teacher=/nowhere",), "train.teacher: no such run or checkpoint: /nowhere"),
        (("train.teacher={yaml}",), "tiny.yaml is a text; expected a run folder"),
        (("run_dir={teacher}",), "is train.teacher itself: give a new run another folder"),
        (("run_dir={teacher}/checkpoints/x",), "lies in train.teacher"),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_work(
    train_run, teacher, tiny_yaml, monkeypatch, overrides, message
):
    def filled(text):
        return text.format(teacher=teacher, yaml=tiny_yaml)

    found = refused(monkeypatch, train_run, TWO, f"train.teacher={teacher}", *map(filled, overrides))
    assert filled(message) in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, "has num_classes 10; expected 3"),
        ({"channels": 3}, "has in_channels 1; expected 3"),
        ({"size": 16}, "has input_size 32; expected 16"),
        ({"class_names": list("abcdefghij")}, "was trained on other classes: 0 where the data has a"),
        (
            {"normalized": {"normalization": "channels", "channel_mean": [0.5], "channel_std": [2.0]}},
            "was trained on latents normalised otherwise",
        ),
    ],
)
def test_a_teacher_of_other_images_is_refused(train_run, teacher, monkeypatch, changes, message):
    for name, value in changes.items():
        if name == "class_names":
            name_classes(monkeypatch, value)
        else:
            monkeypatch.setattr(Digits, name, value, raising=False)
    found = refused(monkeypatch, train_run, f"train.teacher={teacher}", "train.validation_images=0")
    assert message in found


def test_a_teacher_of_digits_that_are_held_out_now_is_refused(train_run, teacher, monkeypatch):
    found = refused(
        monkeypatch, train_run, f"train.teacher={teacher}", "data.tuning=true", "train.validation_images=0"
    )
    assert "was trained without data.tuning, on digits that are held out now" in found


def test_a_teacher_of_fewer_digits_may_teach():
    tuned = {"class_names": ["a"], "digits": "for tuning"}
    check_data(Path("teacher"), tuned, {"class_names": ["a"]})
    check_data(Path("teacher"), tuned, tuned)


@pytest.mark.parametrize("key", ["weights_hash", "scale", "shift"])
def test_a_teacher_of_other_latents_is_refused(key):
    made = {"class_names": ["a"], "weights_hash": "0123456789abcdef", "scale": 0.18215, "shift": 0.0}
    other = {"weights_hash": "fedcba9876543210", "scale": 0.13025, "shift": 0.1}
    check_data(Path("teacher"), made, made)
    check_data(Path("teacher"), {name: value for name, value in made.items() if name != key}, made)
    with pytest.raises(UserError, match=rf"on latents made otherwise \({key} .* than those of data.path"):
        check_data(Path("teacher"), made | {key: other[key]}, made)


def test_another_teacher_within_a_run_is_refused(train_run, taught, teacher, tmp_path):
    taught("run", "train.steps=4")
    with pytest.raises(
        UserError, match=r"train\.teacher gives no teacher, but .* with weights \w{12}: set it"
    ):
        train_run("run", TWO)
    shutil.copytree(teacher, tmp_path / "other")
    shutil.rmtree(latest_checkpoint(tmp_path / "other"))
    with pytest.raises(UserError, match=r"train\.teacher gives weights \w{12}, but .* with weights"):
        taught("run", f"train.teacher={tmp_path / 'other'}")
    with pytest.raises(UserError, match=r"train\.teacher_weight is 0\.1, but .* was trained with null"):
        taught("run", "train.teacher_weight=0.1")
    shutil.rmtree(teacher)
    assert log_rows(taught("run", "train.steps=4"))[-1]["step"] == 4  # it is at its end: nobody is asked
    assert load_config(tmp_path / "run" / "config.yaml").train.teacher == str(teacher)
