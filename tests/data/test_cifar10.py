"""CIFAR-10 written as an image folder, with a stand-in for torchvision's files."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torchvision
from PIL import Image

from gspn_dit.data import cifar10
from gspn_dit.data.pixels import split_folder
from gspn_dit.errors import UserError

NAMES = ["airplane", "bird", "cat"]


@pytest.fixture
def torchvisions(monkeypatch):
    """Five images to train on and four to test on, of three classes."""

    def load(root, train, download):
        count = 5 if train else 4
        images = np.random.default_rng(train).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(data=images, targets=[number % 3 for number in range(count)], classes=NAMES)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", load)
    return load


def test_images_are_written_as_they_are_by_split_and_class(torchvisions, tmp_path):
    assert cifar10.main([str(tmp_path / "out"), "--source", str(tmp_path)]) == 0
    train, test = split_folder(tmp_path / "out", 0.1)
    assert train.paths == [f"{NAMES[n % 3]}/{n:05d}.png" for n in (0, 3, 1, 4, 2)]
    assert (train.class_names, test.labels) == (NAMES, [0, 0, 1, 2])
    with Image.open(tmp_path / "out/test/bird/00001.png") as image:
        assert np.array_equal(np.asarray(image), torchvisions(None, False, True).data[1])


def test_the_same_command_writes_what_is_missing(torchvisions, tmp_path, capsys):
    command = [str(tmp_path / "out"), "--source", str(tmp_path)]
    cifar10.main(command)
    kept = tmp_path / "out/train/airplane/00000.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "out/train/cat/00002.png").unlink()
    (tmp_path / "out/test/bird/00001.png").write_bytes(b"")
    capsys.readouterr()
    cifar10.main(command)
    told = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()]
    assert told == ["5 images, 1 of them written now", "4 images, 1 of them written now"]
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "out/test/bird/00001.png").stat().st_size > 0


def test_what_cannot_be_had_is_one_line(monkeypatch, tmp_path):
    def refuse(*arguments, **settings):
        raise RuntimeError("File not found or corrupted.\nTry again")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    message = r"cannot be downloaded \(File not found .* put cifar-10-python"
    with pytest.raises(UserError, match=message) as caught:
        cifar10.main([str(tmp_path / "out"), "--source", str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_a_file_in_the_folder_s_place_is_one_line_and_status_2(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "gspn_dit.data.cifar10", str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'file'} is a file: expected a folder\n"
