"""Images that are NaN or infinite: named, and nothing of them is written."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sample
from gspn_dit.checkpoint import load_model, read_state
from gspn_dit.diffusion import create_diffusion, keyed_noise
from gspn_dit.diffusion import sample as draw
from gspn_dit.errors import NonFiniteError
from gspn_dit.files import sha256, write_json
from gspn_dit.latents.autoencoder import PixelAutoencoder, create_autoencoder
from gspn_dit.sampling.generation import generate
from tests.latents.conftest import save_vae
from tests.sampling.conftest import make_run


class Spoiling(torch.nn.Module):
    """A model that gives NaN for one class, from t = 0.5 on."""

    num_classes, in_channels, input_size = 10, 1, 32

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, x, t, y):
        bad = (y == self.label) & (t <= 0.5)
        return torch.where(bad.view(-1, 1, 1, 1), torch.nan, 0 * x)


def test_the_first_image_and_the_time_are_named(flow_run):
    y = torch.tensor([1, 3, 2, 3])
    noise = keyed_noise(0, range(4), (1, 32, 32))
    with pytest.raises(
        FloatingPointError, match=r"image 1 of the batch: its latents are not finite, since t = 0.5"
    ):
        draw(Spoiling(3), create_diffusion("flow"), y, noise, sampler="euler", steps=4)
    _, config, _ = load_model(flow_run)
    settings = {
        "seed": 0,
        "sampler": "euler",
        "steps": 4,
        "cfg_scale": 1.0,
        "device": "cpu",
        "progress": False,
    }
    batches = generate(
        Spoiling(3), config, PixelAutoencoder(), y, torch.tensor([7, 8, 9, 10]), **settings, batch_size=1
    )
    numbers, images = next(batches)
    assert numbers.tolist() == [7] and images.shape == (1, 32, 32, 3)
    with pytest.raises(
        NonFiniteError, match=r"^image 8 \(class 3\): its latents are not finite, since t = 0.5 \(euler"
    ):
        next(batches)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_pixels_that_are_not_finite_are_no_image(value):
    pixels = torch.zeros(3, 1, 4, 4)
    pixels[2, 0, 3, 3] = value
    with pytest.raises(FloatingPointError, match="image 2 of the batch: its pixels are not finite"):
        PixelAutoencoder().decode(pixels)


def test_a_decoder_that_overflows_is_told_of(tmp_path, flow_run):
    """Of the second chunk of latents, whose image is the eighteenth."""
    decoder = create_autoencoder(str(save_vae(tmp_path / "vae")), "cpu")
    original = decoder.vae.decode

    def spoilt(z):
        out = original(z)
        if len(z) == 4:
            out.sample[1] = torch.nan
        return out

    decoder.vae.decode = spoilt
    with pytest.raises(FloatingPointError, match="image 17 of the batch: its pixels are not finite"):
        decoder.decode(torch.zeros(20, 4, 2, 2))


def test_guidance_beyond_all_bounds_writes_nothing(flow_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in ("--out g.png", "--num 20 --npz s.npz"):
        with pytest.raises(
            NonFiniteError, match=r"^image 0 \(class \d\): its latents are not finite, since t = "
        ):
            sample.main([str(flow_run), "--cfg-scale", "1e38", "--steps", "4", *options.split()])
    assert list(tmp_path.iterdir()) == []  # a name that another scale may take
    assert sample.main([str(flow_run), "--steps", "1", "--num", "20", "--npz", "s.npz"]) == 0


def test_shards_made_before_are_kept(flow_run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "gspn_dit.sampling.request.keyed_labels", lambda numbers, *a, **k: (numbers >= 140).long()
    )
    monkeypatch.setattr("gspn_dit.sampling.request.load_model", lambda *a, **k: (Spoiling(1), None, INFO))
    with pytest.raises(NonFiniteError, match=r"image 140 \(class 1\)"):
        sample.main([str(flow_run), "--num", "200", "--npz", str(tmp_path / "s.npz"), "--steps", "2"])
    assert [path.name for path in (tmp_path / "s.npz.parts").glob("*.npz")] == ["000000-128.npz"]
    assert not (tmp_path / "s.npz").exists()


INFO = {"hash": "0", "step": 1, "images_seen": 1}


def test_weights_that_are_not_finite_are_refused_at_once(tmp_path):
    run = make_run(tmp_path / "run")
    (folder,) = (run / "checkpoints").iterdir()
    weights = load_file(folder / "ema.safetensors")
    weights["embed_time.out.bias"][3] = torch.nan
    save_file(weights, folder / "ema.safetensors")
    state = read_state(folder)
    state["files"]["ema.safetensors"]["sha256"] = sha256(folder / "ema.safetensors")
    state["files"]["ema.safetensors"]["bytes"] = (folder / "ema.safetensors").stat().st_size
    write_json(folder / "state.json", state)
    with pytest.raises(NonFiniteError, match=r"ema.safetensors: embed_time.out.bias is not finite"):
        sample.main([str(run), "--out", str(tmp_path / "g.png")])
    assert not (tmp_path / "g.png").exists()


def test_a_decoder_whose_weights_are_not_finite_is_refused(tmp_path):
    folder = save_vae(tmp_path / "vae")
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_in.bias"][0] = np.inf
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(Exception, match=r"vae': decoder.conv_in.bias is not finite"):
        create_autoencoder(str(folder), "cpu")
