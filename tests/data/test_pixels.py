"""Pixels of image folders: what is trained on and what is held out, draws by number, what cannot be used."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gspn_dit.checkpoint import latest_checkpoint, read_state
from gspn_dit.data import pixels
from gspn_dit.data.pixels import held_out_pixels, split_folder, training_pixels
from gspn_dit.errors import UserError
from tests.training.run_state import final_state

NUMBERS = np.arange(4)


def write_images(folder, count: int, first: int = 0, size: int = 8, suffix: str = "png") -> None:
    """Pictures of noise, named by the numbers that key them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        values = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number:03d}.{suffix}")


@pytest.fixture
def classes(tmp_path):
    """Twenty pictures of ants and ten of bees, without a test folder."""
    write_images(tmp_path / "root" / "ant", 20)
    write_images(tmp_path / "root" / "bee", 10, first=20)
    return tmp_path / "root"


@pytest.fixture
def split(tmp_path):
    """Six pictures to train on and three to test on, whose classes are two of the three."""
    for number, name in enumerate(("ant", "bee", "cow")):
        write_images(tmp_path / "root" / "train" / name, 2, first=10 * number)
    write_images(tmp_path / "root" / "test" / "bee", 1, first=50)
    write_images(tmp_path / "root" / "test" / "cow", 2, first=60)
    return tmp_path / "root"


def test_a_share_of_every_class_is_held_out(classes):
    train, held_out = split_folder(classes, 0.2)
    assert np.bincount(train.labels).tolist() == [16, 8] and np.bincount(held_out.labels).tolist() == [4, 2]
    assert train.class_names == held_out.class_names == ["ant", "bee"]
    assert sorted(train.paths + held_out.paths) == sorted(split_folder(classes, 0.0)[0].paths)
    for images in (train, held_out):
        assert [images.class_names[label] for label in images.labels] == [p[:3] for p in images.paths]


def test_what_is_held_out_does_not_depend_on_what_is_added_to_other_classes(classes):
    _, before = split_folder(classes, 0.2)
    write_images(classes / "aardvark", 10, first=40)
    _, after = split_folder(classes, 0.2)
    assert set(before.paths) < set(after.paths)


def test_no_share_holds_nothing_out(classes):
    assert held_out_pixels(classes, 8, 0.0) is None
    assert len(training_pixels(classes, 8, 0.0, flip=False)) == 30


def test_test_images_are_held_out_and_number_the_classes_as_train_does(split):
    train, held_out = split_folder(split, 0.5)
    assert (len(train.paths), held_out.labels) == (6, [1, 2, 2])
    assert held_out.class_names == train.class_names == ["ant", "bee", "cow"]


def test_images_without_classes_are_of_one(tmp_path):
    write_images(tmp_path / "cats" / "train", 3)
    write_images(tmp_path / "cats" / "test", 2, first=10)
    for images in split_folder(tmp_path / "cats", 0.1):
        assert images.class_names == ["cats"] and set(images.labels) == {0}
    assert split_folder(tmp_path / "cats" / "train", 0.0)[0].class_names == ["train"]


def test_draw_gives_the_pixels_in_minus_one_to_one(split):
    data = training_pixels(split, 8, 0.0, flip=False)
    x, y = data.draw(np.array([5, 0]), np.array([0, 1]), seed=0)
    assert x.shape == (2, 3, 8, 8) and x.dtype == torch.float32 and y.tolist() == [2, 0]
    for row, path in zip(x, ("cow/021.png", "ant/000.png"), strict=True):
        expected = np.asarray(Image.open(split / "train" / path)) / 127.5 - 1  # (8, 8, 3)
        np.testing.assert_allclose(row.permute(1, 2, 0), expected, atol=1e-6)


def test_mirrors_are_keyed_by_seed_and_number(split):
    plain, flipped = (training_pixels(split, 8, 0.0, flip=flip) for flip in (False, True))
    numbers = np.arange(64)
    indices = numbers % 6
    x, _ = plain.draw(indices, numbers, seed=3)
    drawn, _ = flipped.draw(indices, numbers, seed=3)
    mirrored = (drawn == x.flip(3)).flatten(1).all(1)
    assert ((drawn == x).flatten(1).all(1) ^ mirrored).all()
    assert 16 < mirrored.sum() < 48  # four standard deviations of 64 fair coins
    parts = [flipped.draw(indices[part], numbers[part], seed=3)[0] for part in (slice(40), slice(40, 64))]
    assert torch.equal(torch.cat(parts), drawn)
    assert not torch.equal(flipped.draw(indices, numbers, seed=4)[0], drawn)


def test_held_out_images_are_never_mirrored(classes):
    data = held_out_pixels(classes, 8, 0.2)
    draws = [data.draw(NUMBERS, NUMBERS + shift, seed=shift)[0] for shift in range(8)]
    assert all(torch.equal(draw, draws[0]) for draw in draws)


