"""sample.py, in process through its `main`."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sample
from gspn_dit.errors import UserError
from gspn_dit.files import claimed_file
from gspn_dit.latents.autoencoder import PixelAutoencoder
from gspn_dit.sampling.sample_file import read_settings
from tests.launch import ROOT, accelerate_launch

from .conftest import make_run


def test_a_grid_of_the_classes_asked_for(flow_run, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    assert (
        sample.main(
            [str(flow_run), "--classes", "0,3,7", "--per-class", "2", "--steps", "1", "--out", str(out)]
        )
        == 0
    )
    assert Image.open(out).size == (2 * 34 + 2, 3 * 34 + 2)
    assert "heun, 1 steps, cfg-scale 2, seed 0" in capsys.readouterr().out


def test_a_sample_file_is_the_same_for_any_batch_size_and_is_not_made_twice(flow_run, tmp_path, capsys):
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for file, size in zip(files, (7, 16), strict=True):
        arguments = [
            str(flow_run),
            "--num",
            "150",
            "--npz",
            str(file),
            "--steps",
            "1",
            "--batch-size",
            str(size),
        ]
        assert sample.main(arguments) == 0
    with np.load(files[0]) as a, np.load(files[1]) as b:
        assert a["arr_0"].shape == (150, 32, 32, 3)
        assert np.array_equal(a["labels"], b["labels"])
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"]).max() <= 1
        assert a["arr_0"].std() > 1
    settings = read_settings(files[0])
    assert (settings["cfg_scale"], settings["labels"], settings["ema"], settings["count"]) == (
        1.0,
        "random",
        True,
        150,
    )
    assert "cfg_scale: 1.0" in capsys.readouterr().out
    written = files[1].stat().st_mtime_ns
    assert sample.main(arguments) == 0
    assert files[1].stat().st_mtime_ns == written


def test_labels_decide_guidance_and_averaged_weights(flow_run, tmp_path):
    def images(name, *options):
        file = tmp_path / f"{name}.npz"
        assert sample.main([str(flow_run), "--num", "20", "--npz", str(file), "--steps", "1", *options]) == 0
        with np.load(file) as arrays:
            return arrays["arr_0"].astype(int), arrays["labels"]

    plain, _ = images("plain", "--labels", "balanced")
    _, labels = images("labels", "--labels", "balanced")
    assert labels.tolist() == 2 * list(range(10))
    assert np.abs(images("guided", "--labels", "balanced", "--cfg-scale", "3")[0] - plain).max() > 2
    assert np.abs(images("last", "--labels", "balanced", "--no-ema")[0] - plain).max() > 2
    unguided = images("outside", "--labels", "balanced", "--cfg-scale", "3", "--cfg-interval", "0.2,0.8")[0]
    assert np.array_equal(unguided, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--cfg-scale 0.5", "--cfg-scale 0.5: expected 1.0"),
        ("--cfg-scale nan", "--cfg-scale nan: expected 1.0"),
        ("--cfg-scale 1e300", "--cfg-scale 1e+300: expected 1.0"),
        ("--steps 0", "--steps 0: expected at least 1"),
        ("--batch-size 0", "--batch-size 0: expected at least 1"),
        ("--seed -1", "--seed -1: expected from 0 to 2**63 - 1"),
        ("--seed 9223372036854775808", "--seed 9223372036854775808: expected from 0"),
        ("--per-class 0", "--per-class 0: expected at least 1"),
        ("--num 0 --npz s.npz", "--num 0: expected at least 1"),
        ("--num 5", "--num and --npz belong together"),
        ("--npz s.npz", "--num and --npz belong together"),
        ("--num 5 --npz s.npz --classes 1", "--classes is for a grid"),
        ("--labels balanced", "--labels is for a sample file"),
        ("--num 5 --npz s.zip", "--npz s.zip: expected a name that ends in .npz"),
        ("--out grid.jpg", "--out grid.jpg: expected a name that ends in .png"),
        ("--classes 1,x", "--classes 1,x: expected numbers with commas"),
        ("--classes 3,10", "--classes holds 10; this model has the classes 0 to 9"),
        ("--classes -1", "--classes holds -1"),
        ("--sampler ddim", "sampler is 'ddim'; expected one of heun, euler"),
        ("--cfg-interval 1", "expected two numbers, LOW,HIGH"),
        ("--cfg-interval 0.5,0.1", "cfg_interval is"),
        ("--size 32", "--size 32: expected height and width in pixels, such as 256x384"),
        ("--size 0x32", "--size 0x32: expected height and width"),
        ("--size 40x36", "--size 40x36: expected multiples of 8, the pixels of a token"),
        ("--bogus 1", "unrecognized arguments: --bogus 1"),
    ],
)
def test_bad_input_is_one_line(options, message, flow_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gspn_dit.checkpoint.load_weights", None)  # nothing may be loaded before the checks
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        sample.main([str(flow_run), *options.split()])
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_any_size_of_a_network_without_positions(flow_run, tmp_path):
    grid, file = tmp_path / "grid.png", tmp_path / "s.npz"
    wide = [str(flow_run), "--size", "24x48", "--steps", "1"]
    assert sample.main([*wide, "--classes", "0,3", "--per-class", "3", "--out", str(grid)]) == 0
    assert Image.open(grid).size == (3 * 50 + 2, 2 * 26 + 2)
    assert sample.main([*wide, "--num", "5", "--npz", str(file), "--labels", "balanced"]) == 0
    with np.load(file) as arrays:
        images = arrays["arr_0"]
    assert images.shape == (5, 24, 48, 3) and images.std() > 1
    assert read_settings(file)["size"] == [24, 48]
    picture = np.asarray(Image.open(grid))[2:26, 2:50]
    assert np.abs(images[0].astype(int) - picture).max() > 1  # guided, the grid's default
    with pytest.raises(UserError, match=r"was begun with size \[24, 48\], now None"):
        sample.main([str(flow_run), "--steps", "1", "--num", "5", "--npz", str(file), "--labels", "balanced"])
    own = [str(flow_run), "--num", "5", "--steps", "1", "--npz"]
    assert sample.main([*own, str(tmp_path / "a.npz")]) == 0
    assert sample.main([*own, str(tmp_path / "b.npz"), "--size", "32x32"]) == 0
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert np.array_equal(a["arr_0"], b["arr_0"])


def test_positions_are_for_one_size(tmp_path):
    run = make_run(tmp_path / "run", position="sincos")
    with pytest.raises(
        UserError, match=r"--size is for networks without positions; GSPN-DiT-S/8 .* position 'sincos'"
    ):
        sample.main([str(run), "--size", "64x64"])
    assert sample.main([str(run), "--steps", "1", "--out", str(tmp_path / "grid.png")]) == 0


def test_steps_beyond_the_schedule_and_a_folder_that_is_no_run(ddpm_run, tmp_path):
    with pytest.raises(UserError, match="steps is 1001; expected an integer from 1 to 1000 for ddpm"):
        sample.main([str(ddpm_run), "--sampler", "ddpm", "--steps", "1001"])
    with pytest.raises(UserError, match="absent"):
        sample.main([str(tmp_path / "absent")])
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        sample.main([str(tmp_path)])
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"model.safetensors is a safetensors file; expected a run folder"):
        sample.main([str(file)])


def test_a_disk_too_small_is_refused_before_sampling(flow_run, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(UserError, match=r"no room for .*s.npz"):
        sample.main([str(flow_run), "--num", "300", "--npz", str(tmp_path / "s.npz"), "--steps", "1"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_write_what_one_does(flow_run, tmp_path):
    arguments = [flow_run, "--num", 300, "--steps", 1, "--batch-size", 16]
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    assert sample.main([*map(str, arguments), "--npz", str(one)]) == 0
    accelerate_launch("sample.py", *arguments, "--npz", two)
    with np.load(one) as a, np.load(two) as b:
        assert np.array_equal(a["labels"], b["labels"])
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"]).max() <= 1
    assert not list(tmp_path.glob("*.parts"))


def arrays_of(paths: Iterable[Path]) -> dict[str, np.ndarray]:
    """What npz files hold, joined in the files' order where they share a name."""
    found: dict[str, list[np.ndarray]] = {}
    for path in sorted(paths):
        with np.load(path) as arrays:
            for name in arrays.files:
                found.setdefault(name, []).append(arrays[name])
    return {name: np.concatenate(parts) for name, parts in found.items()}


