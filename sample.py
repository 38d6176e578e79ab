"""Sample from a trained run: python sample.py RUN_OR_CHECKPOINT [options]"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from gspn_dit import errors
from gspn_dit.config import check_seed
from gspn_dit.errors import UserError
from gspn_dit.files import check_output, home_path, refuse_inputs
from gspn_dit.names import printable
from gspn_dit.sampling.intervals import INTERVALS, help_text, parse_interval

EXAMPLES = f"""\
published intervals, by their name for --cfg-interval:
{help_text()}

examples:
  python sample.py runs/demo --classes 0,3,7 --per-class 8 --cfg-scale 2.0 --out grid.png
  python sample.py runs/gspn_b2 --size 256x384 --classes 207 --out wide.png
  python sample.py runs/gspn_b2 --cfg-scale 2.5 --cfg-interval dit-xl2
  python sample.py runs/gspn_b2 --guide runs/gspn_s2_short --guide-scale 2.1
  accelerate launch --num_processes 8 sample.py runs/gspn_b2 --num 50000 --npz samples.npz --batch-size 64

A grid has a row for each class. A sample file is ADM's: `arr_0` (N, H, W, 3) uint8, and `labels`; what
decides its images is stored beside it as samples.json. The same command again continues an interrupted one.
Image i of a size depends on the seed and on i alone, not on the batch size or the number of processes.
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="sample.py",
        description="Sample images from a trained run, as a grid or as a file for scores.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", metavar="RUN_OR_CHECKPOINT", type=home_path, help="a folder that train.py made, or a hub id"
    )
    parser.add_argument("--classes", metavar="A,B,...", help="rows of the grid (default: ten, evenly spaced)")
    parser.add_argument(
        "--per-class", metavar="N", type=int, help="columns of the grid (default: the run's own)"
    )
    parser.add_argument("--out", metavar="PNG", type=home_path, help="the grid's file (default: grid.png)")
    parser.add_argument("--num", metavar="N", type=int, help="write N samples to --npz, in place of a grid")
    parser.add_argument("--npz", metavar="FILE", type=home_path, help="the sample file that --num fills")
    parser.add_argument(
        "--labels",
        choices=("random", "balanced"),
        help="labels of a sample file: uniform and independent, or round the classes (default: random)",
    )
    parser.add_argument(
        "--sampler", metavar="NAME", help="ddpm, ddim, dpm-solver++; euler, heun (default: the run's own)"
    )
    parser.add_argument("--steps", metavar="N", type=int, help="sampling steps (default: the run's own)")
    parser.add_argument(
        "--cfg-scale",
        metavar="W",
        type=float,
        help="guidance, 1.0 is none (default: the run's own for a grid, 1.0 for a sample file)",
    )
    parser.add_argument(
        "--cfg-interval",
        metavar="LOW,HIGH|NAME",
        help=f"--cfg-scale only for t between, or where {', '.join(INTERVALS)} was (default: everywhere)",
    )
    parser.add_argument(
        "--internal-guidance",
        metavar="W",
        type=float,
        help="guidance by the network's auxiliary head, 1.0 is none (default: as for --cfg-scale)",
    )
    parser.add_argument(
        "--guide",
        metavar="OTHER_RUN",
        type=home_path,
        help="autoguidance by a worse run on the same data; other guidance is then off unless given",
    )
    parser.add_argument(
        "--guide-scale",
        metavar="W",
        type=float,
        help="scale of --guide, 1.0 is none (default: 2.1, as EDM2-S)",
    )
    parser.add_argument(
        "--size",
        metavar="HxW",
        help="pixels of an image, for networks without positions (default: the size trained on)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="key of every draw (default: 0)")
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=16, help="images at once (default: 16)"
    )
    parser.add_argument(
        "--vae", metavar="HUB_ID_OR_FOLDER", type=home_path, help="decoder (default: the run's own)"
    )
    parser.add_argument("--no-ema", action="store_true", help="the last weights, not their average")
    return parser.parse_args(argv)


def numbers(text: str | None, option: str, kind: type) -> list | None:
    """The numbers of a list such as 0,3,7."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: expected numbers with commas between, such as 0,3,7") from None


def image_size(text: str | None) -> tuple[int, int] | None:
    """Height and width of a size such as 256x384."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--size {text}: expected height and width in pixels, such as 256x384")
    return int(parts[0]), int(parts[1])


