"""A distillation: what trains, what it minimises, that it resumes bit for bit, and what it refuses."""

import dataclasses
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from gspn_dit import errors
from gspn_dit.errors import UserError
from gspn_dit.text_to_image import distil, distiller
from gspn_dit.text_to_image.distil_config import load_distil_config
from gspn_dit.text_to_image.distiller import Distiller, Losses
from gspn_dit.text_to_image.replacement import scan_modules
from gspn_dit.text_to_image.student import load_distilled, make_student, trained_parameters
from gspn_dit.text_to_image.system import load_system
from gspn_dit.training.log import read_metrics
from tests.text_to_image.tiny import make_unet, save_pictures, save_teacher

WEIGHTS = "checkpoints/step_00000006/student.safetensors"


def rows(run):
    return [
        {key: value for key, value in row.items() if key != "images_per_second"}
        for row in read_metrics(run / "metrics.jsonl")
    ]


def test_only_the_new_modules_train(distil_yaml, tmp_path):
    config = load_distil_config(distil_yaml)
    trainer = Distiller(config, torch.device("cpu"))
    student, teacher = trainer.student, trainer.system.unet
    within = tuple(f"{name}." for name in scan_modules(student))
    assert {name for name in student.state_dict() if name.startswith(within)} == set(
        trained_parameters(student)
    )
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    of_teacher = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trainer.train_step(trainer.batches.step(0))
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith(within), name
    assert all(torch.equal(tensor, of_teacher[name]) for name, tensor in teacher.state_dict().items())
    maps = dataclasses.replace(config, student=dataclasses.replace(config.student, trained="maps"))
    new = {"merge", *(f"{part}.weight" for part in ("bottleneck", "to_lam", "to_u", "to_logits", "to_skip"))}
    trained = trained_parameters(make_student(teacher, maps))
    assert {name.partition("attn1.")[2] for name in trained} == new


def test_the_three_terms_are_their_definition(distil_yaml):
    trainer = Distiller(load_distil_config(distil_yaml), torch.device("cpu"))
    system, student = trainer.system, trainer.student
    batch = trainer.batches.step(0)[0]
    terms = trainer.losses(batch)
    seen = {"teacher": [], "student": []}
    for key, unet in (("teacher", system.unet), ("student", student)):
        for name in scan_modules(student):
            unet.get_submodule(name).register_forward_hook(lambda m, a, out, key=key: seen[key].append(out))
    signal_share = system.scheduler.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
    x = signal_share.sqrt() * batch.pixels + (1 - signal_share).sqrt() * batch.noise
    texts = system.texts(batch.captions, (16, 16))
    with torch.no_grad():
        expected, found = (unet(x, batch.t, **texts).sample for unet in (system.unet, student))
    modules = [(a - b).square().mean() for a, b in zip(seen["teacher"], seen["student"], strict=True)]
    for name, value in (
        ("noise", (found - batch.noise).square().mean()),
        ("teacher", (found - expected).square().mean()),
        ("modules", sum(modules).detach() / 4),
    ):
        assert float(terms[name].detach()) == pytest.approx(float(value), rel=1e-5), name
    row = {"loss": 0.0}
    trainer.window.clear()
    trainer.train_step([batch, batch])
    row = trainer.window[0]
    assert row["loss"] == pytest.approx(row["noise"] + 0.5 * row["teacher"] + 0.5 * row["modules"], rel=1e-6)


