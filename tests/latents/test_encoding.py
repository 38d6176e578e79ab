"""encode_latents.py: what is stored, what is skipped, what a kill leaves, what is refused."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import encode_latents
from gspn_dit.data.images import list_images, read_image
from gspn_dit.errors import UserError
from gspn_dit.files import claimed
from gspn_dit.latents import store
from gspn_dit.latents.autoencoder import LatentAutoencoder, create_autoencoder
from gspn_dit.latents.dataset import DTYPE, MIRRORS, LatentDataset, read_manifest
from gspn_dit.latents.encoding import Encoder
from tests.data.test_images import write_broken

from .conftest import SCALE, SHIFT, picture, save_vae

SIZE = 32
"""Images of these tests: latents are 4x4x4."""


def encode(images: Path, out: Path, vae: Path, *extra: str) -> int:
    """The command line, without worker processes."""
    options = ["--image-size", str(SIZE), "--batch-size", "4", "--workers", "0", *extra]
    return encode_latents.main([str(images), str(out), "--vae", str(vae), *options])


def moments_of(out: Path) -> np.ndarray:
    """The stored moments: (images, 2, 2, C, h, w) float16."""
    manifest = read_manifest(out)
    return np.fromfile(out / "moments.bin", DTYPE).reshape(-1, MIRRORS, *manifest.block_shape)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 8 images, so that a small folder has several."""
    monkeypatch.setattr(store, "CHUNK", 8)


def test_both_mirrors_are_stored(image_folder, vae_folder, tmp_path):
    images = list_images(image_folder(6))
    write_broken(images.root / images.paths[1], "cut")
    assert encode(images.root, tmp_path / "out", vae_folder, "--workers", "1") == 0
    autoencoder = create_autoencoder(str(vae_folder), "cpu")
    stored = torch.from_numpy(moments_of(tmp_path / "out")).float()
    assert (stored[1] == 0).all()
    for row in (0, 2, 3, 4, 5):
        path = images.paths[row]
        pixels = torch.from_numpy(read_image(images.root / path, SIZE).copy())
        for mirror, shown in enumerate((pixels, pixels.flip(1))):
            expected = autoencoder.moments(shown[None])[0]
            torch.testing.assert_close(stored[row, mirror], expected, rtol=1e-3, atol=1e-3)
    # A mirrored latent is not the latent of the mirror.
    assert (stored[0, 1] - stored[0, 0].flip(-1)).abs().max() > 0.1


def test_manifest_labels_and_draw(image_folder, vae_folder, tmp_path):
    encode(image_folder(6), tmp_path / "out", vae_folder)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.autoencoder == str(vae_folder)
    assert manifest.weights_hash == create_autoencoder(str(vae_folder), "cpu").weights_hash
    assert (manifest.scale, manifest.shift, manifest.image_size) == (SCALE, SHIFT, SIZE)
    assert (manifest.images, manifest.skipped, manifest.latent_shape) == (6, 0, (4, 4, 4))
    assert 0 < manifest.float16_error["mean_max"] < 1e-2
    dataset = LatentDataset(tmp_path / "out")
    assert (dataset.num_classes, dataset.channels, dataset.size, len(dataset)) == (3, 4, 4, 6)
    assert dataset.class_names == ["ant", "bee", "cat"]
    x, y = dataset.draw(np.arange(6), np.arange(6), seed=0)
    assert x.shape == (6, 4, 4, 4) and y.tolist() == [0, 0, 1, 1, 2, 2]


def test_stored_means_decode_to_what_the_autoencoder_makes_of_the_image(image_folder, vae_folder, tmp_path):
    images = list_images(image_folder(3))
    encode(images.root, tmp_path / "out", vae_folder)
    autoencoder = create_autoencoder(str(vae_folder), "cpu")
    means = torch.from_numpy(moments_of(tmp_path / "out"))[:, 0, 0].float()
    pixels = np.stack([read_image(images.root / path, SIZE) for path in images.paths])
    with torch.inference_mode():
        exact = autoencoder.vae.encode(
            torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
        ).latent_dist.mean
        shown = autoencoder.vae.decode(exact).sample.permute(0, 2, 3, 1)
    expected = ((shown + 1) * 127.5).round().clamp(0, 255)
    assert (autoencoder.decode((means - SHIFT) * SCALE).int() - expected.int()).abs().max() <= 1


