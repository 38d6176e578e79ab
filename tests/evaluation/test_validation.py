"""Validation loss: by hand, the same however the work is cut, apart from training, and as a command."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gspn_dit.data import describe_dataset
from gspn_dit.data.mnist import Digits
from gspn_dit.data.order import EpochOrder
from gspn_dit.errors import UserError
from gspn_dit.evaluation import validation
from gspn_dit.evaluation.validation import BANDS, KEY, Losses, Validator, paired_difference, times
from tests.data.test_pixels import write_images
from tests.launch import accelerate_launch
from tests.training.run_state import final_state, log_rows

ALONE = SimpleNamespace(device=torch.device("cpu"), gather=lambda rows: rows)
"""An accelerator of one process."""


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits("heldout")


def zero(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A network that predicts nothing, for flow."""
    return torch.zeros_like(x)


class Brightness(nn.Module):
    """A network whose prediction depends on everything it is given."""

    def forward(self, x, t, y):
        return x * t.view(-1, 1, 1, 1) - y.view(-1, 1, 1, 1) / 5


def test_held_out_digits_are_not_those_of_training(digits):
    assert (len(digits), len(Digits())) == (1000, 4000)
    train = {image.numpy().tobytes() for image in Digits().images}
    assert not train & {image.numpy().tobytes() for image in digits.images}


def test_the_loss_is_the_squared_error_of_the_velocity(digits):
    losses = Validator(digits, "flow", images=7)(Brightness(), ALONE)
    indices = EpochOrder(1000, KEY).indices(np.arange(7))
    for number, index in enumerate(indices.tolist()):
        noise = Validator(digits, "flow", images=7, batch_size=1).batches[number].noise[0]
        x, y, t = digits.images[index], digits.labels[index], losses.times[number]
        predicted = (x + t * (noise - x)) * t - y / 5
        expected = (predicted - (noise - x)).square().mean()
        assert losses.values[number] == pytest.approx(float(expected), rel=1e-5)


def test_of_ddpm_it_is_that_of_the_noise_without_the_variance(digits):
    validator = Validator(digits, "ddpm", images=64, batch_size=64)
    losses = validator(lambda x, t, y: torch.cat([zero(x, t, y), x + 7], dim=1), ALONE)
    (batch,) = validator.batches
    assert np.array_equal(batch.t.numpy(), np.floor(1000 * losses.times))
    np.testing.assert_allclose(losses.values, batch.noise.square().mean(dim=(1, 2, 3)), rtol=1e-6)


def test_times_are_spread_evenly_over_any_first_images():
    for count in (3, 10, 100, 512):
        parts = np.histogram(times(np.arange(count)), bins=3, range=(0, 1))[0]
        assert abs(parts - count / 3).max() <= 2
    assert times(np.array([0, 1])) == pytest.approx([0.309017, 0.927051], abs=1e-6)


def test_times_do_not_follow_those_of_training(train_run, digits):
    run_dir = train_run("run", "diffusion.time_distribution=logit_normal", "diffusion.time_mean=2.0")
    (row,) = [row for row in log_rows(run_dir) if "validation_loss" in row]
    model, _, _ = validation.load_model(run_dir)
    assert row["validation_loss"] == pytest.approx(Validator(digits, "flow")(model, ALONE).means()["loss"])


def test_draws_never_change(digits):
    """Validation losses of old and new runs stay comparable: these are the numbers of the first image."""
    (batch,) = Validator(digits, "flow", images=1).batches
    assert EpochOrder(1000, KEY).indices(np.arange(3)).tolist() == INDICES
    assert batch.noise[0, 0, 0, :3].tolist() == pytest.approx(NOISE, abs=1e-6)