def test_a_teacher_of_velocity_is_learned_as_one(distil_yaml, tmp_path):
    save_teacher(tmp_path / "v", prediction_type="v_prediction")
    trainer = Distiller(load_distil_config(distil_yaml, [f"teacher={tmp_path / 'v'}"]), torch.device("cpu"))
    batch = trainer.batches.step(0)[0]
    share = trainer.system.scheduler.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
    x = share.sqrt() * batch.pixels + (1 - share).sqrt() * batch.noise
    velocity = share.sqrt() * batch.noise - (1 - share).sqrt() * batch.pixels
    found = trainer.student(x, batch.t, **trainer.system.texts(batch.captions, (16, 16))).sample
    assert float(trainer.losses(batch)["noise"].detach()) == pytest.approx(
        float((found - velocity).square().mean().detach()), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_noise_is_that_of_the_step_whatever_the_precision(kind, distil_yaml, tmp_path):
    save_teacher(tmp_path / "latent", vae=True, prediction_type=kind)
    overrides = [f"teacher={tmp_path / 'latent'}"]
    trainer = Distiller(load_distil_config(distil_yaml, overrides), torch.device("cpu"))
    batch = trainer.batches.step(0)[0]
    plain = trainer.losses.noised(batch)
    seen = []
    trainer.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        half = trainer.losses.noised(batch)
        trainer.losses(batch)
    for found, expected in zip((*half, *seen), (*plain, plain[0]), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("vae", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(vae, distil_run, tmp_path):
    if vae:
        save_teacher(tmp_path / "teacher", vae=True)
    whole = distil_run("whole")
    parts = distil_run("parts", "train.steps=3")
    distil_run("parts", "train.micro_batch=2")
    assert (whole / WEIGHTS).read_bytes() == (parts / WEIGHTS).read_bytes()
    assert rows(whole) == rows(parts) and len(rows(whole)) == 6
    assert [path.name for path in sorted((whole / "checkpoints").iterdir())] == [
        "step_00000004",
        "step_00000006",
    ]
    assert rows(whole)[-1]["modules"] < rows(whole)[0]["modules"]


def test_a_signal_makes_a_checkpoint(distil_run, monkeypatch):
    whole = distil_run("whole")
    step = Distiller.train_step

    def stopped(self, batches):
        step(self, batches)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Distiller, "train_step", stopped)
    run = distil_run("run", status=143)
    assert (run / "checkpoints/step_00000003").is_dir()
    monkeypatch.setattr(Distiller, "train_step", step)
    distil_run("run")
    assert (whole / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()


def test_recomputation_changes_nothing(distil_run):
    plain, recomputed = distil_run("plain"), distil_run("recomputed", "train.checkpoint_activations=true")
    assert (plain / WEIGHTS).read_bytes() == (recomputed / WEIGHTS).read_bytes()


def test_the_student_of_a_run_is_loaded(distil_run, tmp_path):
    run = distil_run("run")
    system = load_distilled(run)
    saved = load_file(run / WEIGHTS)
    loaded = system.unet.state_dict()
    assert saved and all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())
    teacher = make_unet()
    torch.manual_seed(9)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter)
    teacher.save_pretrained(tmp_path / "teacher" / "unet")
    with pytest.raises(UserError, match=r"^teacher .* has other weights .* was distilled from"):
        load_distilled(run)


def test_captions_from_every_source(distil_run, tmp_path):
    pictures = save_pictures(tmp_path / "other", captions=False)
    lines = [{"file_name": f"owl/{number}.png", "title": f"number {number}"} for number in (1, 3)]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = (f"data.path={pictures}", "train.steps=1")
    distil_run("listed", *options, "data.caption_column=title")
    state = json.loads((tmp_path / "listed/checkpoints/step_00000001/state.json").read_text())
    assert state["data"]["images"] == 2
    distil_run("folders", *options, "data.captions=folders")


def bad(name, override, message):
    return pytest.param(override, message, id=name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        bad("key", "train.step=3", "unknown key 'train.step'; did you mean 'train.steps'"),
        bad("rank", "student.rank=0", "student.rank: expected at least 1, or null, got 0"),
        bad("infinite", "loss.noise=.inf", "loss.noise: expected a finite number, at least 0, got inf"),
        bad("segment", "student.segment=-1", "student.segment: expected at least 0"),
        bad("size", "data.size=15", "data.size: expected a multiple of 2 for this teacher, got 15"),
        bad("dropout", "data.caption_dropout=2", "data.caption_dropout: expected in"),
        bad("micro", "train.micro_batch=3", "train.micro_batch: expected a divisor of train.batch_size, 4"),
        bad("loss", "loss={noise: 0, teacher: 0, modules: 0}", "loss: expected a weight above 0"),
        bad("pictures", "data.path=/nowhere", "data.path: the folder /nowhere does not exist"),
        bad("teacher", "teacher=nowhere", "no such pipeline: nowhere"),
        bad("no teacher", "teacher={tmp}/pictures", "has no unet/config.json"),
        bad(
            "file",
            "teacher={tmp}/distil.yaml",
            "is a text; expected the folder of a Stable Diffusion pipeline",
        ),
        bad("run", "run_dir={tmp}/pictures/run", "run_dir {tmp}/pictures/run lies in data.path"),
        bad("caption", "data.path={tmp}/bare", "owl/1.png has no readable caption: expected 1.txt beside it"),
        bad(
            "column",
            "data.path={tmp}/listed",
            "metadata.jsonl, line 1: expected an object with file_name and text",
        ),
        bad("image", "data.path={tmp}/absent", "metadata.jsonl, line 1: none.png is no image here"),
        bad("words", "teacher={tmp}/words", "its words are 8 wide, its UNet takes 6"),
        bad("pixels", "teacher={tmp}/pixels", "is for 1 or 3 channels; the model has 4"),
        bad("damaged", "teacher={tmp}/damaged", "damaged/unet/config.json is missing or damaged"),
        bad("list", "teacher={tmp}/list", "list/scheduler/scheduler_config.json is missing or damaged"),
        bad("dim", "teacher={tmp}/dim", "text_encoder/config.json: expected whole numbers dim and length"),
        bad("schedule", "teacher={tmp}/schedule", "schedule/scheduler cannot be used: "),
        bad("diffusion", "diffusion={}", "unknown key 'diffusion'"),
        bad("picture", "data.path={tmp}/distil.yaml", "distil.yaml is a text: expected a folder of images"),
        bad("no size", "data.size=0", "data.size: expected at least 1, got 0"),
        bad("target", "teacher={tmp}/target", "prediction_type is sample; expected epsilon or v_prediction"),
    ],
)
def test_bad_input_is_one_line_and_status_2(override, message, distil_yaml, tmp_path, capsys):
    save_pictures(tmp_path / "bare", captions=False)
    for name, line in (
        ("listed", {"file_name": "owl/1.png"}),
        ("absent", {"file_name": "none.png", "text": "x"}),
    ):
        folder = save_pictures(tmp_path / name, captions=False)
        (folder / "metadata.jsonl").write_text(json.dumps(line))
    for name, settings in (
        ("words", {"cross_attention_dim": 6}),
        ("pixels", {"in_channels": 4, "out_channels": 4}),
    ):
        save_teacher(tmp_path / name)
        make_unet(**settings).save_pretrained(tmp_path / name / "unet")
    save_teacher(tmp_path / "target", prediction_type="sample")
    for name, file, content in (
        ("damaged", "unet/config.json", "{"),
        ("list", "scheduler/scheduler_config.json", "[]"),
        (
            "dim",
            "text_encoder/config.json",
            '{"_class_name": "RandomWords", "dim": 0, "length": 4, "seed": 0}',
        ),
        ("schedule", "scheduler/scheduler_config.json", '{"beta_schedule": "none"}'),
    ):
        (save_teacher(tmp_path / name) / file).write_text(content)
    with pytest.raises(SystemExit) as left:
        errors.run(lambda: distil.main([str(distil_yaml), override.replace("{tmp}", str(tmp_path))]))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(said) == 1
    assert message.replace("{tmp}", str(tmp_path)) in said[0]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_was_distilled_before_a_picture_that_cannot_be_read_is_kept(distil_run, monkeypatch):
    draw = distiller.CaptionedBatches.step

    def once(self, step):
        if step == 3:
            raise UserError("no picture")
        return draw(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(distiller.CaptionedBatches, "step", once)
        with pytest.raises(UserError, match=r"no picture; the last good checkpoint is .*/step_00000003"):
            distil_run("run")
    assert (distil_run("run") / WEIGHTS).is_file()


def test_a_run_goes_on_only_as_it_was(distil_run, tmp_path):
    distil_run("run")
    for override, message in (
        ("student.segment=2", "student.segment is 2, but .* was trained with 4"),
        ("train.steps=3", "train.steps is 3, but .* is further: raise it"),
        ("data.caption_dropout=0.5", "data.caption_dropout is 0.5, but"),
    ):
        with pytest.raises(UserError, match=message):
            distil_run("run", override)
    save_pictures(tmp_path / "pictures", count=8)
    with pytest.raises(UserError, match="holds other images or captions than"):
        distil_run("run", "train.steps=8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"holds metrics\.jsonl and no distillation"):
        distil_run("other")


def test_a_loss_that_is_not_finite_stops_the_run(distil_run, monkeypatch):
    def broken(self, batch):
        terms = Losses.__call__(self, batch)
        return terms | {"noise": terms["noise"] * torch.nan}

    monkeypatch.setattr(distiller, "Losses", type("Broken", (Losses,), {"__call__": broken}))
    with pytest.raises(UserError, match="step 1: loss is nan; stopped, there is no checkpoint yet"):
        distil_run("run")


def test_a_student_is_no_teacher(distil_yaml, distil_run, tmp_path):
    unet = load_distilled(distil_run("run", "train.steps=1")).unet
    unet.save_pretrained(save_teacher(tmp_path / "again") / "unet")
    assert load_system(str(tmp_path / "again")).unet.config.gspn["rank"] == 2
    with pytest.raises(UserError, match="its self-attention replaced already"):
        distil_run("other", f"teacher={tmp_path / 'again'}")
