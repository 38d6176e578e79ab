"""AutoencoderTiny, AutoencoderDC, TAEF2, and an AutoencoderKL with statistics of its own."""

import pickle
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from gspn_dit.errors import UserError
from gspn_dit.latents.autoencoder import create_autoencoder, fit_decoder
from gspn_dit.latents.normalization import ChannelNorm, Scaling
from gspn_dit.latents.taef2 import DECODER, ENCODER

from .conftest import SCALE, SHIFT, save_dc, save_taef2, save_tiny, save_vae

SAVE = {"tiny": save_tiny, "dc": save_dc, "taef2": save_taef2}
CHANNELS = {"tiny": 4, "dc": 8, "taef2": 5}
FACTOR = {"tiny": 8, "dc": 32, "taef2": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: save(tmp_path_factory.mktemp(kind) / kind) for kind, save in SAVE.items()}


@pytest.mark.parametrize("kind", SAVE)
def test_the_latent_alone_is_encoded(folders, kind):
    autoencoder = create_autoencoder(str(folders[kind]), "cpu")
    assert (autoencoder.channels, autoencoder.factor) == (CHANNELS[kind], FACTOR[kind])
    assert not autoencoder.traits.posterior and autoencoder.traits.normalization == "channels"
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    moments = autoencoder.moments(images)
    assert moments.shape == (2, 1, CHANNELS[kind], 64 // FACTOR[kind], 96 // FACTOR[kind])
    with torch.inference_mode():
        latents = autoencoder.vae.encode(images.permute(0, 3, 1, 2) / 127.5 - 1)[0]
    torch.testing.assert_close(moments[:, 0], latents)
    assert latents.std() > 1e-3


@pytest.mark.parametrize("kind", SAVE)
def test_decoding_undoes_the_statistics(folders, kind):
    autoencoder = create_autoencoder(str(folders[kind]), "cpu")
    z = torch.randn(2, CHANNELS[kind], 2, 3, generator=torch.Generator().manual_seed(0))
    mean, std = [0.1 * c - 0.2 for c in range(CHANNELS[kind])], [0.5 + c for c in range(CHANNELS[kind])]
    x = torch.stack([(z[:, c] - mean[c]) / std[c] for c in range(CHANNELS[kind])], dim=1)
    dataset = {
        "normalization": "channels",
        "channel_mean": mean,
        "channel_std": std,
        "channels": CHANNELS[kind],
        "image_size": 2 * FACTOR[kind],
    }
    fit_decoder(autoencoder, dataset, channels=CHANNELS[kind], size=2)
    with torch.inference_mode():
        expected = autoencoder.vae.decode(z)[0].permute(0, 2, 3, 1)  # (2, 2 f, 3 f, 3)
    expected = ((expected + 1) * 127.5).round().clamp(0, 255)
    images = autoencoder.decode(x)
    assert images.shape == (2, 2 * FACTOR[kind], 3 * FACTOR[kind], 3) and images.float().std() > 0.1
    assert (images.int() - expected.int()).abs().max() <= 1
    plain = create_autoencoder(str(folders[kind]), "cpu")
    assert (plain.decode(x).int() - expected.int()).abs().max() > 1
    assert autoencoder.identity != plain.identity and "per-channel statistics" in autoencoder.identity


@pytest.mark.parametrize(("stages", "factor"), [(4, 8), (5, 16)])
def test_factors_of_deep_compression(tmp_path, stages, factor):
    assert create_autoencoder(str(save_dc(tmp_path, stages)), "cpu").factor == factor


def test_an_autoencoder_kl_with_statistics_of_its_own_is_measured(tmp_path):
    """Its posterior is stored all the same."""
    traits = create_autoencoder(str(save_vae(tmp_path, latents_mean=[0.0] * 4)), "cpu").traits
    assert traits.normalization == "channels" and traits.posterior
    assert (traits.scale, traits.shift) == (SCALE, SHIFT)


def test_a_decoder_of_another_factor_than_its_encoder_is_refused(tmp_path):
    save_tiny(tmp_path / "tiny", upsampling_scaling_factor=3)
    with pytest.raises(UserError, match="makes images 8 times smaller, its decoder 27 times larger"):
        create_autoencoder(str(tmp_path / "tiny"), "cpu")


def block(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """One block of TAEF2, by the formulas alone."""
    if f"{name}.pool.0.weight" in weights:
        y = F.conv2d(x, weights[f"{name}.pool.0.weight"])
        grouped = y.reshape(len(y), 4, -1)
        normed = (grouped - grouped.mean(2, keepdim=True)) / (
            grouped.var(2, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        scale, offset = (weights[f"{name}.pool.1.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        x = x + F.conv2d((normed.reshape(y.shape) * scale + offset).relu(), weights[f"{name}.pool.3.weight"])
    y = x
    for layer in (0, 2, 4):
        y = F.conv2d(
            y.relu() if layer else y,
            weights[f"{name}.conv.{layer}.weight"],
            weights[f"{name}.conv.{layer}.bias"],
            padding=1,
        )
    return (y + x).relu()


def layers(x: torch.Tensor, weights: dict[str, torch.Tensor], numbers: range, stride: int) -> torch.Tensor:
    """Layers of TAEF2 by their numbers, those without weights left out."""
    for number in map(str, numbers):
        if f"{number}.conv.0.weight" in weights:
            x = block(x, weights, number)
        elif f"{number}.weight" in weights:
            bias = weights.get(f"{number}.bias")
            step = stride if bias is None else 1
            x = F.conv2d(x, weights[f"{number}.weight"], bias, padding=1, stride=step)
    return x


def test_taef2_is_what_its_formulas_say(folders):
    encoder, decoder = (torch.load(folders["taef2"] / file, weights_only=True) for file in (ENCODER, DECODER))
    encoder, decoder = ({k: v.float() for k, v in part.items()} for part in (encoder, decoder))
    model = create_autoencoder(str(folders["taef2"]), "cpu").vae
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    z = 4 * torch.randn(2, 5, 2, 3)
    with torch.inference_mode():
        torch.testing.assert_close(model.encode(pixels)[0], layers((pixels + 1) / 2, encoder, range(15), 2))
        x = layers(3 * torch.tanh(z / 3), decoder, range(2), 1).relu()
        for start, stop in ((3, 6), (7, 11), (12, 16)):
            x = layers(x, decoder, range(start, stop), 1)
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        shown = layers(x, decoder, range(17, 20), 1)
        torch.testing.assert_close(model.decode(z)[0], shown * 2 - 1)


def test_taef2_has_the_published_layers(folders):
    encoder, decoder = (torch.load(folders["taef2"] / file, weights_only=True) for file in (ENCODER, DECODER))
    assert len(encoder) == len(decoder) == 79
    pooled = {name.split(".")[0] for name in encoder if ".pool." in name}
    assert pooled == {"11", "12", "13"} and "14.bias" in encoder and "10.bias" not in encoder
    pooled = {name.split(".")[0] for name in decoder if ".pool." in name}
    assert pooled == {"3", "4", "5"} and "19.bias" in decoder and "17.bias" not in decoder


class Foreign:
    """Not a tensor."""


def rewrite(path: Path, **changes: object) -> None:
    """Change, or with None remove, entries of a .pth."""
    tensors = torch.load(path, weights_only=True) | {k.replace("_", "."): v for k, v in changes.items()}
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


DAMAGES = {
    "no decoder": (lambda f: (f / DECODER).unlink(), f"{DECODER} is missing: expected"),
    "cut": (lambda f: (f / ENCODER).write_bytes((f / ENCODER).read_bytes()[:3000]), "cannot be read"),
    "empty": (lambda f: (f / ENCODER).write_bytes(b""), r"cannot be read \(an empty file\)"),
    "foreign": (lambda f: (f / ENCODER).write_bytes(pickle.dumps(Foreign(), 2)), "cannot be read"),
    "list": (lambda f: torch.save([1], f / ENCODER), "holds no dictionary of tensors"),
    "no widths": (lambda f: rewrite(f / ENCODER, **{"14_weight": None}), "has no 14.weight: it is another"),
    "lacks": (
        lambda f: rewrite(f / DECODER, **{"19_bias": None}),
        r"for 19.bias it has none, expected \(3,\)",
    ),
    "more": (lambda f: rewrite(f / DECODER, **{"20_bias": torch.ones(2)}), r"for 20.bias it has \(2,\)"),
    "shape": (lambda f: rewrite(f / ENCODER, **{"0_bias": torch.ones(9)}), r"it has \(9,\), expected \(8,\)"),
    "nan": (
        lambda f: rewrite(f / ENCODER, **{"0_bias": torch.full((8,), torch.nan)}),
        "0.bias is not finite",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_files_of_taef2_are_one_line_that_names_them(tmp_path, damage):
    change, message = DAMAGES[damage]
    change(save_taef2(tmp_path / "taef2"))
    with pytest.raises(UserError, match=message) as caught:
        create_autoencoder(str(tmp_path / "taef2"), "cpu")
    assert str(tmp_path / "taef2") in str(caught.value) and "\n" not in str(caught.value)


def described(**changes: object) -> dict[str, object]:
    """What a checkpoint remembers of latents 4x2x2 of 16x16 pixels, normalised by statistics."""
    record = {
        "channels": 4,
        "image_size": 16,
        "normalization": "channels",
        "channel_mean": [0.0] * 4,
        "channel_std": [1.0] * 4,
    }
    return {key: value for key, value in (record | changes).items() if value is not None}


SCALED = {"normalization": None, "channel_mean": None, "channel_std": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 64}, "makes latents 8 times larger; the model's, of 2x2, are of images of 64x64"),
        ({"channel_std": None}, "the run's state.json: no channel_std"),
        ({"channel_mean": [0.0] * 3}, "channel_mean is not 4 numbers"),
        ({"channel_mean": "0"}, "channel_mean is not 4 numbers"),
        ({"channel_std": [1.0, 1.0, 0.0, 1.0]}, "channel_std of channel 2 is 0, which normalises nothing"),
        ({"channel_mean": [float("nan")] * 4}, "channel_mean of channel 0 is nan"),
    ],
)
def test_a_decoder_that_does_not_fit_is_told(folders, changes, message):
    autoencoder = create_autoencoder(str(folders["tiny"]), "cpu")
    with pytest.raises(UserError, match=message) as caught:
        fit_decoder(autoencoder, described(**changes), channels=4, size=2)
    assert "\n" not in str(caught.value)


def test_wrong_channels_are_told(folders):
    with pytest.raises(UserError, match="is for 8 channels; the model has 4: give another"):
        fit_decoder(create_autoencoder(str(folders["dc"]), "cpu"), {}, channels=4, size=2)


def test_a_decoder_that_needs_statistics_refuses_latents_without(folders, vae_folder):
    """A tiny decoder does not: its latents are those of another autoencoder, scaled as that one's."""
    scaled = described(**SCALED)
    deep, tiny, plain = (
        create_autoencoder(str(folder), "cpu") for folder in (folders["taef2"], folders["tiny"], vae_folder)
    )
    with pytest.raises(UserError, match="normalised by measured statistics, and the run has none"):
        fit_decoder(deep, scaled | {"channels": 5}, channels=5, size=2)
    fit_decoder(deep, scaled | {"channels": 5, "normalization": "scale"}, channels=5, size=2)
    fit_decoder(tiny, scaled, channels=4, size=2)
    fit_decoder(plain, scaled, channels=4, size=2)
    assert tiny.normalization == Scaling(1, 0) and plain.normalization == Scaling(SCALE, SHIFT)
    fit_decoder(plain, described(), channels=4, size=2)
    assert plain.normalization == ChannelNorm((0.0,) * 4, (1.0,) * 4)
