"""Training: same numbers however the work is cut, stopped and taken up again."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from gspn_dit.checkpoint import latest_checkpoint, load_model
from gspn_dit.config import TrainConfig
from gspn_dit.data.batches import Batches
from gspn_dit.data.mnist import Digits
from gspn_dit.errors import UserError
from gspn_dit.files import claimed
from gspn_dit.training.ema import EMA, decay_at
from gspn_dit.training.schedule import learning_rate, rate_change
from gspn_dit.training.trainer import Trainer
from tests.training.run_state import final_state, log_rows

RATE = TrainConfig(steps=110, batch_size=1, learning_rate=2.0, warmup_steps=10, min_learning_rate=1.0)


def test_rate_rises_then_stays():
    assert [learning_rate(step, RATE) for step in (0, 4, 9, 10, 109)] == [0.2, 1.0, 2.0, 2.0, 2.0]


def test_rate_falls_by_half_a_cosine():
    cosine = dataclasses.replace(RATE, schedule="cosine")
    assert [learning_rate(step, cosine) for step in (0, 9, 10)] == [0.2, 2.0, 2.0]
    assert learning_rate(60, cosine) == pytest.approx(1.5)
    assert learning_rate(35, cosine) == pytest.approx(1.5 + 0.5 * math.cos(math.pi / 4))
    assert learning_rate(110, cosine) == pytest.approx(1.0)
    assert learning_rate(500, cosine) == pytest.approx(1.0)


def test_ema_follows_its_formula():
    model = torch.nn.Linear(3, 2, bias=False)
    ema = EMA(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.average[0], expected)
    assert decay_at(0, 0.9999) == 0.1
    assert decay_at(10**6, 0.9999) == 0.9999


def test_ema_swaps_in_and_back():
    model = torch.nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    average = [tensor.clone() for tensor in ema.average]
    with torch.no_grad():
        model.weight.add_(1 / 3)
    weights = model.weight.detach().clone()
    with ema.swapped():
        assert torch.equal(model.weight, average[0])
    assert torch.equal(model.weight, weights)
    assert torch.equal(ema.average[0], average[0])


def test_run_folder_is_complete(train_run):
    run_dir = train_run("run", "train.sample_every=4")
    made = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    files = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "config.yaml", "state.json")
    assert made == {
        "config.yaml",
        "metrics.jsonl",
        "loss.png",
        "samples/step_00000004.png",
        "samples/step_00000008.png",
        "samples/final.png",
        "samples/final.json",
        *(f"checkpoints/step_{step:08d}/{name}" for step in (4, 8, 10) for name in files),
    }
    rows = log_rows(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert rows[-1]["images"] == 80
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_sampling_does_not_disturb_training(train_run):
    plain, sampled = train_run("plain"), train_run("sampled", "train.sample_every=3")
    assert final_state(plain) == final_state(sampled)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_resumed_run_is_bit_equal(train_run, objective):
    settings = (f"diffusion.objective={objective}", "train.log_every=3", "train.checkpoint_every=5")
    straight = train_run("straight", *settings)
    broken = train_run("broken", *settings)
    for newest in sorted((broken / "checkpoints").iterdir())[1:]:
        for file in newest.iterdir():
            file.unlink()
        newest.rmdir()
    train_run("broken", *settings)
    assert final_state(broken) == final_state(straight)
    assert [row["step"] for row in log_rows(broken)] == [3, 6, 9, 10]


def test_run_goes_on_to_more_steps(train_run):
    settings = ("train.schedule=constant", "train.validate_every=5")
    straight = train_run("straight", *settings, "train.steps=14")
    train_run("longer", *settings)
    assert final_state(train_run("longer", *settings, "train.steps=14")) == final_state(straight)


def test_finished_run_trains_no_further(train_run, monkeypatch):
    run_dir = train_run("run")
    before = final_state(run_dir)
    monkeypatch.setattr(Trainer, "train_step", None)
    train_run("run")
    assert final_state(run_dir) == before


def test_micro_batches_give_the_same_run(train_run):
    whole, cut = train_run("whole", "model.depth=2"), train_run("cut", "model.depth=2", "train.micro_batch=2")
    assert_same_training(whole, cut)


def test_checkpointed_activations_give_the_same_run(train_run):
    whole, recomputed = train_run("whole"), train_run("recomputed", "model.checkpoint_activations=true")
    assert_same_training(whole, recomputed)


def assert_same_training(run_a, run_b) -> None:
    """Losses equal to 1e-5 relative; weights to what Adam makes of rounding in the gradient."""
    for row, other in zip(log_rows(run_a), log_rows(run_b), strict=True):
        assert other == pytest.approx(row, rel=1e-5)
    tensors = [load_file(latest_checkpoint(run) / "ema.safetensors") for run in (run_a, run_b)]
    torch.testing.assert_close(*tensors, rtol=1e-4, atol=1e-5)


def test_gradient_is_clipped(train_run):
    """AdamW hardly feels the scale of a gradient, so the clip shows in its first moment."""
    moments = []
    for name, clip in (("free", "null"), ("clipped", "0.001")):
        run_dir = train_run(name, f"train.clip={clip}", "train.steps=1")
        tensors = load_file(latest_checkpoint(run_dir) / "optimizer.safetensors")
        first = [tensor.flatten() for key, tensor in tensors.items() if key.startswith("exp_avg.")]
        moments.append(torch.cat(first).norm().item())
    assert moments[0] == pytest.approx(0.1 * log_rows(run_dir)[0]["grad_norm"], rel=1e-4)
    assert moments[1] == pytest.approx(0.1 * 0.001, rel=1e-3)


def test_every_image_draws_its_key(train_run, monkeypatch):
    """The loss of step 0 is that of the images 0 to 7, computed here by hand."""
    losses = []
    monkeypatch.setattr(
        Trainer, "backward", lambda self, batch: losses.append(batch) or original(self, batch)
    )
    run_dir = train_run("run", "train.steps=1", "train.class_dropout=0.5")
    (batch,) = losses
    model, _, _ = load_model(run_dir)
    with torch.no_grad():
        for parameter in model.final.parameters():
            parameter.zero_()  # as at the start: the model predicts zero, its loss is that of the target
    expected = (batch.noise - batch.x).square().mean()
    assert log_rows(run_dir)[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)


original = Trainer.backward


def test_nonfinite_loss_stops_and_keeps_the_last_good_checkpoint(train_run, monkeypatch, tmp_path):
    draw = Batches.draw

    def poisoned(self, numbers):
        batch = draw(self, numbers)
        if 6 * 8 in numbers:
            batch.x[0] = math.nan
        return batch

    monkeypatch.setattr(Batches, "draw", poisoned)
    with pytest.raises(
        UserError, match=r"step 7: loss is nan; stopped, the last good checkpoint is .*step_00000004"
    ):
        train_run("run", "train.log_every=5")
    assert latest_checkpoint(tmp_path / "run").name == "step_00000004"
    assert all(
        torch.isfinite(tensor).all()
        for tensor in load_file(latest_checkpoint(tmp_path / "run") / "ema.safetensors").values()
    )
    monkeypatch.undo()
    assert final_state(train_run("run", "train.log_every=5")) == final_state(
        train_run("straight", "train.log_every=5")
    )


def test_nonfinite_gradient_stops(train_run, monkeypatch):
    backward = Trainer.backward

    def overflowing(self, batch):
        measured = backward(self, batch)
        if self.step == 2:
            next(self.model.parameters()).grad[0] = math.inf
        return measured

    monkeypatch.setattr(Trainer, "backward", overflowing)
    with pytest.raises(UserError, match="step 3: grad_norm is inf; stopped, there is no checkpoint yet"):
        train_run("run")


def test_bf16_trains_with_float32_weights(train_run):
    full, half = train_run("full"), train_run("half", "train.precision=bf16")
    first, second = log_rows(full)[-1]["loss"], log_rows(half)[-1]["loss"]
    assert first != second
    assert second == pytest.approx(first, rel=0.02)
    for name in ("model", "ema", "optimizer"):
        tensors = load_file(latest_checkpoint(half) / f"{name}.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_init_from_starts_at_the_ema_weights(train_run):
    first = train_run("first")
    second = train_run("second", f"train.init_from={first}", "train.learning_rate=0", "train.steps=1")
    start = load_file(latest_checkpoint(first) / "ema.safetensors")
    for name in ("model", "ema"):
        tensors = load_file(latest_checkpoint(second) / f"{name}.safetensors")
        torch.testing.assert_close(tensors, start, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate=0.5", "train.learning_rate is 0.5, but .*step_00000010 was trained with 0.001"),
        ("model.width=32", "model.width is 32, but .* was trained with 16"),
        ("train.batch_size=4", "train.batch_size is 4"),
        ("train.seed=9", "train.seed is 9"),
        ("train.steps=4", "train.steps is 4, but .* is further"),
    ],
)
def test_a_changed_config_is_refused(train_run, override, message):
    train_run("run")
    with pytest.raises(UserError, match=message):
        train_run("run", override)


def test_a_folder_in_use_is_refused(train_run, tmp_path):
    who = r"run is in use by process \d+ on \S+ since 20\S+ \S+: wait for it"
    with claimed(tmp_path / "run"), pytest.raises(UserError, match=who):
        train_run("run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=GSPN-DiT-M/8", "model name is 'GSPN-DiT-M/8'; expected one of GSPN-S/2"),
        ("model.width=-1", "width is -1"),
        ("model.heads=2", "heads is 2"),
        ("sample.sampler=ddim", "sampler is 'ddim'; expected one of heun, euler for a flow model"),
        ("sample.classes=[3,10]", "sample.classes: expected classes from 0 to 9, got 10"),
        ("train.init_from=/nowhere", "no such run or checkpoint: /nowhere"),
        ("diffusion.time_std=-1", "time_std is -1"),
    ],
)
def test_what_does_not_fit_together_is_one_line(train_run, override, message):
    with pytest.raises(UserError, match=message) as caught:
        train_run("run", override)
    assert "\n" not in str(caught.value)


def test_speed_is_logged_without_the_pauses(train_run):
    row = json.loads((train_run("run") / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["images_per_second"] > 0


@pytest.mark.slow
def test_compiled_run_is_the_same(train_run):
    assert_same_training(train_run("eager"), train_run("compiled", "train.compile=true"))


def test_missing_decoder_stops_nothing_unless_asked_for(train_run, monkeypatch, capsys):
    monkeypatch.setattr(Digits, "autoencoder", "/no/decoder")
    run_dir = train_run("run", "train.sample_every=2")
    assert "training without sample grids: " in capsys.readouterr().out
    assert not (run_dir / "samples").exists()
    with pytest.raises(UserError, match="/no/decoder"):
        train_run("asked", "data.autoencoder=/no/decoder")


def test_a_grid_that_is_not_finite_does_not_end_the_training(train_run, tmp_path, capsys):
    """But the run's own pictures, asked for at its end, cannot be made, and the run says so."""
    with pytest.raises(UserError, match=r"^image 0 \(class 0\): its latents are not finite, since t = "):
        train_run(
            "run", "train.sample_every=4", "sample.cfg_scale=1.0e+38", "sample.steps=4", "model.label_std=1.0"
        )
    run_dir = tmp_path / "run"
    said = capsys.readouterr().out
    assert [f"step {step}: no sample grid: image 0 (class 0)" in said for step in (4, 8)] == [True, True]
    assert latest_checkpoint(run_dir).name == "step_00000010"
    assert (run_dir / "loss.png").exists() and not (run_dir / "samples").exists()


