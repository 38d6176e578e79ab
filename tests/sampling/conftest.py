"""An untrained run whose pixels depend on class and noise, for the tests of sampling."""

from pathlib import Path

import pytest
import torch

from gspn_dit import create_model
from gspn_dit.config import Config, parse_config
from gspn_dit.training.ema import EMA
from gspn_dit.training.state import save_checkpoint

OF_THE_DATA = ("input_size", "in_channels", "num_classes")


def tiny_config(run_dir: Path, objective: str, model: dict, sample: dict) -> Config:
    return parse_config(
        {
            "run_dir": str(run_dir),
            "model": {"name": "GSPN-DiT-S/8", "width": 16, "depth": 1, **model},
            "diffusion": {"objective": objective},
            "data": {"kind": "mnist"},
            "train": {"steps": 1, "batch_size": 1},
            "sample": {"steps": 2, "cfg_scale": 2.0, "per_class": 2, **sample},
        }
    )


def make_run(folder: Path, objective: str = "flow", sample: dict | None = None, **overrides) -> Path:
    """A run folder with one checkpoint of random weights; the averaged ones differ from the last ones.

    `overrides` are settings of the model, `sample` keys of the config's part of that name.
    """
    chosen = {key: value for key, value in overrides.items() if key not in OF_THE_DATA}
    config = tiny_config(folder, objective, chosen, sample or {})
    torch.manual_seed(0)
    settings = {"input_size": 32, "in_channels": 1, "num_classes": 10, "width": 16, "depth": 1, **overrides}
    model = create_model("GSPN-DiT-S/8", learn_sigma=objective == "ddpm", **settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # the zero-initialised layers would hide class and noise
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    ema = EMA(model, 0.9)
    with torch.no_grad():
        next(model.parameters()).mul_(-1)
    problem = save_checkpoint(
        folder,
        config=config,
        model=model,
        optimizer=optimizer,
        ema=ema,
        state={"step": 1, "images_seen": 1, "model": model.config},
    )
    assert problem is None
    return folder


@pytest.fixture(scope="session")
def flow_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("flow") / "run")


@pytest.fixture(scope="session")
def ddpm_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("ddpm") / "run", "ddpm")
