"""Names that are no clean text, in messages, lists, manifests, charts and configs."""

import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

import encode_latents
import sample
import train
from gspn_dit import errors
from gspn_dit.config import load_config, save_config
from gspn_dit.evaluation.chart import draw
from gspn_dit.evaluation.leaderboard import COLUMNS, Row
from gspn_dit.latents.dataset import LatentDataset
from gspn_dit.names import canonical, forgive, printable
from tests.latents.conftest import picture, vae_folder  # noqa: F401 (a fixture)

ODD = os.fsdecode(b"Mu\xf1oz \x1b[31m\n\tq")
"""Latin-1, a terminal's escape, a line's end and a tab."""
SHOWN = r"Mu\xf1oz \x1b[31m\n\tq"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name $x_1$ ñ 日本 🙂", "plain name $x_1$ ñ 日本 🙂"),
        (ODD, SHOWN),
        ("Mu\udcc3\udcb1oz", "Muñoz"),  # UTF-8 as the C locale decodes it
        ("\x7f\x85\u2028\ud800", r"\x7f\x85\u2028\ud800"),
        (Path("a/b"), "a/b"),
    ],
)
def test_names_are_shown_on_one_line(name, shown):
    assert printable(name) == shown
    printable(name).encode()


def test_a_name_is_the_same_in_every_locale():
    name = "Muñoz \udcff".encode("utf-8", "surrogateescape")
    assert canonical(name.decode("ascii", "surrogateescape")) == canonical(
        name.decode("utf-8", "surrogateescape")
    )
    assert canonical("\ud800") == "\ud800"


@pytest.fixture(params=["ascii", "utf-8"])
def strict_streams(request, monkeypatch):
    """Call it for stdout and stderr that refuse what their encoding lacks; it returns what gives their text."""

    def begin():
        written = io.BytesIO()
        for name in ("stdout", "stderr"):
            stream = io.TextIOWrapper(written, encoding=request.param, errors="strict", write_through=True)
            monkeypatch.setattr(sys, name, stream)
        return lambda: written.getvalue().decode(request.param)

    return begin  # within the test: pytest changes the streams itself before it


def status_of(main, *argv) -> int:
    with pytest.raises(SystemExit) as caught:
        errors.run(lambda: main(list(map(str, argv))))
    return caught.value.code


def test_streams_take_any_name(strict_streams):
    streams = strict_streams()
    forgive()
    print(os.fsdecode(b"\xf1"), "ñ")
    assert streams() in ("\\xf1 \\xf1\n", "\\xf1 ñ\n")


def test_errors_stay_one_line(strict_streams):
    streams = strict_streams()

    def no_such_file(argv):
        raise OSError(errno.ENOENT, "No such file", ODD)

    assert status_of(no_such_file) == 2
    assert status_of(train.main, ODD) == 2
    first, second = streams().splitlines()
    assert first == f"error: cannot use {SHOWN}: No such file"
    assert second == f"error: cannot read config {SHOWN}: No such file or directory; see configs/"


def test_images_and_classes_of_any_name_are_encoded(strict_streams, vae_folder, tmp_path):  # noqa: F811
    streams = strict_streams()
    folder = tmp_path / ODD / f"class {ODD}"
    folder.mkdir(parents=True)
    picture(0).save(folder / "good.png")
    (folder / f"{ODD}.png").write_bytes(b"broken")
    vae = shutil.copytree(vae_folder, tmp_path / f"vae {ODD}")
    out = tmp_path / f"out {ODD}"
    options = ["--image-size", "32", "--workers", "0", "--vae", vae]
    assert status_of(encode_latents.main, folder.parent, out, *options) == 0
    assert f"  class {SHOWN}/{SHOWN}.png: " in streams()
    (line,) = (out / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert line.split("\t")[0] == f"class {SHOWN}/{SHOWN}.png"
    paths = json.loads((out / "images.json").read_text(encoding="ascii"))
    assert sorted(paths) == sorted([f"class {ODD}/good.png", f"class {ODD}/{ODD}.png"])
    assert LatentDataset(out).class_names == [f"class {ODD}"]


@pytest.mark.parametrize("strict_streams", ["ascii"], indirect=True)
def test_a_run_of_any_name_trains_and_samples(strict_streams, tiny_yaml, tmp_path):
    streams = strict_streams()
    run = tmp_path / f"run {ODD} $x_"
    assert status_of(train.main, tiny_yaml, f"run_dir={run}", "train.steps=1", "train.tensorboard=true") == 0
    assert (run / "loss.png").exists() and (run / "samples" / "final.png").exists()
    assert list((run / "tensorboard").iterdir())
    assert status_of(train.main, tiny_yaml, f"run_dir={run}", "train.steps=2") == 0
    assert status_of(sample.main, run, "--out", tmp_path / f"{ODD}.png") == 0
    assert status_of(sample.main, run, "--num", "2", "--npz", tmp_path / f"{ODD}.npz") == 0
    assert Image.open(tmp_path / f"{ODD}.png").format == "PNG"
    assert streams().splitlines()[-1] == f"samples: {printable(tmp_path)}/{SHOWN}.npz"


def test_a_config_keeps_any_name(tiny_yaml, tmp_path):
    config = load_config(tiny_yaml, [f"run_dir={ODD}", f"train.init_from={ODD}"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text(encoding="ascii"))["run_dir"] == ODD


def test_a_chart_names_models_as_they_are_written(tmp_path):
    cells = dict.fromkeys(COLUMNS, "") | {
        "model": "run $x_ {",
        "fid": "20",
        "params_m": "100",
        "guidance": "none",
    }
    draw([Row(cells, True, "")], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").exists()
