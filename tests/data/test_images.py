"""Image folders: which images there are, how each mode becomes RGB, ADM's crop, what is unreadable."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from gspn_dit.data.images import UnreadableImage, center_crop, list_images, read_image
from gspn_dit.errors import UserError
from tests.latents.conftest import picture


def touch(root, *paths) -> None:
    """Make empty files."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_classes_are_the_sorted_first_folders(tmp_path):
    touch(tmp_path, "n02/b.JPEG", "n02/deep/er/a.png", "n01/z.jpg", "n01/a.webp", "n10/x.TIF")
    images = list_images(tmp_path)
    assert images.class_names == ["n01", "n02", "n10"]
    assert images.paths == ["n01/a.webp", "n01/z.jpg", "n02/b.JPEG", "n02/deep/er/a.png", "n10/x.TIF"]
    assert images.labels == [0, 0, 1, 1, 2]


def test_hidden_and_other_files_do_not_count(tmp_path):
    touch(tmp_path, "a/1.png", "a/.2.png", ".git/3.png", "a/notes.txt", "labels.json", "b/.DS_Store")
    assert list_images(tmp_path).paths == ["a/1.png"]


def test_images_without_classes_are_one_class(tmp_path):
    touch(tmp_path / "val", "2.jpg", "1.jpg")
    images = list_images(tmp_path / "val")
    assert (images.paths, images.labels, images.class_names) == (["1.jpg", "2.jpg"], [0, 0], ["val"])


def test_links_are_followed_and_a_circle_ends(tmp_path):
    touch(tmp_path / "elsewhere", "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "root")
    assert list_images(tmp_path / "root").paths == ["linked/1.png"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "does not exist"),
        (["a/notes.txt"], "holds no image"),
        (["a/1.png", "2.png"], "beside its class folders, e.g. 2.png"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(tmp_path, paths, message):
    touch(tmp_path / "root", *paths)
    with pytest.raises(UserError, match=message) as caught:
        list_images(tmp_path / "root")
    assert str(tmp_path / "root") in str(caught.value)


def halved(pixels: np.ndarray) -> np.ndarray:
    """Rounded means of neighbours along the lines, then down the columns; (H, W, 3) of even sides."""
    across = (pixels[:, ::2].astype(int) + pixels[:, 1::2] + 1) // 2
    return ((across[::2] + across[1::2] + 1) // 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "halvings"), [(512, 256, 2), (254, 400, 0), (260, 256, 1), (128, 130, 0)]
)
def test_crop_halves_only_while_the_short_side_is_twice_the_size(width, height, halvings):
    size = 64 if halvings == 2 else 128
    image = picture(3, width, height)
    pixels = np.asarray(image)
    for _ in range(halvings):
        pixels = halved(pixels)
    scale = size / min(pixels.shape[:2])
    resized = Image.fromarray(pixels).resize(
        (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    expected = np.asarray(resized)[top : top + size, left : left + size]
    assert expected.shape == (size, size, 3)
    assert (np.asarray(center_crop(image, size)) == expected).all()


def test_crop_takes_the_centre():
    pixels = np.zeros((32, 97, 3), dtype=np.uint8)
    pixels[:, 32:64] = np.arange(32, dtype=np.uint8)[None, :, None]
    assert (np.asarray(center_crop(Image.fromarray(pixels), 32)) == pixels[:, 32:64]).all()


def test_a_small_image_is_enlarged():
    assert center_crop(picture(1, 20, 31), 64).size == (64, 64)


def test_a_side_beyond_what_pillow_makes_is_told_as_such():
    with pytest.raises(UnreadableImage, match="a side of 100000 pixels is more than"):
        center_crop(picture(1, 20, 31), 100_000)


def saved(tmp_path, image, name="image.png", **settings) -> np.ndarray:
    """What read_image makes of an image's file."""
    image.save(tmp_path / name, **settings)
    return read_image(tmp_path / name, image.height)


def test_greyscale_has_three_equal_channels(tmp_path):
    grey = picture(1, 32, 32, "L")
    pixels = saved(tmp_path, grey)
    assert pixels.shape == (32, 32, 3) and (pixels == np.asarray(grey)[..., None]).all()


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels = saved(tmp_path, Image.fromarray(values))
    assert (pixels[..., 0] == np.round(values / 257)).all()


def test_cmyk_gives_its_colours(tmp_path):
    red = Image.new("RGB", (32, 32), (250, 10, 20)).convert("CMYK")
    pixels = saved(tmp_path, red, "image.jpg", quality=95)
    assert np.abs(pixels.astype(int) - np.array([250, 10, 20])).max() <= 3


def test_alpha_is_dropped(tmp_path):
    image = picture(2, 32, 32)
    colours = np.asarray(image)
    image.putalpha(Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))))
    assert (saved(tmp_path, image) == colours).all()


def test_a_palette_with_transparency_gives_its_colours(tmp_path):
    image = Image.new("RGB", (32, 32), (10, 200, 30)).quantize(4)
    pixels = saved(tmp_path, image, transparency=b"\x00\x80\xff\xff")
    assert (pixels == np.array([10, 200, 30])).all()


def test_exif_orientation_is_not_applied(tmp_path):
    image = picture(4, 32, 32)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert (saved(tmp_path, image, exif=exif) == np.asarray(image)).all()


def write_broken(path, kind: str) -> None:
    """A file that cannot be used, in one of several ways."""
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "cut":
        picture(1).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "damaged":
        picture(1).save(path, "PNG")
        content = bytearray(path.read_bytes())
        content[60:200] = bytes(140)
        path.write_bytes(content)
    elif kind == "float":
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path, "TIFF")
    elif kind == "thread":
        Image.new("L", (1, 60_000)).save(path, "PNG")


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "damaged", "float", "thread", "missing"])
def test_an_unreadable_image_says_why_in_one_line(tmp_path, kind):
    write_broken(tmp_path / "image.png", kind)
    with pytest.raises(UnreadableImage) as caught:
        read_image(tmp_path / "image.png", 64 if kind != "thread" else 1024)
    assert str(caught.value) and "\n" not in str(caught.value)


def test_a_class_without_images_keeps_its_number_and_is_named(tmp_path):
    touch(tmp_path, "a/1.png", "c/2.png")
    (tmp_path / "b").mkdir()
    images = list_images(tmp_path)
    assert (images.labels, images.class_names) == ([0, 2], ["a", "b", "c"])
    assert images.notes == [
        f"{tmp_path}: class folder b holds no image; it keeps its number, 1: remove it if it is no class"
    ]


def test_what_is_left_out_is_counted_and_named(tmp_path):
    touch(tmp_path, "a/1.png", "a/.1.png", "a/notes.txt", ".cache/2.png", "z.json")
    assert list_images(tmp_path).notes == [
        f"{tmp_path}: left out 4 files or folders, hidden or no images: .cache, a/.1.png, a/notes.txt, ..."
    ]
    touch(tmp_path / "clean", "a/1.png")
    assert list_images(tmp_path / "clean").notes == []


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png", "b/2.png")
    listed = os.scandir

    def closed(path):
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"cannot read the folder .*b: Permission denied"):
        list_images(tmp_path)
