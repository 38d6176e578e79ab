"""Large pictures: the ladder of sizes, steps that are kept, what is refused; and a run as a pipeline's folder."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gspn_dit.errors import UserError
from gspn_dit.text_to_image import export, sample, upscaling
from gspn_dit.text_to_image.distil_config import load_distil_config
from gspn_dit.text_to_image.large_memory import unet_peak
from gspn_dit.text_to_image.replacement import GSPNUNet2DConditionModel, replace_self_attention
from gspn_dit.text_to_image.student import load_distilled
from gspn_dit.text_to_image.system import find_system, load_system
from gspn_dit.text_to_image.texts import PipelineTexts, RandomWords
from gspn_dit.text_to_image.upscaling import ladder
from tests.text_to_image.tiny import make_unet, save_teacher

OPTIONS = ("--prompt", "an owl", "a fox", "--size", "16x48", "--steps", "4", "--guidance", "2")


def draw(folder, out, *options) -> int:
    return sample.main([str(folder), *OPTIONS, "--out", str(out), *options])


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_sizes_double_up_to_the_picture():
    assert ladder(512, 512, 512, 64) == [[512, 512]]
    assert ladder(8192, 8192, 512, 64) == [[side, side] for side in (512, 1024, 2048, 4096, 8192)]
    assert ladder(1024, 1536, 512, 64) == [[256, 384], [512, 768], [1024, 1536]]
    assert ladder(64, 64, 512, 64) == [[64, 64]]


@pytest.mark.parametrize("vae", [False, True])
def test_a_picture_is_enlarged_in_steps_that_are_kept(vae, tmp_path, monkeypatch, capsys):
    teacher = save_teacher(tmp_path / "system", vae=vae)
    assert draw(teacher, tmp_path / "whole") == 0
    said = capsys.readouterr().out
    base = "8x24 -> 16x48" if vae else "4x12 -> 8x24 -> 16x48"
    assert said.startswith(f"2 pictures, {base}; memory at the last size")
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    sizes = base.split(" -> ")
    assert files == {
        "request.json",
        *(f"step_{step}_{size}.safetensors" for step, size in enumerate(sizes)),
        *(f"{number:03d}_{size}.png" for number in range(2) for size in sizes),
    }
    assert pixels(tmp_path / "whole" / "001_16x48.png").shape == (16, 48, 3)
    one_step = upscaling.one_step

    def stopped(system, request, step, *rest):
        if step == len(sizes) - 1:
            raise KeyboardInterrupt
        return one_step(system, request, step, *rest)

    monkeypatch.setattr(upscaling, "one_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        draw(teacher, tmp_path / "parts")
    monkeypatch.setattr(upscaling, "one_step", one_step)
    assert draw(teacher, tmp_path / "parts") == 0
    for name in files - {"request.json"}:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_a_finished_step_is_not_done_again(tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "system")
    assert draw(teacher, tmp_path / "out") == 0
    kept = (tmp_path / "out" / "000_16x48.png").read_bytes()
    (tmp_path / "out" / "step_2_16x48.safetensors").unlink()
    (tmp_path / "out" / "000_16x48.png").unlink()
    done = []
    one_step = upscaling.one_step
    monkeypatch.setattr(
        upscaling,
        "one_step",
        lambda system, request, step, *rest: done.append(step) or one_step(system, request, step, *rest),
    )
    assert draw(teacher, tmp_path / "out") == 0
    assert done == [2] and (tmp_path / "out" / "000_16x48.png").read_bytes() == kept


def test_an_image_depends_on_its_own_number_alone(tmp_path):
    teacher = save_teacher(tmp_path / "system")
    draw(teacher, tmp_path / "two")
    sample.main([str(teacher), "--prompt", "an owl", *OPTIONS[3:], "--out", str(tmp_path / "one")])
    one, two = (pixels(tmp_path / name / "000_16x48.png") for name in ("one", "two"))
    assert np.array_equal(one, two)
    assert not np.array_equal(two, pixels(tmp_path / "two" / "001_16x48.png"))


def test_a_run_and_its_export_draw_the_same(distil_run, tmp_path):
    run = distil_run("run", "train.steps=2")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None] * 2,
    }
    (tmp_path / "teacher" / "model_index.json").write_text(
        json.dumps({**index, "unet": ["diffusers", "UNet"]})
    )
    assert export.main([str(run), str(tmp_path / "pipeline")]) == 0
    written = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert written["unet"] == ["gspn_dit.text_to_image.replacement", "GSPNUNet2DConditionModel"]
    loaded = load_system(str(tmp_path / "pipeline"))
    assert isinstance(loaded.unet, GSPNUNet2DConditionModel)
    saved = load_distilled(run).unet.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.unet.state_dict().items())
    for source, out in ((run, "a"), (tmp_path / "pipeline", "b")):
        assert draw(source, tmp_path / out) == 0
    assert np.array_equal(pixels(tmp_path / "a" / "000_16x48.png"), pixels(tmp_path / "b" / "000_16x48.png"))
    with pytest.raises(UserError, match="is not empty: give a new name"):
        export.main([str(run), str(tmp_path / "pipeline")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "16"), "16: expected HxW in pixels"),
        (("--size", "0x16"), "0x16: expected HxW in pixels"),
        (("--size", "15x16"), "--size 15x16: expected multiples of 2"),
        (("--strengths", "0.3,2"), "0.3,2: expected numbers above 0 and up to 1"),
        (("--steps", "0"), "--steps 0: expected at least 1"),
        (("--steps", "21"), "--steps 21: expected at most 20, the noise levels of this teacher"),
        (("--guidance", "0.5"), "--guidance 0.5: expected at least 1.0"),
        (("--guidance", "1e300"), "--guidance 1e+300: expected at least 1.0"),
        (("--seed", "-1"), "--seed -1: expected from 0 to"),
        (("--base", "0"), "--base 0: expected at least 1"),
    ],
)
def test_bad_arguments_are_one_line(options, message, tmp_path):
    teacher = save_teacher(tmp_path / "system")
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        draw(teacher, tmp_path / "out", *options)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_request_in_the_same_folder_is_refused(tmp_path):
    teacher = save_teacher(tmp_path / "system")
    draw(teacher, tmp_path / "out")
    with pytest.raises(UserError, match=r"--out .* was begun with another seed \(0, now 5\)"):
        draw(teacher, tmp_path / "out", "--seed", "5")


def test_the_scan_s_memory_grows_with_the_pixels():
    unet = replace_self_attention(make_unet())
    small, large = (unet_peak(type(unet), unet.config, side, side, bf16=False) for side in (64, 128))
    assert small["weights"] == large["weights"] == sum(4 * p.numel() for p in unet.parameters())
    grown = (large["peak"] - large["weights"]) / (small["peak"] - small["weights"])
    assert 3.5 < grown < 4.5


def test_words_have_their_own_vectors():
    texts = RandomWords(dim=5, length=3)
    states = texts(["Red fox", "fox, red and more", ""], (8, 8))["encoder_hidden_states"]
    assert states.shape == (3, 3, 5)
    assert torch.equal(states[0, 1], states[1, 2]) and torch.equal(states[0, 2], states[1, 1])
    assert torch.equal(states[0, 0], states[2, 0]) and not states[2, 1:].any()
    assert not torch.equal(
        states[0, 1], RandomWords(dim=5, length=3, seed=1)(["red"], (8, 8))["encoder_hidden_states"][0, 1]
    )


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_caption_is_what_sdxl_guides_by(zeros):
    def encode_prompt(captions, **options):
        return torch.ones(len(captions), 3, 5), None, torch.ones(len(captions), 4), None

    pipeline = SimpleNamespace(
        encode_prompt=encode_prompt,
        config={"force_zeros_for_empty_prompt": zeros},
        to=lambda device: pipeline,
    )
    found = PipelineTexts(pipeline, "cpu")(["a fox", "", "an owl"], (8, 8))
    kept = torch.tensor([1.0, 0.0 if zeros else 1.0, 1.0])
    assert torch.equal(found["encoder_hidden_states"], kept.view(3, 1, 1).expand(3, 3, 5))
    assert torch.equal(found["added_cond_kwargs"]["text_embeds"], kept.view(3, 1).expand(3, 4))
    assert found["added_cond_kwargs"]["time_ids"].tolist() == [[8, 8, 0, 0, 8, 8]] * 3


def test_an_export_keeps_the_settings_of_its_pipeline(distil_run, tmp_path):
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": False}
    parts = {"scheduler": ["diffusers", "DDPMScheduler"], "feature_extractor": ["transformers", "Other"]}
    run = distil_run("run")
    teacher = find_system(load_distil_config(run / "config.yaml").teacher)
    (teacher / "model_index.json").write_text(json.dumps(index | parts))
    export.export(run, tmp_path / "pipeline")
    written = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert {key: written[key] for key in index} == index
    assert written["scheduler"] == parts["scheduler"] and written["feature_extractor"] == [None, None]


def test_text_encoders_without_transformers_are_one_line(tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "system")
    (teacher / "text_encoder" / "config.json").write_text('{"architectures": ["CLIPTextModel"]}')
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"^text encoders need the package transformers: pip install"):
        load_system(str(teacher))
