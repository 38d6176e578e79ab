"""A text-to-image UNet with attention against the same with the scan: self-attention's layers, and the whole.

    python benchmarks/text_to_image.py [--layout sd|sdxl] [--sizes 256 512 1024] [--out benchmarks/results]

Random weights at the published widths. Both UNets share all weights but those of self-attention; a pair of forwards
is timed one after the other in one process, and figures are medians of pairs. Beyond the sizes measured, times follow
the growth between the two largest of them, and are marked so. Memory is computed (see
gspn_dit/text_to_image/large_memory.py). Writes text_to_image_LAYOUT_DEVICE.json and .png.
"""

import argparse
import copy
import datetime
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import diffusers  # noqa: E402
import torch  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from tqdm import tqdm  # noqa: E402

from experiments.train_run import cpu_name  # noqa: E402
from gspn_dit.text_to_image import replace_self_attention  # noqa: E402
from gspn_dit.text_to_image.large_memory import GB, unet_peak  # noqa: E402
from gspn_dit.text_to_image.replacement import scan_modules  # noqa: E402

SIZES = (1024, 2048, 4096, 8192, 16384)
"""Sides of a picture in pixels."""
PUBLISHED = {16384: 84, 4096: 32}
"""Speed-up on SDXL in the paper, by the picture's side."""
FACTOR = 8
"""Pixels of a picture's side over a latent's."""
STEP = 64
"""Sides must be multiples of it: FACTOR, and three halvings."""
SD = {"sample_size": 64, "cross_attention_dim": 768}
SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
LAYOUTS = {"sd": SD, "sdxl": SDXL}
KINDS = ("attention", "scan")


def make_pair(config: dict[str, Any], device: str, dtype: torch.dtype) -> dict[str, UNet2DConditionModel]:
    """The UNet with attention and with the scan, which share what is not self-attention's."""
    with torch.device(device):
        attention = UNet2DConditionModel(**config).eval().requires_grad_(False)
    if dtype != torch.float32:
        attention.to(dtype)
    shared = {id(tensor): tensor for tensor in (*attention.parameters(), *attention.buffers())}
    return {"attention": attention, "scan": replace_self_attention(copy.deepcopy(attention, shared))}


class Stopwatch:
    """Seconds that some modules take of a network's forward, and the whole; on a GPU after what was asked before."""

    def __init__(self, unet: UNet2DConditionModel, names: list[str], device: str) -> None:
        self.unet, self.device, self.parts, self.begun = unet, device, [], 0.0
        for name in names:
            module = unet.get_submodule(name)
            module.register_forward_pre_hook(lambda module, args: self.begin())
            module.register_forward_hook(
                lambda module, args, output: self.parts.append(self.now() - self.begun)
            )

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin(self) -> None:
        self.begun = self.now()

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.parts.clear()
        start = self.now()
        self.unet(*args, **kwargs, return_dict=False)
        return {"unet": self.now() - start, "layers": sum(self.parts)}


def inputs(config: Any, size: int, device: str, dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    """What a UNet takes for a picture of size x size pixels, batch 1."""
    side = size // FACTOR
    draw = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)  # noqa: E731
    kwargs: dict[str, Any] = {}
    if config["addition_embed_type"] == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        kwargs["added_cond_kwargs"] = {"text_embeds": draw(1, pooled), "time_ids": draw(1, 6)}
    arguments = (draw(1, config["in_channels"], side, side), torch.full((1,), 500, device=device))
    return (*arguments, draw(1, 77, config["cross_attention_dim"])), kwargs


def measure(
    watches: dict[str, Stopwatch],
    sizes: list[int],
    pairs: int,
    seconds: float,
    device: str,
    dtype: torch.dtype,
) -> Iterator[dict[str, Any]]:
    """A row for each size, from the smallest on: medians of pairs; no further pair, nor size, once time is over."""
    start = time.perf_counter()
    last = 0.0
    for size in sizes:
        spent = time.perf_counter() - start
        if last and spent + 6 * last > seconds:  # four times the pixels take four times as long at the least
            tqdm.write(f"{size} px left out: {seconds:.0f} s would not do")
            return
        args, kwargs = inputs(watches["attention"].unet.config, size, device, dtype)
        rows: list[dict[str, dict[str, float]]] = []
        for number in range(pairs + 1):
            begun = time.perf_counter()
            rows.append({kind: watches[kind](*args, **kwargs) for kind in KINDS})
            last = time.perf_counter() - begun
            if number and time.perf_counter() - start + last > seconds:
                break
        kept = rows[1:] or rows  # the first pair warms up
        yield {
            "size": size,
            "pairs": len(kept),
            **{
                kind: {
                    what: statistics.median(row[kind][what] for row in kept) for what in ("unet", "layers")
                }
                for kind in KINDS
            },
            "speed_up": {
                what: statistics.median(row["attention"][what] / row["scan"][what] for row in kept)
                for what in ("unet", "layers")
            },
        }


