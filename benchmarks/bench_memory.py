"""Peak memory of a training step and the time of a whole training, computed without a GPU and without a step done.

    python benchmarks/bench_memory.py configs/gspn_xl2.yaml configs/dit_xl2.yaml
    python benchmarks/bench_memory.py configs/gspn_dit_b1_dc.yaml --latent 32x8x8

The step runs on fake tensors, which have shapes but no data, under PyTorch's memory tracker: weights,
gradients, AdamW's moments and EMA in float32, activations as autocast to bf16 leaves them, under DDP.
The allocator's fragments and the device's own libraries come on top: 2 to 4 GB. The hours are those of eight H100 that
do the model's FLOPs, three forwards an image, at 40 % of their peak in bf16: computed, and no measurement.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

sys.path.insert(0, str(Path(__file__).parents[1]))
from gspn_dit.config import Config, load_config
from gspn_dit.diffusion import create_diffusion
from gspn_dit.models import basics, create_model
from gspn_dit.models.costs import model_costs

CONFIGS = Path(__file__).parents[1] / "configs"
PEAK, UTILISATION, GPUS = 989e12, 0.4, 8
LATENT = "4x32x32"
"""Channels, height and width of an autoencoder's latents at 256 px."""


def model_settings(config: Config, latent: tuple[int, int, int]) -> dict[str, Any]:
    """What `create_model` takes for latents of this shape."""
    learn_sigma = create_diffusion(config.diffusion.objective).learn_sigma
    settings = {key: value for key, value in vars(config.model).items() if value is not None}
    return settings | {"in_channels": latent[0], "input_size": latent[1], "learn_sigma": learn_sigma}


def hours_of_training(config: Config, latent: tuple[int, int, int]) -> float:
    """Hours on `GPUS` GPUs, by FLOPs; recomputed activations cost a forward more."""
    settings = model_settings(config, latent)
    forwards = 4 if settings.pop("checkpoint_activations", False) else 3
    flops = forwards * model_costs(**settings).flops * config.train.steps * config.train.batch_size
    return flops / (PEAK * UTILISATION * GPUS) / 3600


def peak_of_step(config: Config, latent: tuple[int, int, int]) -> dict[str, float]:
    """Parameters in millions and peak memory in GB of a step with `micro_batch` images in each forward."""
    batch = config.train.micro_batch or config.train.batch_size
    with FakeTensorMode():
        diffusion = create_diffusion(config.diffusion.objective)
        model = create_model(**model_settings(config, latent))
        average = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes the moments
        optimizer.zero_grad()
        x, noise = torch.zeros(2, batch, *latent)
        t, y = torch.zeros(batch), torch.zeros(batch, dtype=torch.int64)
        tracker = MemTracker()
        tracker.track_external(model, optimizer, *average)
        # The tracker's hooks are on every module, and would keep the GSPN module from its shorter ways.
        basics._has_any_global_hook = lambda: False
        with tracker:
            with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
                losses = diffusion.losses(model, x, t, y, noise)
            (losses["loss"].sum() / batch).backward()
            optimizer.step()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
        parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters_m": round(parameters / 1e6, 1), "peak_gb": round(peak["Total"] / 1e9, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", type=Path, help="default: every config of latents in configs/")
    parser.add_argument("--micro-batch", type=int, help="images of a forward, in place of the presets")
    parser.add_argument("--latent", metavar="CxHxW", default=LATENT, help="latents (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    latent = tuple(map(int, arguments.latent.split("x")))
    paths = arguments.configs or sorted(CONFIGS.glob("*2*.yaml"))
    rows = []
    print(
        f"{'config':<16} {'memory':<6} {'micro-batch':>11} {'recompute':>9} {'parameters':>10} {'peak':>9} "
        f"{'steps':>8} {'hours on 8 GPUs':>15}"
    )
    for path in paths:
        for preset in load_config(path, ["data.path=unused"]).memory_presets:
            config = load_config(path, ["data.path=unused", f"train.memory={preset}"])
            if arguments.micro_batch:
                train = dataclasses.replace(config.train, micro_batch=arguments.micro_batch)
                config = dataclasses.replace(config, train=train)
            row = {"config": path.stem, "memory": preset, "micro_batch": config.train.micro_batch}
            row |= {"recompute": config.model.checkpoint_activations, **peak_of_step(config, latent)}
            row |= {
                "steps": config.train.steps,
                "hours_on_8_gpus": round(hours_of_training(config, latent), 1),
            }
            rows.append(row)
            print(
                f"{path.stem:<16} {preset:<6} {row['micro_batch']:>11} {row['recompute']!s:>9} "
                f"{row['parameters_m']:>9.1f}M {row['peak_gb']:>6.1f} GB "
                f"{row['steps']:>8,} {row['hours_on_8_gpus']:>15.1f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