INDICES = [648, 931, 862]
NOISE = [0.950034, -1.855264, -0.151281]


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (7, 1), (100, 1), (4, 2), (3, 3), (64, 8)])
def test_the_same_losses_for_any_batch_size_and_number_of_processes(digits, batch_size, processes):
    whole = Validator(digits, "flow", images=50, batch_size=50)(Brightness(), ALONE)
    shares = [
        Validator(digits, "flow", images=50, batch_size=batch_size, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    sizes = {tuple(len(batch.t) for batch in share.batches) for share in shares}
    assert len(sizes) == 1 and max(sizes.copy().pop()) <= batch_size  # as many forwards, of one size
    values = np.concatenate([share(Brightness(), ALONE).values for share in shares])[:50]
    np.testing.assert_allclose(values, whole.values, rtol=1e-6)


def test_fewer_images_are_the_first_of_more(digits):
    few, many = (Validator(digits, "flow", images=n)(Brightness(), ALONE) for n in (20, 5000))
    assert len(many.values) == 1000
    np.testing.assert_allclose(many.values[:20], few.values, rtol=1e-6)
    assert np.array_equal(many.times[:20], few.times)


def test_bands_are_thirds_of_t_or_as_asked():
    losses = Losses(np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.1, 0.32, 0.65, 0.9]))
    assert losses.means() == {"loss": 3.75, "low": 1.5, "middle": 4.0, "high": 8.0}
    assert losses.means((0.3, 0.6)) == {"loss": 3.75, "low": 1.0, "middle": 2.0, "high": 6.0}
    assert losses.means((0.05, 0.6)) == {"loss": 3.75, "middle": 1.5, "high": 6.0}


def test_paired_differences():
    base = Losses(np.array([1.0, 2.0, 3.0, 2.0]), np.zeros(4))
    other = dataclasses.replace(base, values=np.array([1.2, 2.0, 2.8, 1.6]))
    # Differences 0.2, 0, -0.2, -0.4 over a mean of 2: -0.05, and a deviation of 0.258 / 2 over 2, the root of four.
    assert paired_difference(other, base) == pytest.approx((-0.05, 0.0645497))


def test_a_run_validates_where_it_is_told_and_at_its_end(train_run):
    run_dir = train_run("run", "train.validate_every=3", "train.log_every=4", "train.validation_images=40")
    rows = log_rows(run_dir)
    keys = {f"validation_{name}" for name in ("loss", *BANDS)}
    assert [row["step"] for row in rows] == [3, 4, 6, 8, 9, 10]
    assert [row["step"] for row in rows if keys <= row.keys()] == [3, 6, 9, 10]
    assert not any(keys & row.keys() for row in rows if row["step"] in (4, 8))
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
    with Image.open(run_dir / "loss.png") as chart:  # matplotlib's C1 is the colour of validation alone
        assert (np.asarray(chart.convert("RGB")) == (255, 127, 14)).all(axis=2).any()


def test_validation_does_not_disturb_training(train_run):
    runs = [train_run(f"{n}", "train.validate_every=1", f"train.validation_images={n}") for n in (9, 90)]
    silent = train_run("silent", "train.validation_images=0", "train.validate_every=0")
    states = [final_state(run) for run in (*runs, silent)]
    assert states[0]["hashes"] == states[1]["hashes"] == states[2]["hashes"]
    assert not any("validation" in key for row in states[2]["log"] for key in row)


def test_a_resumed_run_validates_as_an_uninterrupted_one(train_run):
    settings = ("train.validate_every=2", "train.log_every=3", "train.validation_images=30")
    straight, broken = train_run("straight", *settings), train_run("broken", *settings)
    for step in (8, 10):
        folder = broken / "checkpoints" / f"step_{step:08d}"
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    train_run("broken", *settings)
    assert final_state(broken) == final_state(straight)


