"""The nearest training pictures of samples: known copies, mirrored ones too, what is drawn, and bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gspn_dit.errors import UserError
from gspn_dit.evaluation import neighbours
from gspn_dit.evaluation.extractors import Features
from gspn_dit.evaluation.image_sets import ArrayImages
from tests.evaluation.conftest import random_images


class Corner:
    """A network whose features are the pixels of the left half: a mirror changes them."""

    kind, identity, width, published = "efficientnet", "corner", 24, False

    def __call__(self, images):
        return Features(torch.from_numpy(images[:, ::2, :2].reshape(len(images), -1)).float() / 64)


@pytest.fixture
def corner(monkeypatch):
    monkeypatch.setattr(neighbours, "check_network", lambda options: None)
    monkeypatch.setattr(neighbours, "create_network", lambda options, device: Corner())


@pytest.fixture
def pictures(tmp_path):
    """Thirty pictures of 8x8 in two class folders; their pixels, in the order of the paths."""
    images = random_images(30, seed=1, size=8)
    for number, image in enumerate(images):
        path = tmp_path / "pictures" / f"class{number // 15}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return images


def run(tmp_path, images: np.ndarray, *arguments: str) -> dict:
    """The JSON of the command for samples (n, H, W, 3)."""
    np.savez(tmp_path / "samples.npz", arr_0=images)
    folder = ["--images", str(tmp_path / "pictures"), "--features", "efficientnet"]
    outputs = ["--out", str(tmp_path / "near.png"), "--json", str(tmp_path / "near.json")]
    assert neighbours.main([str(tmp_path / "samples.npz"), *folder, *outputs, *arguments]) == 0
    return json.loads((tmp_path / "near.json").read_text())


def test_a_copy_and_a_mirrored_copy_are_found_and_come_first(corner, pictures, tmp_path, capsys):
    samples = random_images(6, seed=2, size=8)
    samples[2], samples[4] = pictures[21], pictures[7, :, ::-1]
    found = run(tmp_path, samples, "--nearest", "2", "--show", "3")
    near = np.array(found["distances"])[:, 0]
    assert near[2] == near[4] == 0 and (np.delete(near, [2, 4]) > 0).all()
    assert found["numbers"][2][0] == 21 and found["numbers"][4][0] == 7
    assert found["copies"] == 2 and "near-copies, nearer than that: 2 of 6 (33.3%)" in capsys.readouterr().out
    grid = np.asarray(Image.open(tmp_path / "near.png"))
    assert grid.shape == (3 * 10 + 2, 3 * 10 + 2, 3)  # three rows of a sample and two pictures, borders of 2
    cells = [
        [grid[2 + 10 * row : 10 + 10 * row, 2 + 10 * i : 10 + 10 * i] for i in range(3)] for row in range(3)
    ]
    assert (cells[0][0] == samples[2]).all() and (cells[0][1] == pictures[21]).all()
    assert (cells[1][0] == samples[4]).all() and (cells[1][1] == pictures[7]).all()


def test_distances_are_those_of_the_definition(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 3)  # several parts, the last of them shorter
    rng = np.random.default_rng(0)
    samples, real, mirrored = (rng.normal(size=(n, 5)).astype(np.float32) for n in (7, 10, 10))
    found = neighbours.find(samples, real, mirrored, 4)

    def plain_distances(points):
        ways = [np.linalg.norm(points[:, None].astype(float) - other, axis=2) for other in (real, mirrored)]
        return np.minimum(*ways)

    plain = plain_distances(samples)
    order = plain.argsort(axis=1)[:, :4]
    assert (found.numbers == order).all()
    np.testing.assert_allclose(found.distances, np.take_along_axis(plain, order, axis=1), rtol=1e-9)
    among = plain_distances(real) + np.diag(np.full(10, np.inf))
    np.testing.assert_allclose(found.real, among.min(axis=1), rtol=1e-9)
    assert found.limit == pytest.approx(np.quantile(among.min(axis=1), 0.01))


def test_pictures_of_other_sizes_are_cut_as_for_training(corner, pictures, tmp_path):
    samples = random_images(3, seed=2, size=8)
    samples[1] = pictures[0]
    wide = np.zeros((16, 24, 3), np.uint8)
    wide[:, 4:20] = np.repeat(
        np.repeat(pictures[0], 2, axis=0), 2, axis=1
    )  # halved and cut: the picture itself
    Image.fromarray(wide).save(tmp_path / "pictures" / "class0" / "00.png")
    found = run(tmp_path, samples)
    assert found["numbers"][1][0] == 0 and found["distances"][1][0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "nowhere"], "--images nowhere: expected the folder of the pictures"),
        (["--nearest", "31"], "--nearest 31: .*pictures holds 30 pictures"),
        (["--nearest", "0"], "--nearest 0: expected at least 1"),
        (["--out", "near.jpg"], "expected a name that ends in .png"),
        (["--out", "PICTURES/class0/00.png"], "--out .*00.png"),
        (["--features", "digits"], "expected digits of 32x32"),
    ],
)
def test_what_cannot_be_is_said_before_a_network_is_loaded(
    pictures, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(neighbours, "create_network", lambda *_: pytest.fail("a network was loaded"))
    arguments = [word.replace("PICTURES", str(tmp_path / "pictures")) for word in arguments]
    with pytest.raises(UserError, match=message):
        run(tmp_path, random_images(3, seed=2, size=8), *arguments)


def test_training_pictures_that_are_there_twice_do_not_hide_copies(corner, pictures, tmp_path, capsys):
    Image.fromarray(pictures[0]).save(tmp_path / "pictures" / "class0" / "again.png")
    found = run(tmp_path, np.concatenate([pictures[3:5], random_images(2, seed=2, size=8)]))
    assert found["copies"] == 2 and found["limit"] > 0
    assert "near-copies, nearer than that: 2 of 4" in capsys.readouterr().out


def test_one_output_does_not_replace_the_other(pictures, tmp_path):
    with pytest.raises(UserError, match=r"--json .*near\.png: expected a name that does not end in"):
        run(tmp_path, pictures[:2], "--json", str(tmp_path / "near.png"))


def test_pictures_one_pixel_wide_are_mirrored():
    images = neighbours.Mirrored(ArrayImages(np.zeros((2, 1, 1, 3), np.uint8), "dots")).read(0, 2)
    assert torch.from_numpy(images).shape == (2, 1, 1, 3)


def test_samples_must_be_square(corner, pictures, tmp_path):
    with pytest.raises(UserError, match=r"SAMPLES: .*holds images of 8x6; expected squares"):
        run(tmp_path, random_images(3, seed=2, size=8)[:, :, :6])