def check(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for what is wrong whatever the run is."""
    for option, value in (
        ("--steps", arguments.steps),
        ("--num", arguments.num),
        ("--per-class", arguments.per_class),
        ("--batch-size", arguments.batch_size),
    ):
        if value is not None and value < 1:
            raise UserError(f"{option} {value}: expected at least 1")
    check_seed("--seed", arguments.seed)
    for name in ("cfg_scale", "internal_guidance", "guide_scale"):
        scale = getattr(arguments, name)
        if scale is not None and not 1 <= scale <= 3e38:  # as check_guidance, but before anything is loaded
            raise UserError(f"--{name.replace('_', '-')} {scale:g}: expected 1.0 (no guidance) or more")
    if arguments.guide_scale is not None and arguments.guide is None:
        raise UserError("--guide-scale is for --guide OTHER_RUN: give both, or leave it out")
    if (arguments.num is None) != (arguments.npz is None):
        raise UserError("--num and --npz belong together: give both for a sample file, neither for a grid")
    for_file, for_grid = ("labels",), ("classes", "per_class", "out")
    for name in for_grid if arguments.num else for_file:
        if getattr(arguments, name) is not None:
            needs = "a grid, without --num" if arguments.num else "a sample file, with --num and --npz"
            raise UserError(f"--{name.replace('_', '-')} is for {needs}")
    if arguments.npz and Path(arguments.npz).suffix != ".npz":
        raise UserError(f"--npz {arguments.npz}: expected a name that ends in .npz")
    if arguments.out and Path(arguments.out).suffix.lower() != ".png":
        raise UserError(f"--out {arguments.out}: expected a name that ends in .png")


def refuse_outputs(arguments: argparse.Namespace, inputs: list[tuple[str, Path]]) -> None:
    """Raise `UserError` where something that is read would be written over."""
    if arguments.npz:
        path = Path(arguments.npz)
        for output in (path, path.with_suffix(".json"), Path(f"{path}.parts")):
            refuse_inputs("--npz", output, inputs)
    else:
        refuse_inputs("--out", arguments.out or "grid.png", inputs)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, then sample; the exit status."""
    arguments = parse_arguments(argv)
    check(arguments)
    classes = numbers(arguments.classes, "--classes", int)
    interval = parse_interval(arguments.cfg_interval)
    # Only now: torch takes seconds to load.
    # Speed: `--help` and a rejected argument answer without waiting for torch.
    from gspn_dit.processes import connect
    from gspn_dit.sampling.grids import grid_classes
    from gspn_dit.sampling.request import Request, sample_file, sample_grid

    unasked = 1.0 if arguments.num else None
    cfg_scale, internal = arguments.cfg_scale, arguments.internal_guidance
    resolved = Request(
        run=arguments.run,
        ema=not arguments.no_ema,
        sampler=arguments.sampler,
        steps=arguments.steps,
        cfg_scale=unasked if cfg_scale is None else cfg_scale,
        cfg_interval=interval,
        internal_guidance=unasked if internal is None else internal,
        guide=arguments.guide,
        guide_scale=arguments.guide_scale,
        seed=arguments.seed,
        size=image_size(arguments.size),
        vae=arguments.vae,
        batch_size=arguments.batch_size,
    ).resolve()
    rows = classes or grid_classes(resolved.config, resolved.num_classes)
    resolved.check_classes(rows)
    refuse_outputs(arguments, resolved.inputs())
    check_output(*(("--npz", arguments.npz) if arguments.num else ("--out", arguments.out or "grid.png")))
    if arguments.num:
        accelerator = connect()
        settings = sample_file(
            resolved, arguments.num, arguments.labels or "random", Path(arguments.npz), accelerator
        )
        accelerator.print("\n".join(f"{key}: {printable(value)}" for key, value in settings.items()))
        accelerator.print(f"samples: {printable(arguments.npz)}")
        accelerator.end_training()
        return 0
    out = Path(arguments.out or "grid.png")
    sample_grid(
        resolved, rows, arguments.per_class or resolved.config.sample.per_class, out, connect().device
    )
    request = resolved.request
    guidance = f"cfg-scale {request.cfg_scale:g}"
    if request.internal_guidance != 1:
        guidance += f", internal-guidance {request.internal_guidance:g}"
    if request.guide is not None:
        guidance = f"guide-scale {request.guide_scale:g} of {printable(request.guide)}"
    print(f"{request.sampler}, {request.steps} steps, {guidance}, seed {request.seed}: {printable(out)}")
    return 0


if __name__ == "__main__":
    errors.run(main)