@pytest.mark.slow
def test_latents_noise_and_labels_do_not_depend_on_processes_or_batch(flow_run, tmp_path):
    """In float32: 300 images, three shards, by one and by two processes, in batches of 1, 7 and 16."""
    arguments = [flow_run, "--num", 300, "--steps", 2, "--cfg-scale", 2]
    expected = None
    for launch, processes in ((run_alone, 1), (accelerate_launch, 2)):
        for size in (1, 7, 16):
            file = tmp_path / f"{processes}-{size}.npz"
            launch("tests/sampling/float_samples.py", *arguments, "--npz", file, "--batch-size", size)
            parts = Path(f"{file}.parts")
            noise = [arrays_of([path]) for path in sorted(parts.glob("noise-*"))]
            assert len(noise) == processes and sum(map(len, noise)) == 300
            noise = {key: value for share in noise for key, value in share.items()}
            found = arrays_of(parts.glob("0*.npz")) | noise
            expected = expected or found
            assert found.keys() == expected.keys()
            for key in found.keys() - {"arr_0"}:
                assert np.array_equal(found[key], expected[key]), key
            assert found["arr_0"].dtype == np.float32 and found["arr_0"].std() > 1
            np.testing.assert_allclose(found["arr_0"], expected["arr_0"], rtol=0, atol=1e-4)


def run_alone(program: str, *arguments: object) -> None:
    """Run a program on one process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, program, *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


def test_an_interrupt_keeps_the_shards_and_says_so(flow_run, tmp_path, monkeypatch):
    decode, calls = PixelAutoencoder.decode, iter(range(100))

    def interrupted(self, z):
        if next(calls) == 9:
            raise KeyboardInterrupt
        return decode(self, z)

    monkeypatch.setattr(PixelAutoencoder, "decode", interrupted)
    file = tmp_path / "s.npz"
    with pytest.raises(KeyboardInterrupt) as caught:
        sample.main([str(flow_run), "--num", "300", "--npz", str(file), "--steps", "1"])
    kept = f"128 of 300 images are kept in {file}.parts: the same command makes the others"
    assert caught.value.__notes__ == [kept]
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz.parts"]


def test_a_second_command_for_a_file_is_told_who_is_at_work(flow_run, tmp_path):
    command = [str(flow_run), "--num", "3", "--npz", str(tmp_path / "s.npz"), "--steps", "1"]
    who = r"s.npz is in use by process \d+ on \S+ since"
    with claimed_file(tmp_path / "s.npz"), pytest.raises(UserError, match=who):
        sample.main(command)
    assert sample.main(command) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"s.npz", "s.json"}
    with claimed_file(tmp_path / "s.npz"):  # a finished file needs no lock
        assert sample.main(command) == 0
