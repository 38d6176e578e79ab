"""The pipeline of diffusers: our samplers' images, through its own saving and loading, with other schedulers."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler

import gspn_dit
from gspn_dit import create_model, hub
from gspn_dit.checkpoint import load_model
from gspn_dit.config import load_config
from gspn_dit.diffusion import create_diffusion, sample
from gspn_dit.errors import UserError
from gspn_dit.latents.autoencoder import create_autoencoder
from gspn_dit.sampling.pipeline import GSPNDiTPipeline
from tests.latents.conftest import save_vae

CLASSES = [3, 7]


def seeded():
    return torch.Generator().manual_seed(5)


def ours(run, objective, sampler, steps, scale):
    """Images (B, H, W) by this project's sampler from the same noise, of values in [0, 1]."""
    noise = torch.randn(2, 1, 32, 32, generator=seeded())
    model = load_model(run)[0]
    settings = {"sampler": sampler, "steps": steps, "cfg_scale": scale}
    x = sample(model, create_diffusion(objective), torch.tensor(CLASSES), lambda step: noise, **settings)
    return ((x + 1) / 2).clamp(0, 1)[:, 0].numpy()


def images(pipe, steps=3, scale=2.0, **settings):
    pipe.set_progress_bar_config(disable=True)
    return pipe(CLASSES, scale, steps, seeded(), output_type="np", **settings).images


@pytest.mark.parametrize(("objective", "sampler"), [("flow", "euler"), ("ddpm", "dpm-solver++")])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_it_samples_what_our_sampler_samples(objective, sampler, scale, flow_run, ddpm_run, tmp_path):
    run = {"flow": flow_run, "ddpm": ddpm_run}[objective]
    expected = ours(run, objective, sampler, 3, scale)
    found = images(GSPNDiTPipeline.from_run(str(run)), scale=scale)
    assert found.shape == (2, 32, 32, 3) and found.std() > 0.05
    np.testing.assert_allclose(found[..., 0], expected, atol=2e-4)


def test_saved_and_loaded_by_diffusers_and_made_of_a_release(flow_run, tmp_path):
    pipe = GSPNDiTPipeline.from_run(str(flow_run))
    expected = images(pipe)
    pipe.save_pretrained(tmp_path / "pipe")
    assert np.array_equal(images(GSPNDiTPipeline.from_pretrained(tmp_path / "pipe")), expected)
    hub.main([str(flow_run), str(tmp_path / "release")])
    assert np.array_equal(images(gspn_dit.GSPNDiTPipeline.from_run(str(tmp_path / "release"))), expected)
    assert load_config(flow_run / "checkpoints/step_00000001/config.yaml").data.autoencoder is None


def test_other_schedulers_of_the_family(flow_run, ddpm_run):
    pipe = GSPNDiTPipeline.from_run(str(ddpm_run))
    found = {"own": images(pipe)}
    for scheduler in (
        DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False),
        DDPMScheduler.from_config(pipe.scheduler.config, variance_type="learned_range", clip_sample=False),
    ):
        pipe.scheduler = scheduler
        found[type(scheduler).__name__] = images(pipe)
    assert all(np.isfinite(value).all() and value.std() > 0.05 for value in found.values())
    assert not np.allclose(found["own"], found["DDPMScheduler"])


def test_any_size_any_type_and_one_class(flow_run):
    pipe = GSPNDiTPipeline.from_run(str(flow_run))
    assert images(pipe, height=16, width=40).shape == (2, 16, 40, 3)
    picture = pipe(class_labels=3, num_inference_steps=1, generator=seeded()).images[0]
    assert picture.size == (32, 32) and picture.mode == "RGB"
    latents = pipe(class_labels=[3], num_inference_steps=1, output_type="latent", return_dict=False)[0]
    assert latents.shape == (1, 1, 32, 32)


def test_latents_are_decoded_with_scale_and_shift(flow_run, tmp_path):
    vae = save_vae(tmp_path / "vae")
    with pytest.raises(UserError, match="is for 4 channels; the model has 1"):
        GSPNDiTPipeline.from_run(str(flow_run), vae=str(vae))
    pipe = GSPNDiTPipeline.from_run(str(flow_run))
    with_vae = GSPNDiTPipeline(
        type(pipe.transformer)(
            settings=create_model(
                "GSPN-DiT-S/2", input_size=4, num_classes=10, learn_sigma=False, width=16, depth=1
            ).config
        ),
        pipe.scheduler,
        AutoencoderKL.from_pretrained(vae),
    )
    latents = with_vae(CLASSES, num_inference_steps=2, generator=seeded(), output_type="latent").images
    expected = create_autoencoder(str(vae), "cpu").decode(latents)
    assert latents.shape == (2, 4, 4, 4)
    found = (images(with_vae, 2, 1.0) * 255).round().astype(int)
    assert np.abs(found - expected.numpy()).max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_labels": [11]}, "holds 11"),
        ({"class_labels": [1.5]}, "class_labels are torch.float32; expected integers"),
        ({"class_labels": [1], "num_inference_steps": 0}, "num_inference_steps is 0; expected at least 1"),
        ({"class_labels": [1], "guidance_scale": 0.5}, "cfg_scale is 0.5"),
        ({"class_labels": [1], "height": 12}, "expected multiples of 8, the pixels of a token"),
    ],
)
def test_bad_input(settings, message, flow_run):
    with pytest.raises(ValueError, match=message):
        GSPNDiTPipeline.from_run(str(flow_run))(**settings)