def test_weights_that_are_not_finite_make_no_checkpoint(train_run, monkeypatch):
    original = EMA.update

    def spoil(self, step):
        original(self, step)
        if step == 9:
            with torch.no_grad():
                self.parameters()[-1].fill_(torch.inf)

    monkeypatch.setattr(EMA, "update", spoil)
    with pytest.raises(UserError, match=r"step 10: no checkpoint written \(model: [\w.]+ is not finite\)"):
        train_run("run")


def test_what_more_steps_do_to_a_cosine_is_said(train_run, tmp_path, capsys):
    overrides = ("train.warmup_steps=0", "train.learning_rate=1.0e-3")
    train_run("run", "train.steps=6", *overrides)
    capsys.readouterr()
    train_run("run", "train.steps=12", *overrides)
    said = capsys.readouterr().out
    assert (
        "train.steps is 12, was 6: the cosine of the learning rate now ends at step 12; "
        "the rate goes from 6.7e-05 at step 6 to 0.0005 at step 7, then to 0 by the end"
    ) in said
    rates = [row["learning_rate"] for row in log_rows(tmp_path / "run")]
    assert rates[5] == pytest.approx(6.7e-05, rel=1e-2) and rates[6] == pytest.approx(5e-4)


def test_a_rate_that_stays_is_not_spoken_of():
    cosine = dataclasses.replace(RATE, schedule="cosine")
    longer = dataclasses.replace(cosine, steps=200)
    assert rate_change(cosine, cosine, 50) is None
    assert rate_change(RATE, dataclasses.replace(RATE, steps=200), 50) is None
    assert rate_change(cosine, longer, 5) is None  # both in the warm-up
    assert "from 1.5 at step 61 to 1.83 at step 62" in rate_change(cosine, longer, 61)