def make_mixed_folder(root: Path, count: int) -> tuple[list[str], int]:
    """`count` images of which 10 broken, 5 grey, 5 CMYK, 5 with alpha, some small: the broken ones' paths."""
    broken = []
    kinds = ["empty", "text", "cut", "damaged", "float"] * 2
    for number in range(count):
        folder = root / f"class_{number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:05d}.JPEG"
        if number < 10:
            write_broken(path, kinds[number])
            broken.append(f"class_{number % 5}/{path.name}")
        else:
            mode = {2: "L", 3: "CMYK", 4: "RGBA"}.get(number // 5, "RGB")
            width = 20 if number % 7 == 0 else 70
            picture(number, width, 60, mode).save(path, "PNG" if mode == "RGBA" else "JPEG")
    return sorted(broken), count - len(broken)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_mixed_folder_is_encoded_and_its_broken_images_listed(vae_folder, tmp_path, capfd, count):
    broken, good = make_mixed_folder(tmp_path / "images", count)
    assert encode(tmp_path / "images", tmp_path / "out", vae_folder) == 0
    printed = capfd.readouterr().out
    assert f"{good:,} images of 5 classes" in printed and "skipped 10 unreadable images" in printed
    lines = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == broken
    assert all(line.split("\t")[1] for line in lines)
    dataset = LatentDataset(tmp_path / "out")
    assert len(dataset) == good
    x, y = dataset.draw(np.arange(good), np.arange(good), seed=0)
    assert x.isfinite().all() and (x.flatten(1).std(1) > 1e-3).all()
    assert y.bincount().tolist() == [good // 5] * 5


def kill_at(function: str, call: int) -> None:
    """Make the process kill itself at one call of a function of os."""
    original, calls = getattr(os, function), iter(range(1_000_000))

    def counted(*arguments):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(os, function, counted)


def encode_and_die(function: str, call: int, *arguments: Path) -> None:
    """What the killed process does."""
    torch.set_num_threads(1)
    kill_at(function, call)
    encode(*arguments)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("pwrite", 0),
        ("pwrite", 3),
        ("fdatasync", 1),
        ("replace", 0),
        ("replace", 2),
        ("replace", 5),
        ("replace", 7),
    ],
)
def test_a_killed_run_continues_to_the_same_bytes(
    image_folder, vae_folder, tmp_path, small_chunks, monkeypatch, function, call
):
    images = image_folder(21)
    write_broken(images / "ant" / "0000.png", "cut")
    out = tmp_path / "out"
    encode(images, tmp_path / "whole", vae_folder)

    process = multiprocessing.get_context("fork").Process(
        target=encode_and_die, args=(function, call, images, out, vae_folder)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finished = len(list((out / "chunks").glob("0*.json"))) if (out / "chunks").exists() else 0
    if (out / "manifest.json").exists():
        with pytest.raises(UserError, match="unfinished: run the same encode_latents"):
            LatentDataset(out)

    seen = count_encoded(monkeypatch)
    assert encode(images, out, vae_folder) == 0
    # The probe encodes a batch of both mirrors twice; finished chunks are not encoded again.
    assert len(seen) == 4 * 4 + 2 * sum((7, 8, 5)[finished:])
    for name in ("moments.bin", "labels.npy", "skipped.txt", "images.json", "manifest.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))


def test_an_interrupt_says_what_is_encoded(image_folder, vae_folder, tmp_path, small_chunks, monkeypatch):
    synced = os.fdatasync

    def interrupted(descriptor):
        if (tmp_path / "out/chunks/000000000.json").exists():
            raise KeyboardInterrupt
        synced(descriptor)

    monkeypatch.setattr(os, "fdatasync", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        encode(image_folder(21), tmp_path / "out", vae_folder)
    assert caught.value.__notes__ == [
        f"8 of 21 images are encoded in {tmp_path}/out: the same command goes on"
    ]


def test_a_second_command_for_a_folder_is_told_who_is_at_work(image_folder, vae_folder, tmp_path):
    images = image_folder(4)
    with (
        claimed(tmp_path / "out"),
        pytest.raises(UserError, match=r"out is in use by process \d+ on \S+ since"),
    ):
        encode(images, tmp_path / "out", vae_folder)
    encode(images, tmp_path / "out", vae_folder)
    assert not (tmp_path / "out/.lock").exists()


def count_encoded(monkeypatch) -> list[int]:
    """A list that grows by one for every image that the autoencoder encodes."""
    seen: list[int] = []
    original = LatentAutoencoder.moments

    def counted(self, images):
        seen.extend([1] * len(images))
        return original(self, images)

    monkeypatch.setattr(LatentAutoencoder, "moments", counted)
    return seen


def test_a_finished_folder_is_left_alone(image_folder, vae_folder, tmp_path, monkeypatch, capfd):
    images = image_folder(4)
    encode(images, tmp_path / "out", vae_folder)
    capfd.readouterr()
    seen = count_encoded(monkeypatch)
    assert encode(images, tmp_path / "out", vae_folder) == 0
    assert not seen and "4 images of 3 classes as latents of 4x4x4" in capfd.readouterr().out


def another_image(images: Path) -> None:
    """Put one more image into a folder."""
    shutil.copy(images / "ant" / "0000.png", images / "ant" / "9999.png")


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        (another_image, (), "other images"),
        (lambda images: None, ("--image-size", "64"), "other --image-size"),
        (lambda images: None, ("--vae", "other"), "other weights of the autoencoder"),
    ],
    ids=["images", "size", "weights"],
)
def test_other_settings_do_not_continue_a_folder(image_folder, vae_folder, tmp_path, change, extra, message):
    images = image_folder(4)
    encode(images, tmp_path / "out", vae_folder)
    save_vae(tmp_path / "other", seed=1)
    change(images)
    extra = [str(tmp_path / value) if value == "other" else value for value in extra]
    with pytest.raises(UserError, match=message) as caught:
        encode(images, tmp_path / "out", vae_folder, *extra)
    assert "\n" not in str(caught.value) and str(tmp_path / "out") in str(caught.value)


def test_a_moments_file_lost_between_runs_is_reported(image_folder, vae_folder, tmp_path, small_chunks):
    images = image_folder(12)
    out = tmp_path / "out"
    arguments = ("fdatasync", 1, images, out, vae_folder)
    process = multiprocessing.get_context("fork").Process(target=encode_and_die, args=arguments)
    process.start()
    process.join()
    (out / "moments.bin").unlink()
    with pytest.raises(UserError, match=r"moments.bin was removed or cut"):
        encode(images, out, vae_folder)


Folder = Callable[[Path], object]


@pytest.mark.parametrize(
    ("prepare", "extra", "message"),
    [
        (lambda root: shutil.rmtree(root / "images"), (), "images does not exist"),
        (lambda root: (root / "out").write_text(""), (), "is a file: expected a new folder"),
        (lambda root: another_folder(root / "out"), (), "not empty and holds no latents"),
        (lambda root: None, ("--image-size", "36"), "image size 36: the autoencoder needs a multiple of 8"),
        (lambda root: None, ("--image-size", "0"), "--image-size: expected at least 1, got 0"),
        (lambda root: None, ("--batch-size", "-3"), "--batch-size: expected at least 1, got -3"),
        (lambda root: None, ("--batch-size", "x"), "--batch-size: invalid int value"),
        (lambda root: None, ("--vae", "/no/such/vae"), "'/no/such/vae' is neither a folder nor"),
        (lambda root: break_all(root / "images"), (), "none of its 4 images can be read"),
    ],
)
def test_bad_input_is_one_line(image_folder, vae_folder, tmp_path, prepare: Folder, extra, message):
    images = image_folder(4)
    prepare(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        encode(images, tmp_path / "out", vae_folder, *extra)
    assert "\n" not in str(caught.value)


def another_folder(folder: Path) -> None:
    """A folder with something else in it."""
    folder.mkdir()
    (folder / "thesis.tex").touch()


def break_all(images: Path) -> None:
    """Empty every image file."""
    for path in images.rglob("*.png"):
        path.write_bytes(b"")


def test_too_little_room_is_told_before_the_work(image_folder, vae_folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"MB needed, 0\.0 MB free; make room first"):
        encode(image_folder(4), tmp_path / "out", vae_folder)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_told_before_the_work(image_folder, vae_folder, monkeypatch):
    monkeypatch.setattr(Encoder, "probe", None)
    with pytest.raises(UserError, match="OUT /dev/null/out cannot be written: /dev/null is a device"):
        encode(image_folder(4), Path("/dev/null/out"), vae_folder)


def test_a_disk_that_fills_up_is_told_and_the_work_continues_later(
    image_folder, vae_folder, tmp_path, monkeypatch, small_chunks
):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    images = image_folder(12)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(UserError, match="disk full; make room and run the same"):
            encode(images, tmp_path / "out", vae_folder)
    assert encode(images, tmp_path / "out", vae_folder) == 0
    assert len(LatentDataset(tmp_path / "out")) == 12


def test_moments_beyond_float16_are_refused(image_folder, vae_folder, tmp_path, monkeypatch):
    """The image is named, whether it is of the first batch, which is a trial too, or of a later one."""
    original = LatentAutoencoder.moments
    images = image_folder(7)

    def moments(self, pixels):
        factors = torch.where((pixels == spoilt).all(dim=(1, 2, 3)), 1e6, 1.0).view(-1, 1, 1, 1, 1)
        return original(self, pixels) * factors

    monkeypatch.setattr(LatentAutoencoder, "moments", moments)
    for name in ("ant/0003.png", "bee/0004.png"):
        spoilt = torch.from_numpy(read_image(images / name, SIZE).copy())
        out = tmp_path / f"out-{name[:3]}"
        with pytest.raises(
            UserError, match=rf"{name}: the autoencoder gives moments that are not finite in float16"
        ):
            encode(images, out, vae_folder, "--batch-size", "3")
        assert "NaN" not in "".join(path.read_text() for path in out.glob("manifest.json"))


def test_time_and_room_are_told_first(image_folder, vae_folder, tmp_path, capfd):
    encode(image_folder(4), tmp_path / "out", vae_folder)
    first, second = capfd.readouterr().out.splitlines()[:2]
    needed = 4 * 2 * 2 * 64 * 2 / 1e6
    assert "4 images of 3 classes, 4 yet to be encoded" in first and f"needs {needed:.1f} MB more" in first
    assert second.startswith("about ") and "images/s" in second and "float16" in second


def test_names_that_are_not_utf8_are_listed(vae_folder, tmp_path):
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    picture(1).save(folder / "good.png")
    with open(os.fsencode(folder) + b"/b\xffd.png", "wb") as file:
        file.write(b"no image")
    assert encode(tmp_path / "images", tmp_path / "out", vae_folder) == 0
    assert (tmp_path / "out" / "skipped.txt").read_bytes().startswith(rb"a/b\xffd.png" + b"\t")
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())) == 2


def test_every_image_is_its_own_row_whatever_the_batch(vae_folder, tmp_path, small_chunks):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(11):
        Image.new("RGB", (SIZE, SIZE), (20 * number,) * 3).save(folder / f"{number:02d}.png")
    encode(folder, tmp_path / "out", vae_folder, "--batch-size", "3")
    autoencoder = create_autoencoder(str(vae_folder), "cpu")
    pixels = torch.arange(0, 220, 20, dtype=torch.uint8).view(11, 1, 1, 1).expand(11, SIZE, SIZE, 3)
    expected = autoencoder.moments(pixels)
    stored = torch.from_numpy(moments_of(tmp_path / "out")).float()
    torch.testing.assert_close(stored[:, 0], expected, rtol=1e-3, atol=1e-3)
