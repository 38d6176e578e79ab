"""Samples by index: what an image depends on, and the grid."""

import numpy as np
import pytest
import torch
from PIL import Image

from gspn_dit.checkpoint import load_model
from gspn_dit.latents.autoencoder import PixelAutoencoder
from gspn_dit.sampling import generation
from gspn_dit.sampling.generation import generate, keyed_labels
from gspn_dit.sampling.grids import save_grid

LABELS = torch.arange(20) % 10
NUMBERS = torch.arange(20)


def draw(run, labels=LABELS, numbers=NUMBERS, *, decoder=None, **settings):
    model, config, _ = load_model(run)
    settings = {"seed": 3, "steps": 2, "cfg_scale": 2.0, "batch_size": 16, **settings}
    settings.setdefault("sampler", "ddpm" if config.diffusion.objective == "ddpm" else "heun")
    decoder = decoder or PixelAutoencoder()
    batches = list(
        generate(model, config, decoder, labels, numbers, **settings, device="cpu", progress=False)
    )
    assert torch.equal(torch.cat([indices for indices, _ in batches]), numbers)
    return torch.cat([images for _, images in batches])


class Latents:
    """A decoder that shows the latents themselves."""

    def decode(self, z):
        return z


@pytest.mark.parametrize("run", ["flow_run", "ddpm_run"])
def test_images_do_not_depend_on_the_batch(run, request, monkeypatch):
    run = request.getfixturevalue(run)
    drawn = {}
    keyed_noise = generation.keyed_noise

    def recorded(seed, numbers, shape):
        source = keyed_noise(seed, numbers, shape)

        def noise(step):
            values = source(step)
            for number, value in zip(numbers.tolist(), values, strict=True):
                assert torch.equal(drawn.setdefault((number, step), value), value)
            return values

        return noise

    monkeypatch.setattr(generation, "keyed_noise", recorded)
    alone, sevens, sixteens = (draw(run, decoder=Latents(), batch_size=size) for size in (1, 7, 16))
    assert len(drawn) >= len(NUMBERS)
    scale = float(alone.abs().max())
    assert scale > 0.1
    torch.testing.assert_close(sevens, alone, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(sixteens, alone, rtol=0, atol=1e-5 * scale)


def test_an_image_is_decided_by_seed_number_and_label(flow_run):
    images = draw(flow_run, decoder=Latents())
    some = torch.tensor([17, 4])
    torch.testing.assert_close(
        draw(flow_run, LABELS[some], some, decoder=Latents()), images[some], rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(draw(flow_run, decoder=Latents(), seed=4), images, atol=1e-2)
    assert not torch.allclose(draw(flow_run, LABELS + 10 - LABELS, decoder=Latents()), images, atol=1e-2)


def test_images_are_uint8_rgb(flow_run):
    images = draw(flow_run, LABELS[:3], NUMBERS[:3])
    assert images.shape == (3, 32, 32, 3) and images.dtype == torch.uint8


def test_a_label_out_of_range_is_named(flow_run):
    with pytest.raises(ValueError, match="labels holds 11; expected 0 to 9, or 10 for no class"):
        draw(flow_run, torch.tensor([11]), NUMBERS[:1])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"cfg_scale": 0.5}, {"sampler": "ddim"}])
def test_bad_settings_are_named(wrong, flow_run):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is "):
        draw(flow_run, **wrong)


def test_labels_are_keyed_by_number():
    numbers = torch.arange(2000)
    random = keyed_labels(numbers, 10, seed=0, balanced=False)
    assert torch.equal(random[[5, 1999]], keyed_labels(numbers[[5, 1999]], 10, seed=0, balanced=False))
    assert not torch.equal(random, keyed_labels(numbers, 10, seed=1, balanced=False))
    counts = random.bincount(minlength=10)
    assert counts.min() > 140 and counts.max() < 260  # 200 each, 4.5 deviations
    assert set(keyed_labels(numbers, 10, seed=0, balanced=True).bincount().tolist()) == {200}
    assert keyed_labels(numbers[:0], 10, seed=0, balanced=False).shape == (0,)


def test_a_row_of_the_grid_is_a_class(tmp_path):
    colours = np.arange(6, dtype=np.uint8).repeat(4 * 5 * 3).reshape(6, 4, 5, 3) * 40
    save_grid(colours, 2, tmp_path / "grid.png")
    grid = np.array(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 6 + 2, 3 * 7 + 2, 3)
    assert [grid[4, 4 + 7 * column, 0] for column in range(3)] == [0, 40, 80]
    assert [grid[10, 4 + 7 * column, 0] for column in range(3)] == [120, 160, 200]
    assert grid[:2].max() == 0 and grid[6:8].max() == 0


@pytest.mark.parametrize(
    ("shape", "rows", "message"),
    [
        ((6, 4, 4, 3), 4, "rows is 4; expected a divisor of the 6"),
        ((6, 4, 4), 2, r"expected \(n, H, W, 3\) uint8"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(shape, rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_grid(np.zeros(shape, dtype=np.uint8), rows, tmp_path / "grid.png")
