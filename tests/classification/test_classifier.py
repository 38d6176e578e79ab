"""Training and evaluation of a classifier: what it learns, resumes, draws and refuses."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from PIL import Image
from safetensors.torch import load_file

import sample
import train as train_diffusion
from gspn_dit.checkpoint import latest_checkpoint
from gspn_dit.classification import evaluate, pictures, train
from gspn_dit.classification.backbone import create_backbone
from gspn_dit.classification.classifier import ClassifierTraining, load_classifier
from gspn_dit.classification.drawing import PictureBatches
from gspn_dit.classification.pictures import NoisyRandAugment, Pictures, split_pictures
from gspn_dit.classification.recipe import load_recipe
from gspn_dit.classification.scoring import Predictions
from gspn_dit.config import load_config
from gspn_dit.errors import UserError
from gspn_dit.training.build import create_optimizer
from gspn_dit.training.log import read_metrics
from tests.classification.conftest import write_pictures
from tests.launch import ROOT, accelerate_launch
from tests.training.run_state import log_rows
from tests.utils import assert_near

PLAIN = ("augment.mixup=0", "augment.cutmix=0", "augment.erasing=0", "augment.rand_augment=null")


def weights(run):
    folder = latest_checkpoint(run)
    return {
        f"{name}.{key}": value
        for name in ("model", "ema", "optimizer")
        for key, value in load_file(folder / f"{name}.safetensors").items()
    }


def test_it_learns_three_colours(train_run, colours, capsys):
    run = train_run("run", "train.steps=30", "train.checkpoint_every=0", "augment.jitter=0", *PLAIN)
    rows = read_metrics(run / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.9 < rows[0]["loss"] and rows[-1]["validation_top1"] == 1.0
    assert "validation_top5" not in rows[-1] and "validation_top1" not in rows[-2]
    assert (run / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert evaluate.main([str(run), str(colours)]) == 0
    scores = json.loads((run / "evaluation.json").read_text())
    assert scores["top1"] == 1.0 and scores["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert scores["loss"] == pytest.approx(rows[-1]["validation_loss"], rel=1e-4)
    assert scores["classes"]["red"] == {"images": 4, "accuracy": 1.0}
    assert (run / "evaluation.png").read_bytes()[:4] == b"\x89PNG"
    assert "top1  100.00%" in capsys.readouterr().out


@pytest.mark.parametrize("muon", ["null", "3"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(train_run, muon):
    whole, stopped = (train_run(name, f"train.muon={muon}") for name in ("whole", "stopped"))
    shutil.rmtree(stopped / "checkpoints" / "step_00000006")
    shutil.rmtree(stopped / "checkpoints" / "step_00000004")
    expected, found = weights(whole), weights(train_run("stopped", f"train.muon={muon}"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    keys = ("step", "loss", "grad_norm", "validation_top1")
    logs = [
        [[row.get(k) for k in keys] for row in read_metrics(r / "metrics.jsonl")] for r in (whole, stopped)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 6


def test_micro_batches_workers_and_recomputing_change_no_draw(train_run):
    one = weights(train_run("one", "train.steps=2"))
    settings = ("train.micro_batch=2", "data.workers=1", "model.checkpoint_activations=true")
    other = weights(train_run("other", "train.steps=2", *settings))
    # The mean of the gradients, not the weights: AdamW makes a whole step of a gradient that is all rounding.
    moments = [name for name in one if name.startswith("optimizer.exp_avg.")]
    assert moments
    for name in moments:
        assert_near(other[name], one[name], name, tolerance=1e-3)


def batches(recipe, *overrides, **shares):
    config = load_recipe(recipe, overrides)
    images, _ = split_pictures(config.data)
    return PictureBatches(
        Pictures(images, config.data, config.augment),
        augment=config.augment,
        branches=8,
        workers=0,
        batch_size=8,
        seed=1,
        **{"micro_batch": None, **shares},
    )


def test_draws_are_of_the_picture_s_number(recipe):
    whole = batches(recipe).step(3)[0]
    parts = [batches(recipe, micro_batch=2, rank=rank, processes=2).step(3) for rank in (0, 1)]
    for name, tensor in whole.tensors().items():
        assert torch.equal(torch.cat([batch.tensors()[name] for half in parts for batch in half]), tensor), (
            name
        )
    assert whole.x.shape == (8, 3, 16, 16) and whole.y.shape == (8, 3)
    assert_near(whole.y.sum(dim=1), torch.ones(8))
    assert not torch.equal(whole.x, batches(recipe).step(4)[0].x)
    torch.manual_seed(5)
    before = torch.default_generator.get_state()
    batches(recipe).step(0)
    assert torch.equal(torch.default_generator.get_state(), before)


def test_pairs_are_mixed_with_each_other(recipe):
    # Without padding and the like, whose places may be alike in both pictures.
    settings = ("data.crop=resized", "data.resize=16", "augment.rand_augment=null", "augment.jitter=0")
    plain = batches(recipe, *settings, "augment.mixup=0", "augment.cutmix=0").step(0)[0]
    mixed = batches(recipe, *settings, "augment.cutmix=0").step(0)[0]
    cut = batches(recipe, *settings, "augment.mixup=0").step(0)[0]
    assert plain.y.dtype == torch.int64
    for place in range(0, 8, 2):
        one, two = plain.x[place : place + 2]
        found = mixed.x[place]
        share = ((found - two) * (one - two)).sum() / (one - two).square().sum()
        assert_near(found, share * one + (1 - share) * two, tolerance=1e-4)
        classes = torch.nn.functional.one_hot(plain.y[place : place + 2], 3).float()
        assert_near(mixed.y[place], share * classes[0] + (1 - share) * classes[1], tolerance=1e-3)
        whose = (cut.x[place] == two).all(dim=0).float()  # of the other picture
        assert torch.equal(cut.x[place], torch.where(whose.bool(), two, one))
        assert_near(cut.y[place], whose.mean() * classes[1] + (1 - whose.mean()) * classes[0], tolerance=1e-3)
    with pytest.raises(UserError, match="expected an even number of pictures for each process"):
        batches(recipe, micro_batch=1).check_pairs()


def test_randaugment_s_magnitude_is_nine_of_ten_give_or_take(monkeypatch):
    transform = NoisyRandAugment(9.0)
    found = []
    monkeypatch.setattr(
        transform,
        "_apply_image_or_video_transform",
        lambda image, *rest, **more: found.append(transform.magnitude),
    )
    for _ in range(300):
        transform(torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert np.mean(found) == pytest.approx(90, abs=1) and np.std(found) == pytest.approx(5, abs=1)
    assert max(found) <= 100


def test_pictures_of_other_sizes(recipe, tmp_path):
    """Whole pictures are cropped at random in training, and scaled and cropped in the middle in evaluation."""
    write_pictures(tmp_path / "large", 2, 0, sides=(40, 60))
    settings = (f"data.path={tmp_path / 'large'}", "data.crop=resized", "data.resize=20", "data.held_out=0.5")
    config = load_recipe(recipe, settings)
    images, held_out = split_pictures(config.data)
    drawn = Pictures(images, config.data, config.augment).draw(np.arange(3), np.arange(3), 0)
    assert drawn[0].shape == (3, 3, 16, 16) and drawn[1].tolist() == [0, 1, 2]
    x, _ = Pictures(held_out, config.data, None).draw(np.arange(3), np.arange(3), 0)
    means = (x * torch.tensor(pictures.STD).view(3, 1, 1) + torch.tensor(pictures.MEAN).view(3, 1, 1)).mean(
        dim=(2, 3)
    )
    expected = torch.tensor([[0, 0, 200], [0, 200, 0], [200, 0, 0]]).add(27.5) / 255
    assert_near(means, expected, tolerance=0.03)


@pytest.mark.parametrize("side", [0.0, 0.02, 0.25])
def test_padded_pictures_move_by_a_share_of_their_side(recipe, side):
    """By whole pixels, at least one where they move at all, with black behind them."""
    config = load_recipe(recipe, [*PLAIN, "augment.jitter=0", "augment.flip=false", f"augment.shift={side}"])
    images, _ = split_pictures(config.data)
    where = np.full(200, 3)
    moved = Pictures(images, config.data, config.augment).draw(where, np.arange(200), 0)[0]
    still = Pictures(images, config.data, None).draw(where[:1], np.arange(1), 0)[0]
    most = max(1, round(16 * side)) if side else 0
    black = (torch.zeros(3) - torch.tensor(pictures.MEAN)) / torch.tensor(pictures.STD)
    canvas = black.view(1, 3, 1, 1).expand(1, 3, 16 + 2 * most, 16 + 2 * most).clone()
    canvas[:, :, most : most + 16, most : most + 16] = still
    places = [(row, column) for row in range(2 * most + 1) for column in range(2 * most + 1)]
    windows = torch.cat([canvas[:, :, row : row + 16, column : column + 16] for row, column in places])
    same = (moved[:, None] - windows).abs().amax(dim=(2, 3, 4)) < 1e-6  # (200, places)
    assert same.any(dim=1).all() and same.any(dim=0).sum() > 0.8 * len(places)


def test_only_matrices_decay(recipe):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    config = load_recipe(recipe)
    groups = create_optimizer(model, config.train, torch.device("cpu"), decay_all=False).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decays[id(p)] for p in model.parameters()] == [0.05, 0.0, 0.0, 0.0]


def test_muon_trains_the_matrices_of_the_stages(recipe):
    config = load_recipe(recipe, ["train.muon=2"])
    model = create_backbone("gspn_tiny", width=8, depths=(1, 1, 1, 1), rank=2, num_classes=3)
    accelerator = SimpleNamespace(device=torch.device("cpu"), distributed_type=DistributedType.NO)
    training = SimpleNamespace(config=config, accelerator=accelerator)
    groups = ClassifierTraining.create_optimizer(training, model).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [{names[parameter] for parameter in group["params"]} for group in groups]
    blocks = [f"stages.{stage}.blocks.0." for stage in range(4)]
    layers = ["mixer.proj_in", "mixer.proj_out", "mlp.hidden", "mlp.out", "mixer.core.bottleneck"]
    layers += [f"mixer.core.to_{name}" for name in ("lam", "u", "logits", "skip")]
    assert found[0] == {f"{block}{layer}.weight" for block in blocks for layer in layers}
    assert set.union(*found) == set(names.values()) and sum(map(len, found)) == len(names)
    assert [group.get("share") for group in groups] == [2.0, None, None]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.05, 0.0]
    accelerator.distributed_type = DistributedType.FSDP
    with pytest.raises(UserError, match=r"train\.muon: expected null with sharded weights"):
        ClassifierTraining.create_optimizer(training, model)


def test_measures():
    """Five pictures of six classes: two right, one more within five."""
    best = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 1, 2, 3, 4], [2, 1, 0, 3, 4], [3, 1, 2, 0, 5]])
    labels = torch.tensor([0, 1, 0, 0, 4])
    found = Predictions(labels, best, torch.arange(5.0), 6)
    assert found.measures() == pytest.approx({"loss": 2.0, "top1": 0.4, "top5": 0.6})
    confusion = found.confusion()
    assert confusion[0].tolist() == [1, 0, 1, 0, 0, 1] and confusion.sum() == 5 and confusion[4, 3] == 1


def refused(main, *arguments) -> str:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        main(list(map(str, arguments)))
    return str(caught.value)


def test_bad_trainings(recipe, colours, tmp_path, monkeypatch):
    monkeypatch.setattr("gspn_dit.training.loop.Loop.train", None)
    flat = tmp_path / "flat"
    shutil.copytree(colours / "train" / "red", flat)
    one = tmp_path / "one" / "red"
    shutil.copytree(flat, one)
    diffusion = tmp_path / "diffusion.yaml"
    diffusion.write_text("run_dir: x\nmodel: {name: DiT-S/2}\ndiffusion: {objective: flow}\n")
    for arguments, message in (
        ((recipe, f"data.path={flat}"), "flat has no classes: expected a folder for each of them in it"),
        ((recipe, f"data.path={one.parent}"), "one has one class, red: expected two or more"),
        ((recipe, f"data.path={tmp_path / 'none'}"), "none does not exist"),
        ((recipe, "data.size=1"), "data.size: expected at least 2, the stride of the stem"),
        ((recipe, "model.name=gspn_large"), "model: backbone name is 'gspn_large'"),
        ((recipe, "augment.cutmix=.inf"), "augment.cutmix: expected a finite number, at least 0, got inf"),
        ((recipe, "model.width=7"), "model: width is 7; expected an even number above 0"),
        ((recipe, "train.batch_size=7"), "expected an even number of pictures"),
        ((recipe, "augment.rand_augment=11"), "augment.rand_augment: expected from 0 to 10, or null, got 11"),
        ((recipe, "augment.mixedup=1"), "unknown key 'augment.mixedup'; did you mean 'augment.mixup'?"),
        ((recipe, f"run_dir={colours}/train/run"), "lies in data.path"),
        ((diffusion,), "it is for a diffusion model, which train.py trains"),
    ):
        assert message in refused(train.main, *arguments)
    with pytest.raises(UserError, match="it is for a classifier, which"):
        load_config(recipe)
    with pytest.raises(UserError, match="it is for a distillation, which"):
        load_recipe(ROOT / "configs" / "distil" / "sd15.yaml")


@pytest.mark.parametrize("crop", ["padded", "resized"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read(crop, workers, train_run, colours, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(colours, broken)
    for file in (broken / "train").rglob("*.png"):
        file.write_bytes(b"no picture")
    settings = (f"data.path={broken}", f"data.crop={crop}", f"data.workers={workers}")
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        train_run("run", *settings)
    assert ".png" in str(caught.value) and "cannot identify image file" in str(caught.value)
    assert "mend" in str(caught.value)
    assert not multiprocessing.active_children()


def refuse(*arguments):
    raise UserError("no held-out picture")


def test_what_was_trained_before_a_picture_that_cannot_be_read_is_kept(train_run, monkeypatch):
    draw = PictureBatches.draw

    def once(self, numbers):
        if numbers[0] >= 3 * self.batch_size:
            raise UserError("no picture")
        return draw(self, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(PictureBatches, "draw", once)
        with pytest.raises(UserError, match=r"no picture; the last good checkpoint is .*/step_00000003"):
            train_run("stopped", "train.checkpoint_every=0")
        with pytest.raises(UserError, match=r"no picture; the last good checkpoint is .*/step_00000003"):
            train_run("stopped", "train.checkpoint_every=0")
    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTraining, "measure", refuse)
        with pytest.raises(UserError, match=r"no held-out picture; the last good checkpoint is .*_00000005"):
            train_run("stopped", "train.checkpoint_every=0", "train.validate_every=5")
    whole, stopped = (weights(train_run(name, "train.checkpoint_every=0")) for name in ("whole", "stopped"))
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)


def test_bad_evaluations(train_run, colours, tmp_path):
    run = train_run("run", "train.steps=1", *PLAIN)
    two, other, broken = tmp_path / "two", tmp_path / "other", tmp_path / "broken"
    for folder in (two, other, broken):
        shutil.copytree(colours / "test", folder)
    shutil.rmtree(two / "red")
    (other / "red").rename(other / "rot")
    Image.new("RGB", (16, 16)).save(other / "rot" / "more.png")
    (broken / "red" / "100.png").write_bytes(b"no picture")
    for arguments, message in (
        ((run, two), "two has 2 classes, the run 3: expected the classes of the run"),
        ((run, other), "other has the class rot, which the run has not"),
        ((run, colours / "test" / "red"), "red has no classes"),
        ((run, tmp_path / "none"), "none does not exist"),
        ((run, broken), "100.png (cannot identify image file"),
        ((tmp_path / "nowhere", two), "nowhere is no run"),
        ((run, two, "--batch-size", 0), "--batch-size 0: expected at least 1"),
        ((run, two, "--json", "scores.txt"), "expected a name that ends in .json"),
        ((run, two, "--json", next(run.glob("checkpoints/*/state.json"))), "lies in the run's checkpoints"),
    ):
        assert message in refused(evaluate.main, *arguments)
    for given in ((run,), (ROOT / "pretrained" / "digits", "--guide", run)):
        assert "it is for a classifier" in refused(sample.main, *given, "--out", tmp_path / "g.png")
    for key in ("train.init_from", "train.teacher"):
        settings = (ROOT / "configs" / "demo.yaml", f"run_dir={tmp_path / 'other'}", f"{key}={run}")
        assert "it is for a classifier" in refused(train_diffusion.main, *settings)


def test_a_run_of_another_kind(tmp_path, colours):
    shutil.copytree("tests/written_before/run", tmp_path / "run")
    assert "it is for a diffusion model" in refused(evaluate.main, tmp_path / "run", colours)


def test_the_last_weights_too(train_run):
    run = train_run("run", "train.steps=1", *PLAIN)
    models = [load_classifier(run, ema=ema)[0] for ema in (True, False)]
    assert not models[0].training and models[0].config["num_classes"] == 3
    assert not torch.equal(models[0].head.weight, models[1].head.weight)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_all_processes_stops_it_with_a_checkpoint(number, recipe, tmp_path):
    """As a terminal or a cluster sends it, to the workers too."""
    command = [sys.executable, "-m", "gspn_dit.classification.train", recipe, "data.workers=2"]
    command += ["train.steps=5000", "train.checkpoint_every=0", "train.validate_every=0"]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        log = tmp_path / "run" / "metrics.jsonl"
        while run.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 2):
            time.sleep(0.05)
        os.killpg(run.pid, number)
        said = run.stderr.read()
    assert run.returncode == 128 + number and "the same command continues" in said
    assert "Traceback" not in said and said.count("a checkpoint after this step") == 1
    assert latest_checkpoint(tmp_path / "run").name == f"step_{len(read_metrics(log)):08d}"


@pytest.mark.slow
def test_two_processes_equal_one(train_run, recipe, tmp_path):
    """By the command of the README, with other micro-batches: losses, and what validation found."""
    one, two = train_run("one", "data.workers=1"), tmp_path / "two"
    settings = (recipe, f"run_dir={two}", "train.micro_batch=2", "data.workers=1")
    assert "2 x cpu" in accelerate_launch("-m", "gspn_dit.classification.train", *settings)
    for row, other in zip(log_rows(one), log_rows(two), strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    assert row["validation_top1"] <= 1