def test_tensorboard_shows_validation_apart(train_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = train_run("run", "train.tensorboard=true")
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    (shown,) = events.Scalars("validation/loss")
    assert shown.step == 10 and shown.value == pytest.approx(log_rows(run_dir)[-1]["validation_loss"])
    assert "train/validation_loss" not in events.Tags()["scalars"]


def measure(*arguments, path) -> dict:
    """The JSON of the command."""
    assert validation.main([*map(str, arguments), "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_command_gives_the_numbers_of_training(train_run, tmp_path, objective, capsys):
    run_dir = train_run("run", f"diffusion.objective={objective}")
    capsys.readouterr()
    result = measure(run_dir, "--images", 512, "--batch-size", 100, path=tmp_path / "v.json")
    row, (found,) = log_rows(run_dir)[-1], result["runs"]
    for name in ("loss", *BANDS):
        assert found[name] == pytest.approx(row[f"validation_{name}"], rel=1e-5)
        assert f"{found[name]:.5f}" in capsys.readouterr().out or name != "loss"
    assert (found["step"], result["images"], len(result["times"])) == (10, 512, len(found["values"]))
    assert np.mean(found["values"]) == pytest.approx(found["loss"])
    last = measure(run_dir, "--images", 512, "--weights", "last", path=tmp_path / "last.json")
    assert last["runs"][0]["loss"] != found["loss"]


def test_the_command_compares_runs_image_by_image(train_run, tmp_path, capsys):
    runs = [train_run("a"), train_run("b", "train.seed=1")]
    capsys.readouterr()
    result = measure(*runs, "--edges", "0.3,0.6", path=tmp_path / "v.json")
    a, b = (Losses(np.array(run["values"]), np.array(result["times"])) for run in result["runs"])
    difference, error = paired_difference(b, a)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith(f"{difference:+.2%} ± {error:.2%}") and "%" not in lines[1]
    assert "t < 0.3" in lines[0] and "0.3 to 0.6" in lines[0]
    assert result["runs"][0]["low"] == pytest.approx(a.values[a.times < 0.3].mean())
    assert "1,000 held-out images" in lines[3] and "velocity" in lines[3]


def test_runs_of_other_data_or_objective_are_not_compared(train_run, tmp_path):
    flow, ddpm = train_run("flow"), train_run("ddpm", "diffusion.objective=ddpm")
    with pytest.raises(UserError, match="differ in their objective"):
        validation.main([str(flow), str(ddpm), "--images", "8"])


@pytest.fixture
def pixel_run(train_run, tmp_path):
    """A run on images of two classes, a share of which is held out."""
    for number, name in enumerate(("ant", "bee")):
        write_images(tmp_path / "root" / name, 10, first=10 * number)
    return lambda *overrides: train_run(
        "run", f"data={{kind: images, path: {tmp_path / 'root'}, size: 8}}", "model.name=DiT-S/4", *overrides
    )


def test_images_of_another_place_or_other_classes(pixel_run, tmp_path):
    run_dir = pixel_run()
    here = measure(run_dir, path=tmp_path / "here.json")
    assert here["images"] == 2 and here["runs"][0]["loss"] == log_rows(run_dir)[-1]["validation_loss"]
    (tmp_path / "root").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="does not exist"):
        validation.main([str(run_dir)])
    there = measure(run_dir, "--data", tmp_path / "moved", path=tmp_path / "there.json")
    assert there["runs"] == here["runs"] and there["held_out"]["listing_hash"]
    (tmp_path / "moved" / "bee").rename(tmp_path / "moved" / "cow")
    with pytest.raises(
        UserError, match=r"have class_names \['ant', 'cow'\], those of training \['ant', 'bee'\]"
    ):
        validation.main([str(run_dir), "--data", str(tmp_path / "moved")])


def test_without_held_out_images_there_is_none(pixel_run):
    run_dir = pixel_run("data.held_out=0")
    assert not any("validation_loss" in row for row in log_rows(run_dir))
    with pytest.raises(UserError, match=r"train.validate_every: there are no held-out images"):
        pixel_run("data.held_out=0", "train.validate_every=2")
    with pytest.raises(UserError, match="has no held-out images: give --data"):
        validation.main([str(run_dir)])


def store(folder, store_folder, count: int, seed: int):
    """A folder of random latents 4x8x8 of three classes."""
    moments = np.random.default_rng(seed).standard_normal((count, 2, 2, 4, 8, 8)) - 1
    return store_folder(moments, [number % 3 for number in range(count)]).rename(folder)


def test_latents_are_validated_on_a_second_folder_of_them(train_run, store_folder, tmp_path):
    train, held_out = (store(tmp_path / f"{n}", store_folder, n, seed=n) for n in (6, 5))
    data = ("data.kind=latents", f"data.path={train}", "model.name=DiT-S/4", "sample.classes=[0]")
    without = train_run("without", *data)
    assert not any("validation_loss" in row for row in log_rows(without))
    run_dir = train_run("run", *data, f"data.validation={held_out}")
    result = measure(run_dir, path=tmp_path / "v.json")
    assert result["images"] == 5
    assert result["runs"][0]["loss"] == pytest.approx(log_rows(run_dir)[-1]["validation_loss"], rel=1e-5)
    assert measure(without, "--data", held_out, path=tmp_path / "w.json")["runs"][0]["loss"] > 0
    manifest = json.loads((held_out / "manifest.json").read_text())
    (held_out / "manifest.json").write_text(json.dumps({**manifest, "scale": 3.0}))
    with pytest.raises(UserError, match=r"have scale 3.0, those of training 0.5"):
        train_run("other", *data, f"data.validation={held_out}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "no such run or checkpoint: /nowhere"),
        (["run", "--images", "0"], "--images 0: expected at least 1"),
        (["run", "--edges", "0.6,0.3"], "--edges 0.6,0.3: expected two numbers between 0 and 1"),
        (["run", "--edges", "a"], "--edges a: expected two numbers"),
        (
            ["run", "--json", "/nowhere/v.json"],
            "--json /nowhere/v.json cannot be written: its folder does not exist",
        ),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        validation.main(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_of_the_command_measure_as_one(train_run, tmp_path):
    run_dir = train_run("run")
    one = measure(run_dir, "--images", 33, path=tmp_path / "one.json")
    program = ("-m", "gspn_dit.evaluation.validation")
    accelerate_launch(*program, run_dir, "--images", 33, "--batch-size", 4, "--json", tmp_path / "two.json")
    two = json.loads((tmp_path / "two.json").read_text())
    np.testing.assert_allclose(two["runs"][0]["values"], one["runs"][0]["values"], rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "config.yaml", "checkpoints/step_00000010/model.safetensors"]
)
def test_the_command_writes_over_nothing_of_a_run(train_run, name):
    run_dir = train_run("run")
    before = (run_dir / name).read_bytes()
    with pytest.raises(
        UserError, match=r"^--json .* (is a record of the run itself|lies in the run's checkpoints)"
    ):
        measure(run_dir, "--images", 3, path=run_dir / name)
    assert (run_dir / name).read_bytes() == before


def test_other_digits_cannot_be_given(train_run, tmp_path):
    with pytest.raises(UserError, match=r"^--data elsewhere: .* is of digits, whose own are held out"):
        measure(train_run("run"), "--data", "elsewhere", path=tmp_path / "v.json")


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        validation.main(["--help"])
    shown = capsys.readouterr().out
    assert "runs/cifar10_cpu --images 2000" in shown and "(default: ema)" in shown


def test_runs_on_digits_for_tuning_and_on_others_are_not_compared():
    losses = Losses(np.ones(3), times(np.arange(3)))
    runs = [
        validation.Measured("a", 1, 1, "hash", "flow", describe_dataset(Digits("heldout", tuning)), losses)
        for tuning in (False, True)
    ]
    validation.check_comparable(runs[:1] * 2)
    with pytest.raises(UserError, match="a and a differ in their held-out: nothing to compare"):
        validation.check_comparable(runs)
