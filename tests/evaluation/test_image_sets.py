"""Reading sets of images, and what is said of those that cannot be read."""

import gzip
import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from gspn_dit.data.images import find_images
from gspn_dit.errors import UserError
from gspn_dit.evaluation.image_sets import open_images
from tests.evaluation.conftest import random_images


def write_folder(folder, images, suffix=".png"):
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}{suffix}")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_in_part(save, tmp_path):
    images = random_images(9, 0, size=5)
    save(tmp_path / "s.npz", labels=np.arange(9), arr_0=images)
    opened = open_images(tmp_path / "s.npz")
    assert len(opened) == 9 and tuple(opened.size) == (5, 5) and not opened.lossy
    parts = [opened.read(start, start + 4) for start in (0, 4, 8)]
    assert np.array_equal(np.concatenate(parts), images)
    assert np.array_equal(opened.read(2, 3), images[2:3])


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    images = random_images(3, 1, size=6)
    write_folder(tmp_path / "f", images)
    (tmp_path / "f" / "notes.txt").write_text("no image")
    opened = open_images(tmp_path / "f")
    assert np.array_equal(opened.read(0, 9), images) and not opened.lossy
    write_folder(tmp_path / "f", images[:1], ".jpg")
    assert open_images(tmp_path / "f").lossy


def test_grey_is_repeated(tmp_path):
    grey = random_images(4, 2, size=5)[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=3)
    np.savez(tmp_path / "flat.npz", arr_0=grey)
    np.savez(tmp_path / "one.npz", arr_0=grey[..., None])
    write_folder(tmp_path / "f", grey)
    for name in ("flat.npz", "one.npz", "f"):
        assert np.array_equal(open_images(tmp_path / name).read(0, 4), expected), name


def test_a_key_is_of_the_contents(tmp_path):
    images = random_images(4, 3, size=5)
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", arr_0=images)
        write_folder(tmp_path / name, images)
    other = images.copy()
    other[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "c.npz", arr_0=other)
    write_folder(tmp_path / "c", other)
    for suffix in ("", ".npz"):
        a, b, c = (open_images(tmp_path / f"{name}{suffix}").key() for name in "abc")
        assert a == b != c


def npz(path, **arrays):
    np.savez(path, **arrays)


def spoil_a_byte(path):
    np.savez(path, arr_0=random_images(4, 0))
    content = bytearray(path.read_bytes())
    content[2000] ^= 255
    path.write_bytes(content)


def cut_short(path):
    np.savez(path, arr_0=random_images(4, 0))
    path.write_bytes(path.read_bytes()[:3000])


def no_numpy(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"something else")


def mixed_sizes(path):
    write_folder(path, random_images(2, 0, size=5))
    Image.fromarray(random_images(1, 0, size=6)[0]).save(path / "999.png")


def sixteen_bits(path):
    path.mkdir()
    for i in range(2):
        Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(path / f"{i}.png")