def extrapolate(rows: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rows for larger sizes: of either kind, the layers and the rest of the UNet each by their own measured growth."""
    if len(rows) < 2:
        return []
    low, high = rows[-2:]
    step = math.log(high["size"] ** 2 / low["size"] ** 2)
    found = []
    for size in sizes:
        if size <= high["size"]:
            continue
        row: dict[str, Any] = {"size": size, "extrapolated": True}
        for kind in KINDS:
            parts = {}
            for name, of in (
                ("layers", lambda r, kind=kind: r[kind]["layers"]),
                ("rest", lambda r, kind=kind: r[kind]["unet"] - r[kind]["layers"]),
            ):
                power = math.log(of(high) / of(low)) / step  # of the number of pixels
                parts[name], parts[f"{name}_power"] = of(high) * (size / high["size"]) ** (2 * power), power
            row[kind] = {"layers": parts["layers"], "unet": parts["layers"] + parts["rest"]}
            row[f"{kind}_powers"] = {name: parts[f"{name}_power"] for name in ("layers", "rest")}
        row["speed_up"] = {what: row["attention"][what] / row["scan"][what] for what in ("unet", "layers")}
        found.append(row)
    return found


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Seconds over the side of the picture; hollow where they are extrapolated."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for color, kind in zip(("C1", "C0"), KINDS, strict=True):
        for style, what, label in (("-", "unet", "whole UNet"), (":", "layers", "self-attention layers")):
            axes.plot(
                [row["size"] for row in rows],
                [row[kind][what] for row in rows],
                style,
                color=color,
                label=f"{kind}, {label}",
            )
            for row in rows:
                fill = "none" if row.get("extrapolated") else color
                axes.plot(row["size"], row[kind][what], "o", color=color, markerfacecolor=fill)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="side of the picture, pixels",
        ylabel="seconds a forward",
        title=title,
    )
    axes.set_xticks([row["size"] for row in rows], [str(row["size"]) for row in rows])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(title="hollow: extrapolated")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="sd", help="published widths (default sd: SD 1.5)"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 512, 1024], help="sides in pixels to measure"
    )
    parser.add_argument(
        "--pairs", type=int, default=5, help="pairs of forwards at each size, at most (default 5)"
    )
    parser.add_argument("--seconds", type=float, default=480, help="time for all of it (default 480)")
    parser.add_argument("--segment", type=int, default=4, help="lines of a scan's segment (default 4)")
    parser.add_argument(
        "--narrow", type=int, default=1, help="divides all widths, to try the script (default 1)"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder (default: results)"
    )
    arguments = parser.parse_args()
    if any(size < 1 or size % STEP for size in arguments.sizes):
        parser.error(f"--sizes: multiples of {STEP}, which is what the UNet's levels halve evenly")
    if arguments.pairs < 1:
        parser.error("--pairs: at least 1")
    if arguments.narrow not in (1, 2, 5, 10):
        parser.error("--narrow: 1, 2, 5 or 10, by which all widths stay multiples of the norms' 32 groups")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    config = dict(LAYOUTS[arguments.layout])
    if arguments.narrow > 1:
        widths = config.get("block_out_channels", (320, 640, 1280, 1280))
        config["block_out_channels"] = tuple(width // arguments.narrow for width in widths)
    pair = make_pair(config, device, dtype)
    names = list(scan_modules(pair["scan"]))
    for module in scan_modules(pair["scan"]).values():
        module.segment = arguments.segment
    watches = {kind: Stopwatch(unet, names, device) for kind, unet in pair.items()}
    rows = []
    with tqdm(total=len(arguments.sizes), desc="sizes", unit="size") as bar:
        for row in measure(
            watches, sorted(arguments.sizes), arguments.pairs, arguments.seconds, device, dtype
        ):
            rows.append(row)
            bar.update()
    rows += extrapolate(rows, SIZES)
    if not arguments.no_memory:
        for row in tqdm(rows, desc="memory", unit="size"):
            side = row["size"] // FACTOR
            row["peak_gb"] = {
                kind: unet_peak(type(unet), unet.config, side, side, bf16=device == "cuda")["peak"] / GB
                for kind, unet in pair.items()
            }
    for row in rows:
        if arguments.layout == "sdxl":
            row["published_speed_up"] = PUBLISHED.get(row["size"])
        mark = "extrapolated" if row.get("extrapolated") else f"median of {row['pairs']}"
        print(
            f"{row['size']:>6} px  layers {row['attention']['layers']:.3g} / {row['scan']['layers']:.3g} s "
            f"({row['speed_up']['layers']:.2f}x)  UNet {row['attention']['unet']:.3g} / {row['scan']['unet']:.3g} s "
            f"({row['speed_up']['unet']:.2f}x)  {mark}  {row.get('peak_gb', '')}"
        )
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{cpu_name()}, {torch.get_num_threads()} threads"
    )
    about = {
        "layout": arguments.layout,
        "config": config,
        "segment": arguments.segment,
        "device": name,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": datetime.date.today().isoformat(),
        "published": {"system": "SDXL, GSPN of arXiv 2501.12381", "speed_up": PUBLISHED},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"text_to_image_{arguments.layout}_{device}"
    stem.with_suffix(".json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    draw(rows, stem.with_suffix(".png"), f"{arguments.layout} UNet, batch 1, {about['dtype']}")
    print(f"wrote {stem}.json and .png")


if __name__ == "__main__":
    main()
