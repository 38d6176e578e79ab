"""From images to samples through autoencoders without a posterior: the run carries the statistics of its latents."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import encode_latents
import sample
from gspn_dit import hub
from gspn_dit.checkpoint import latest_checkpoint, read_state
from gspn_dit.config import load_config
from gspn_dit.errors import UserError
from gspn_dit.evaluation import validation
from gspn_dit.latents.dataset import read_manifest
from gspn_dit.latents.normalization import ChannelNorm, Scaling
from gspn_dit.sampling.pipeline import GSPNDiTPipeline
from gspn_dit.sampling.request import Request
from tests.latents.conftest import image_folder, save_dc, save_taef2, save_tiny, save_vae  # noqa: F401 (a fixture)
from tests.training.run_state import log_rows

DRAWN = ("--classes", "0,2", "--per-class", "1", "--steps", "1", "--out")


def encode(images: Path, out: Path, vae: Path) -> Path:
    """Latents of images at 64 pixels."""
    options = ["--vae", str(vae), "--image-size", "64", "--workers", "0"]
    assert encode_latents.main([str(images), str(out), *options]) == 0
    return out


def settings(latents: Path, patch: int, *more: str) -> tuple[str, ...]:
    """What `train_run` needs to train two steps on latents."""
    data = f"data={{kind: latents, path: {latents}}}"
    return (data, f"model.name=GSPN-DiT-S/{patch}", "train.steps=2", "train.checkpoint_every=0", *more)


def statistics_of(folder: Path) -> ChannelNorm:
    manifest = read_manifest(folder)
    return ChannelNorm(manifest.channel_mean, manifest.channel_std)


@pytest.mark.parametrize(("save", "patch"), [(save_dc, 1), (save_taef2, 2)], ids=["dc", "taef2"])
def test_a_run_is_sampled_without_its_latents(image_folder, train_run, tmp_path, save, patch):  # noqa: F811
    vae = save(tmp_path / "vae")
    latents = encode(image_folder(9), tmp_path / "latents", vae)
    held_out = encode(image_folder(4, "others"), tmp_path / "held_out", vae)
    norm = statistics_of(latents)
    run = train_run("run", *settings(latents, patch, f"data.validation={held_out}"))
    assert log_rows(run)[-1]["validation_loss"] > 0
    assert validation.main([str(run)]) == 0
    assert norm != statistics_of(held_out)
    data, trained_on = load_config(run / "config.yaml").data, read_state(latest_checkpoint(run))["dataset"]
    assert validation.held_out_dataset(data, trained_on).normalization == norm
    shutil.rmtree(latents)

    assert Request(run=str(run)).resolve().load_decoder("cpu").normalization == norm
    assert sample.main([str(run), *DRAWN, str(tmp_path / "grid.png")]) == 0
    assert Image.open(tmp_path / "grid.png").size == (66 + 2, 2 * 66 + 2)
    assert Image.open(run / "samples" / "final.png").size == (66 + 2, 66 + 2)

    assert hub.main([str(run), str(tmp_path / "release")]) == 0
    with pytest.raises(UserError, match="give --vae"):
        sample.main([str(tmp_path / "release"), *DRAWN, str(tmp_path / "again.png")])
    assert (
        sample.main([str(tmp_path / "release"), "--vae", str(vae), *DRAWN, str(tmp_path / "again.png")]) == 0
    )
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "grid.png").read_bytes()


def test_a_pipeline_of_diffusers_carries_the_statistics(image_folder, train_run, tmp_path):  # noqa: F811
    latents = encode(image_folder(3), tmp_path / "latents", save_dc(tmp_path / "vae"))
    run = train_run("run", *settings(latents, 1))
    GSPNDiTPipeline.from_run(str(run)).save_pretrained(tmp_path / "pipeline")
    pipe = GSPNDiTPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.normalization == statistics_of(latents)
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn(2, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = (pipe.decode(x, "np") * 255).round()
    expected = Request(run=str(run)).resolve().load_decoder("cpu").decode(x)
    assert found.shape == (2, 64, 64, 3) and abs(found - expected.numpy()).max() <= 1
    assert pipe([0], num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_a_pipeline_cannot_hold_taef2(image_folder, train_run, tmp_path):  # noqa: F811
    latents = encode(image_folder(3), tmp_path / "latents", save_taef2(tmp_path / "vae"))
    run = train_run("run", *settings(latents, 2))
    with pytest.raises(UserError, match=r"is none of diffusers, .* use sample.py"):
        GSPNDiTPipeline.from_run(str(run))


@pytest.fixture
def tiny_run(image_folder, train_run, tmp_path) -> Path:  # noqa: F811
    """A run on the latents of an AutoencoderTiny, in tmp_path/vae."""
    latents = encode(image_folder(3), tmp_path / "latents", save_tiny(tmp_path / "vae"))
    return train_run("run", *settings(latents, 2))


def refused(run: Path, tmp_path: Path, *options: str) -> str:
    """What sample.py says."""
    with pytest.raises(UserError) as caught:
        sample.main([str(run), *DRAWN, str(tmp_path / "never.png"), *options])
    assert "\n" not in str(caught.value) and not (tmp_path / "never.png").exists()
    return str(caught.value)


def test_what_does_not_fit_a_run_is_one_line(tiny_run, tmp_path):
    two = {f"{name}_block_out_channels": (8, 8) for name in ("encoder", "decoder")}
    fine = save_tiny(tmp_path / "fine", **two, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    assert "is for 5 channels; the model has 4" in refused(
        tiny_run, tmp_path, "--vae", str(save_taef2(tmp_path / "taef2"))
    )
    assert "makes latents 2 times larger; the model's, of 8x8, are of images of 64x64" in refused(
        tiny_run, tmp_path, "--vae", str(fine)
    )
    path = latest_checkpoint(tiny_run) / "state.json"
    state = json.loads(path.read_text())
    del state["dataset"]["channel_std"]
    path.write_text(json.dumps(state))
    assert "state.json: no channel_std, by which its latents are normalised" in refused(tiny_run, tmp_path)


def test_a_guide_trained_on_latents_normalised_otherwise_is_refused(tiny_run, train_run, tmp_path):
    other = train_run("other", *settings(tmp_path / "latents", 2, "data.normalization=scale"))
    said = refused(tiny_run, tmp_path, "--guide", str(other))
    assert "normalised otherwise than those of" in said and "--guide" in said
    assert sample.main([str(tiny_run), "--guide", str(tiny_run), *DRAWN, str(tmp_path / "grid.png")]) == 0


def test_a_run_goes_on_with_the_statistics_that_it_began_with(tiny_run, train_run, tmp_path):
    dataset = read_state(latest_checkpoint(tiny_run))["dataset"]
    more = ("train.steps=3",)
    train_run("run", *settings(tmp_path / "latents", 2), *more)
    assert read_state(latest_checkpoint(tiny_run))["dataset"] == dataset
    manifest = json.loads((tmp_path / "latents" / "manifest.json").read_text())
    manifest["channel_mean"][0] += 1
    (tmp_path / "latents" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"the data has channel_mean \["):
        train_run("run", *settings(tmp_path / "latents", 2), "train.steps=4")
    with pytest.raises(UserError, match=r"data\.normalization is scale, but"):
        train_run("run", *settings(tmp_path / "latents", 2), "train.steps=4", "data.normalization=scale")


def test_a_scale_can_be_asked_for(image_folder, train_run, tmp_path):  # noqa: F811
    vae = save_dc(tmp_path / "vae", stages=4)
    latents = encode(image_folder(3), tmp_path / "latents", vae)
    run = train_run("run", *settings(latents, 2, "data.normalization=scale"))
    assert read_state(latest_checkpoint(run))["dataset"]["normalization"] == "scale"
    assert Request(run=str(run)).resolve().load_decoder("cpu").normalization == Scaling(0.125, 0)


def test_a_run_on_latents_of_an_autoencoder_kl_remembers_no_statistics(
    image_folder,  # noqa: F811
    train_run,
    tmp_path,
):
    """As before there were any; asked for by the key, they are there."""
    latents = encode(image_folder(3), tmp_path / "latents", save_vae(tmp_path / "vae"))
    run = train_run("run", *settings(latents, 2))
    assert not {"normalization", "channel_mean"} & read_state(latest_checkpoint(run))["dataset"].keys()
    assert Request(run=str(run)).resolve().load_decoder("cpu").normalization == Scaling(0.5, 0.25)
    run = train_run("asked", *settings(latents, 2, "data.normalization=channels"))
    assert Request(run=str(run)).resolve().load_decoder("cpu").normalization == statistics_of(latents)
