"""The autoencoder wrapper: pixels, latents with scale and shift, and what a bad name says."""

import json
import shutil

import pytest
import torch

from gspn_dit.errors import UserError
from gspn_dit.latents import autoencoder
from gspn_dit.latents.autoencoder import PixelAutoencoder, create_autoencoder

from .conftest import SCALE, SHIFT, save_vae


@pytest.fixture(scope="module")
def latent_autoencoder(vae_folder):
    return create_autoencoder(str(vae_folder), "cpu")


def test_pixels_are_clamped_rounded_and_grey_is_repeated():
    levels = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.999, 1.0, 7.0]).view(1, 1, 1, 7)
    images = create_autoencoder(None, "cpu").decode(levels)
    assert images.dtype == torch.uint8 and images.shape == (1, 1, 7, 3)
    assert images[0, 0, :, 0].tolist() == [0, 0, 64, 128, 255, 255, 255]
    assert (images == images[..., :1]).all()


def test_colour_pixels_keep_their_channels():
    z = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    assert PixelAutoencoder().decode(z).flatten().tolist() == [0, 128, 255]


def test_decode_undoes_scale_and_shift(latent_autoencoder):
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    images = latent_autoencoder.decode((z - SHIFT) * SCALE)
    with torch.inference_mode():
        expected = latent_autoencoder.vae.decode(z).sample  # (3, 3, 64, 64)
    expected = ((expected.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255)
    assert images.dtype == torch.uint8 and images.shape == (3, 64, 64, 3)
    assert (images.int() - expected.int()).abs().max() <= 1
    assert images.float().std() > 1


def test_decode_in_chunks_gives_every_image(latent_autoencoder, monkeypatch):
    z = torch.randn(5, 4, 2, 3, generator=torch.Generator().manual_seed(2))
    whole = latent_autoencoder.decode(z)
    monkeypatch.setattr(autoencoder, "DECODE_CHUNK", 2)
    assert (latent_autoencoder.decode(z).int() - whole.int()).abs().max() <= 1
    assert whole.shape == (5, 16, 24, 3)


def test_moments_are_those_of_the_posterior(latent_autoencoder):
    images = torch.randint(0, 256, (2, 16, 24, 3), dtype=torch.uint8)
    moments = latent_autoencoder.moments(images)
    with torch.inference_mode():
        posterior = latent_autoencoder.vae.encode(images.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    assert moments.shape == (2, 2, 4, 2, 3) and moments.dtype == torch.float32
    torch.testing.assert_close(moments[:, 0], posterior.mean)
    torch.testing.assert_close(moments[:, 1], posterior.logvar)


def test_half_precision_weights_are_loaded_as_float32(latent_autoencoder, tmp_path):
    latent_autoencoder.vae.save_pretrained(tmp_path)
    from diffusers import AutoencoderKL

    AutoencoderKL.from_pretrained(tmp_path, torch_dtype=torch.float16).save_pretrained(tmp_path)
    assert create_autoencoder(str(tmp_path), "cpu").vae.dtype == torch.float32


def test_hash_depends_on_weights_alone(latent_autoencoder, vae_folder, tmp_path):
    latent_autoencoder.vae.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert (
        create_autoencoder(str(tmp_path / "pickled"), "cpu").weights_hash == latent_autoencoder.weights_hash
    )
    other = create_autoencoder(str(save_vae(tmp_path / "other", seed=1)), "cpu")
    assert other.weights_hash != latent_autoencoder.weights_hash


def test_identity_names_weights_and_scale(latent_autoencoder, vae_folder):
    identity = latent_autoencoder.identity
    for part in (str(vae_folder), latent_autoencoder.weights_hash[:12], "scale 0.5", "shift 0.25"):
        assert part in identity


def test_wrong_channels_are_named(latent_autoencoder):
    with pytest.raises(ValueError, match=r"expected latents \(B, 4, h, w\), got \(1, 3, 8, 8\)"):
        latent_autoencoder.decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"1 or 3, H, W\), got \(1, 4, 8, 8\)"):
        PixelAutoencoder().decode(torch.zeros(1, 4, 8, 8))


def edit_config(folder, **changes) -> None:
    """Change entries of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut_weights(folder) -> None:
    """Leave half of the weights file."""
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_a_weight(folder) -> None:
    """Save the weights without one of them."""
    from safetensors.torch import load_file, save_file

    path = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if name != "quant_conv.bias"}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no readable config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "no readable config.json"),
        (
            lambda folder: edit_config(folder, _class_name="UNet2DModel"),
            "is a UNet2DModel: expected an AutoencoderKL, AutoencoderTiny or AutoencoderDC",
        ),
        (lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(), "cannot be read"),
        (cut_weights, "cannot be read"),
        (drop_a_weight, "lacks the weight quant_conv.bias"),
    ],
    ids=[
        "no config",
        "config cut",
        "other class",
        "no weights",
        "weights cut",
        "weight missing",
    ],
)
def test_a_bad_folder_is_one_line_that_names_it(vae_folder, tmp_path, damage, message):
    folder = shutil.copytree(vae_folder, tmp_path / "copy")
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        create_autoencoder(str(folder), "cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/missing/folder", "not a name"])
def test_what_cannot_be_a_hub_id_says_what_to_give(name):
    with pytest.raises(UserError, match="neither a folder nor a model on the hub: give a folder"):
        create_autoencoder(name, "cpu")


def test_a_file_is_no_autoencoder(tmp_path):
    (tmp_path / "vae.safetensors").write_bytes((10).to_bytes(8, "little") + b'{"a": [0]}')
    with pytest.raises(UserError, match="is a safetensors file; expected the folder that AutoencoderKL"):
        create_autoencoder(str(tmp_path / "vae.safetensors"), "cpu")


def test_no_network_says_what_to_do(monkeypatch, tmp_path):
    def unreachable(*arguments, **settings):
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no route\): give a local folder") as caught:
        create_autoencoder("nobody/no-such-vae", "cpu")
    assert "\n" not in str(caught.value)


def test_a_cached_hub_model_needs_no_network(monkeypatch, vae_folder):
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *a, local_files_only, **k: str(vae_folder)
    )
    loaded = create_autoencoder("somebody/vae", "cpu")
    assert loaded.name == "somebody/vae" and loaded.factor == 8 and loaded.channels == 4