def shorter_than_its_shape(path, compression=zipfile.ZIP_STORED):
    """Whole as an archive; the array's header promises more images than there are bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (4, 5, 5, 3)}
    )
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("arr_0.npy", buffer.getvalue() + bytes(3 * 75))


def zip_of_texts(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("read.me", "nothing")


def encrypted(path):
    """As good as: an archive that says that its array is."""
    np.savez(path, arr_0=random_images(4, 0))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def of_a_later_version(path):
    """An archive that says that it takes a later zip to read it."""
    np.savez(path, arr_0=random_images(4, 0))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 255
    path.write_bytes(content)


def open_bracket(path):
    """An array whose header is no Python."""
    header = b"{'descr': ('|u1'\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def broken_image(path):
    write_folder(path, random_images(2, 0, size=50))
    buffer = io.BytesIO()
    Image.fromarray(random_images(1, 0, size=50)[0]).save(buffer, format="PNG")
    (path / "999.png").write_bytes(buffer.getvalue()[:200])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("s.npz", spoil_a_byte, "is damaged"),
        ("s.npz", cut_short, "a zip archive that is cut short or damaged; expected an npz, whole"),
        (
            "s.npy",
            lambda p: np.save(p, random_images(4, 0)),
            "is a .npy, one array of numpy; expected an npz",
        ),
        (
            "s.h5",
            lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
            "is an HDF5 file; expected an npz",
        ),
        (
            "s.npz",
            lambda p: p.write_text("<!DOCTYPE html>"),
            "is a web page (HTML): the download gave no file",
        ),
        ("s.npz", lambda p: p.write_text("version https://git-lfs.github.com"), "a pointer of Git LFS"),
        ("s.npz", lambda p: p.write_bytes(b""), "is an empty file; expected an npz"),
        ("s.zip", zip_of_texts, "is a zip archive; expected an npz"),
        ("s.pth", lambda p: torch.save({}, p), "is what torch.save wrote; expected an npz"),
        ("s.gz", lambda p: p.write_bytes(gzip.compress(b"text")), "is a gzip archive; expected an npz"),
        ("s.npz", no_numpy, "is not an array that numpy wrote"),
        (
            "s.npz",
            lambda p: npz(p, arr_0=np.array([{}, {}], dtype=object)),
            "pickled Python objects, which are refused",
        ),
        ("s.npz", lambda p: npz(p, images=random_images(2, 0)), "no array arr_0 (it has images)"),
        (
            "s.npz",
            lambda p: npz(p, arr_0=np.zeros((2, 4, 4, 3))),
            "arr_0 is float64 (2, 4, 4, 3); expected uint8",
        ),
        (
            "s.npz",
            lambda p: npz(p, arr_0=random_images(2, 0).transpose(0, 3, 1, 2)),
            "expected uint8 (n, H, W, 3)",
        ),
        ("s.npz", lambda p: npz(p, arr_0=random_images(1, 0)), "holds 1 images: scores need at least 2"),
        ("s.npz", lambda p: npz(p, arr_0=random_images(0, 0)), "holds 0 images: scores need at least 2"),
        ("f", lambda p: p.mkdir(), "holds no images"),
        ("f", lambda p: write_folder(p, random_images(1, 0)), "holds 1 images"),
        ("f", mixed_sizes, "999.png is 6x6, the images before it 5x5"),
        ("f", broken_image, "999.png cannot be read as an image"),
        ("f", sixteen_bits, "0.png has pixels of mode I;16; expected 8 bits a channel"),
        ("s.npz", encrypted, "is damaged"),
        ("s.npz", of_a_later_version, "a zip archive that is cut short or damaged; expected an npz, whole"),
        ("s.npz", open_bracket, "is not an array that numpy wrote"),
        ("s.npz", shorter_than_its_shape, "arr_0 is not as long as its shape (4, 5, 5, 3) says"),
        (
            "s.npz",
            lambda p: shorter_than_its_shape(p, zipfile.ZIP_DEFLATED),
            "arr_0 is not as long as its shape (4, 5, 5, 3) says",
        ),
        ("absent", lambda p: None, "no such file or folder"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(name, make, message, tmp_path):
    make(tmp_path / name)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        images = open_images(tmp_path / name)
        images.read(0, len(images))
    assert message in str(caught.value)


def test_a_folder_of_unlike_sizes_is_refused_before_it_is_read(tmp_path):
    mixed_sizes(tmp_path / "f")
    with pytest.raises(UserError, match=r"999.png is 6x6, the images before it 5x5"):
        open_images(tmp_path / "f")


def test_a_picture_that_cannot_be_cut_is_told_with_its_reason(tmp_path):
    broken_image(tmp_path / "f")
    images = open_images(tmp_path / "f", crop=4)
    with pytest.raises(UserError, match=r"999.png cannot be read as an image: .*truncated.*; remove it"):
        images.read(0, len(images))


def test_a_folder_is_read_by_the_rule_of_encoding(tmp_path):
    folder = tmp_path / "samples"
    write_folder(folder, random_images(3, 0))
    (folder / ".ipynb_checkpoints").mkdir()
    Image.fromarray(random_images(1, 1)[0]).save(folder / ".ipynb_checkpoints" / "copy.png")
    (folder / "._000.png").write_bytes(b"Mac OS X")
    images = open_images(folder)
    assert len(images) == 3
    assert images.note == (
        f"{folder}: left out 2 files or folders, hidden or no images: ._000.png, .ipynb_checkpoints"
    )
    assert [folder / path for path in find_images(folder).images] == images.files