def test_images_that_do_not_fit_in_memory_are_read_at_every_draw(split, monkeypatch):
    kept = training_pixels(split, 8, 0.0, flip=True)
    monkeypatch.setattr(pixels, "MEMORY_SHARE", 0)
    read = training_pixels(split, 8, 0.0, flip=True)
    assert "in memory" in kept.notes[-1] and "at every draw" in read.notes[-1]
    assert all(map(torch.equal, kept.draw(NUMBERS, NUMBERS, 1), read.draw(NUMBERS, NUMBERS, 1)))
    shutil.rmtree(split)
    kept.draw(NUMBERS, NUMBERS, 1)
    with pytest.raises(UserError, match=r"ant/000.png .*No such file"):
        read.draw(NUMBERS, NUMBERS, 1)


def test_the_processes_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(pixels.os, "sysconf", lambda name: 1000)
    counts = (81, 82, 40, 41)  # of 3,072 bytes each, in a quarter of a megabyte
    assert [pixels.fits(count, 32) for count in counts] == [True, False, True, True]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [pixels.fits(count, 32) for count in counts] == [False, False, True, False]


def test_broken_images_are_counted_and_named(split):
    for path in ("train/ant/000.png", "train/bee/011.png"):
        (split / path).write_bytes(b"not an image")
    message = r"2 of 6 images cannot be read: .*ant/000.png \(.*bee/011.png"
    with pytest.raises(UserError, match=message) as caught:
        training_pixels(split, 8, 0.0, flip=False)
    assert "\n" not in str(caught.value)


def rename(before: str, after: str):
    return lambda root: (root / before).rename(root / after)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "does not exist"),
        (rename("test", "val"), "holds train, val: expected train and test, or class folders"),
        (rename("test/bee", "test/bat"), "test holds the class bat, which train does not"),
        (lambda root: [shutil.rmtree(p) for p in (root / "test").iterdir()], "holds no image"),
        (
            lambda root: (shutil.rmtree(root / "test"), write_images(root / "test", 2)),
            "expected class folders in both train and test, or in neither",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(split, change, message):
    change(split)
    with pytest.raises(UserError, match=message) as caught:
        split_folder(split, 0.1)
    assert str(split) in str(caught.value) and "\n" not in str(caught.value)


def test_a_share_that_leaves_nothing_is_refused(tmp_path):
    write_images(tmp_path / "root", 2)
    with pytest.raises(UserError, match=r"data.held_out: 0.9 leaves no image"):
        split_folder(tmp_path / "root", 0.9)


@pytest.fixture
def train_pixels(train_run, split):
    """train_run on the images of `split`."""

    def run(name: str, *overrides: str, root=split):
        data = f"data={{kind: images, path: {root}, size: 8}}"
        return train_run(name, data, "model.name=DiT-S/1", *overrides)

    return run


def test_training_on_pixels_shows_pixels_and_resumes_exactly(train_pixels, split, capsys):
    (split / "train" / "ant" / "notes.txt").touch()
    straight, broken = train_pixels("straight"), train_pixels("broken")
    told = capsys.readouterr().out
    assert "6 images of images" in told and "pixels: 8x8, 0 MB, in memory" in told
    assert "left out 1 files or folders, hidden or no images: ant/notes.txt" in told
    shutil.rmtree(broken / "checkpoints" / "step_00000010")
    train_pixels("broken")
    assert final_state(broken) == final_state(straight)
    with Image.open(straight / "samples" / "final.png") as grid:
        assert grid.size == (12, 12)  # one class, one image of 8x8, and a border


@pytest.mark.parametrize("change", ["content", "listing"])
def test_a_run_is_not_continued_on_other_images(train_pixels, split, tmp_path, change, monkeypatch):
    run_dir = train_pixels("run")
    assert {"images_hash", "listing_hash"} <= read_state(latest_checkpoint(run_dir))["dataset"].keys()
    moved = shutil.copytree(split, tmp_path / "moved")
    train_pixels("run", root=moved)
    if change == "content":  # the same length, so that only the content tells
        content = bytearray((moved / "train/ant/000.png").read_bytes())
        content[-13] ^= 1  # in the checksum of the last chunk, which Pillow does not read
        (moved / "train/ant/000.png").write_bytes(content)
    else:
        (moved / "train/ant/000.png").rename(moved / "train/ant/000000.png")
    with pytest.raises(UserError, match=r"the data has (listing|images)_hash .* was trained with"):
        train_pixels("run", root=moved)


def test_a_run_goes_on_where_its_images_no_longer_fit_in_memory(train_pixels, monkeypatch):
    straight, run_dir = train_pixels("straight", "train.steps=12", "train.schedule=constant"), None
    train_pixels("run", "train.schedule=constant")
    monkeypatch.setattr(pixels, "MEMORY_SHARE", 0)
    run_dir = train_pixels("run", "train.steps=12", "train.schedule=constant")
    assert final_state(run_dir)["hashes"] == final_state(straight)["hashes"]
