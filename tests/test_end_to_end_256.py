"""Photographs at 256x256, from an image folder to scores, through the command lines and on two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import eval_fid
import sample
import train
from gspn_dit import hub
from gspn_dit.checkpoint import latest_checkpoint
from gspn_dit.data.images import read_image
from gspn_dit.errors import UserError
from gspn_dit.latents.dataset import LatentDataset
from tests.latents.conftest import save_vae
from tests.launch import accelerate_launch
from tests.training.run_state import log_rows

CROPS = 8
"""Crops of each photograph."""
SAMPLES = 4


def crop_photographs(root: Path) -> None:
    """sklearn's two photographs as an image folder of two classes, each of overlapping crops."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    for name in ("china", "flower"):
        photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))  # 640x427
        (root / name).mkdir(parents=True)
        for number in range(CROPS):
            side = int(rng.integers(250, 420))
            left, top = rng.integers(0, photograph.width - side), rng.integers(0, photograph.height - side)
            box = (int(left), int(top), int(left) + side, int(top) + side)
            photograph.crop(box).save(root / name / f"{number}.JPEG", quality=95)


def write_config(path: Path, run_dir: Path, latents: Path) -> None:
    """A narrow GSPN-DiT on 32x32x4 latents with DiT's objective."""
    config = {
        "run_dir": str(run_dir),
        "model": {"name": "GSPN-DiT-S/2", "width": 32, "depth": 2},
        "diffusion": {"objective": "ddpm"},
        "data": {"kind": "latents", "path": str(latents)},
        "train": {
            "steps": 20,
            "batch_size": 8,
            "learning_rate": 3e-3,
            "log_every": 1,
            "checkpoint_every": 10,
            "tensorboard": False,
        },
        "sample": {"steps": 2, "per_class": 2},
    }
    path.write_text(yaml.safe_dump(config))


def save_inception(folder: Path) -> Path:
    """Random weights for torch-fidelity's Inception, in a file."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: dict) -> None:
            """Keep the initial weights."""

    path = folder / "inception.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    network = Untrained("inception", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_from_photographs_to_scores(tmp_path, capsys):
    images, latents, run = tmp_path / "images", tmp_path / "latents", tmp_path / "run"
    config, samples, grid = tmp_path / "config.yaml", tmp_path / "samples.npz", tmp_path / "grid.png"
    crop_photographs(images)
    vae = save_vae(tmp_path / "vae")

    printed = accelerate_launch(
        "encode_latents.py", images, latents, "--vae", vae, "--batch-size", 4, "--workers", 0
    )
    assert f"{2 * CROPS} images of 2 classes as latents of 4x32x32" in printed and "on 2 processes" in printed
    dataset = LatentDataset(latents)
    assert dataset.class_names == ["china", "flower"] and len(dataset) == 2 * CROPS

    write_config(config, run, latents)
    assert "2 x " in accelerate_launch("train.py", config, "train.steps=10")
    assert latest_checkpoint(run).name == "step_00000010"
    assert train.main([str(config)]) == 0
    assert latest_checkpoint(run).name == "step_00000020"
    rows = log_rows(run)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert np.mean([row["mse"] for row in rows[-5:]]) < 0.97 * rows[0]["mse"]

    accelerate_launch(
        "sample.py", run, "--num", SAMPLES, "--npz", samples, "--steps", 2, "--labels", "balanced"
    )
    with np.load(samples) as file:
        assert file["arr_0"].shape == (SAMPLES, 256, 256, 3) and file["arr_0"].dtype == np.uint8
        assert sorted(file["labels"].tolist()) == [0, 0, 1, 1]

    weights, reference, scores = (
        save_inception(tmp_path),
        tmp_path / "reference.npz",
        tmp_path / "scores.json",
    )
    np.savez(reference, arr_0=np.stack([read_image(path, 256) for path in sorted(images.rglob("*.JPEG"))]))
    score = [samples, "--reference", reference, "--inception-weights", weights, "--json", scores]
    assert eval_fid.main([str(argument) for argument in score]) == 0
    result = json.loads(scores.read_text())
    assert all(np.isfinite(result[name]) for name in ("fid", "sfid", "is", "precision", "recall", "kid"))
    assert result["fid"] > 0 and not result["comparable"]
    assert any("weights" in reason for reason in result["reasons"])

    drawn = ["--classes", "0,1", "--per-class", "2", "--steps", "2", "--out"]
    assert sample.main([str(run), *drawn, str(grid)]) == 0
    assert min(Image.open(grid).size) >= 512

    release, again = tmp_path / "release", tmp_path / "again.png"
    capsys.readouterr()
    assert hub.main([str(run), str(release)]) == 0
    assert "samples of it need --vae" in capsys.readouterr().out
    assert str(vae) not in (release / "config.yaml").read_text()
    assert "FOLDER_OR_HUB_ID --vae HUB_ID_OR_FOLDER --out" in (release / "README.md").read_text()
    with pytest.raises(UserError, match="give --vae"):
        sample.main([str(release), *drawn, str(again)])
    assert sample.main([str(release), *drawn, str(again), "--vae", str(vae)]) == 0
    assert again.read_bytes() == grid.read_bytes()
