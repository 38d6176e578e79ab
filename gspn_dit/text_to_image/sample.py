"""Draw large pictures of captions: python -m gspn_dit.text_to_image.sample RUN --prompt "..." --size 2048x2048"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from gspn_dit import errors
from gspn_dit.config import check_seed
from gspn_dit.errors import UserError
from gspn_dit.files import check_output_folder, claimed, home_folder, home_path, refuse_inputs
from gspn_dit.signals import noting

EPILOG = """\
example:
  python -m gspn_dit.text_to_image.sample runs/sd15_gspn --prompt "a red fox in snow" --size 2048x2048 --out fox

Each step's latents and pictures are kept in the folder of --out; the same command again does the steps that are
missing. RUN may be a teacher's folder or hub id too: then the UNet is as it is there, with attention.
"""


def parse_size(text: str) -> tuple[int, int]:
    """HxW in pixels."""
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    if not match or "0" in match.groups():
        raise argparse.ArgumentTypeError(f"{text}: expected HxW in pixels, such as 1024x1536")
    return int(match[1]), int(match[2])


def parse_strengths(text: str) -> list[float]:
    """Numbers in (0, 1], separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 1 for value in values):
        raise argparse.ArgumentTypeError(
            f"{text}: expected numbers above 0 and up to 1, such as 0.42,0.32,0.28"
        )
    return values


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.text_to_image.sample",
        description="Draw pictures of captions at any size, enlarging in steps.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", metavar="RUN", type=home_path, help="a distillation's run, or a pipeline's folder or id"
    )
    parser.add_argument("--prompt", nargs="+", required=True, help="a caption for each picture")
    parser.add_argument(
        "--negative", default="", help="what guidance leads away from (default: the empty caption)"
    )
    parser.add_argument(
        "--size", type=parse_size, metavar="HxW", help="pixels (default: the UNet's own size)"
    )
    parser.add_argument(
        "--base", type=int, help="side from which enlarging begins (default: the UNet's own size)"
    )
    parser.add_argument(
        "--strengths",
        type=parse_strengths,
        metavar="S,...",
        default=[0.42, 0.32, 0.32, 0.28],
        help="share of the noise that each enlargement gets back; the last repeats (default 0.42,0.32,0.32,0.28)",
    )
    parser.add_argument("--steps", type=int, default=50, help="steps of DDIM from pure noise (default 50)")
    parser.add_argument(
        "--guidance", type=float, default=7.5, help="guidance by the caption; 1 is none (default 7.5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="key of the noise (default 0)")
    parser.add_argument(
        "--out", type=home_folder, default=Path("pictures"), help="folder (default: pictures)"
    )
    arguments = parser.parse_args(argv)
    check_seed("--seed", arguments.seed)
    for option, good, expected in (
        ("steps", arguments.steps >= 1, "at least 1"),
        ("guidance", 1 <= arguments.guidance <= 3e38, "at least 1.0 (1.0 is no guidance)"),
        ("base", arguments.base is None or arguments.base >= 1, "at least 1"),
    ):
        if not good:
            raise UserError(f"--{option} {getattr(arguments, option)}: expected {expected}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, say what it takes, then draw what is missing; the exit status."""
    arguments = parse_arguments(argv)
    check_output_folder("--out", arguments.out)
    refuse_inputs("--out", arguments.out, [("RUN", arguments.run)])
    # Speed: a bad argument is rejected without waiting for torch and diffusers.
    import torch

    from gspn_dit.latents.autoencoder import hash_weights
    from gspn_dit.text_to_image.large_memory import needed
    from gspn_dit.text_to_image.student import load_distilled
    from gspn_dit.text_to_image.system import load_system
    from gspn_dit.text_to_image.upscaling import Request, draw_pictures, ladder, open_request

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Path(arguments.run)
    distilled = (run / "checkpoints").is_dir() or (run / "state.json").is_file()
    system = load_distilled(run, device) if distilled else load_system(arguments.run, device)
    height, width = arguments.size or (system.size, system.size)
    base = arguments.base or system.size
    if height % system.divisor or width % system.divisor:
        raise UserError(f"--size {height}x{width}: expected multiples of {system.divisor} for this UNet")
    most = system.scheduler.config.num_train_timesteps
    if arguments.steps > most:
        raise UserError(
            f"--steps {arguments.steps}: expected at most {most}, the noise levels of this teacher"
        )
    request = Request(
        prompts=arguments.prompt,
        negative=arguments.negative,
        sizes=ladder(height, width, base, system.divisor),
        strengths=arguments.strengths,
        steps=arguments.steps,
        guidance=arguments.guidance,
        seed=arguments.seed,
        weights=hash_weights(system.unet),
    )
    bf16 = device.type == "cuda"
    memory = needed(system, height, width, bf16=bf16)
    sizes = " -> ".join(f"{h}x{w}" for h, w in request.sizes)
    print(
        f"{len(request.prompts)} pictures, {sizes}; memory at the last size, computed: weights of the UNet "
        f"{memory['weights']:.2f} GB, with its activations {memory['unet']:.2f} GB, with the decoder's tiles and the "
        f"pixels {memory['decoder']:.2f} GB, on {device.type}",
        flush=True,
    )
    if bf16 and max(memory.values()) * 1e9 > torch.cuda.mem_get_info()[1]:
        print(f"that is more than this GPU has, {torch.cuda.mem_get_info()[1] / 1e9:.0f} GB", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with claimed(arguments.out), noting(lambda: "finished steps are kept: the same command does the rest"):
        open_request(arguments.out, request)
        precision = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        for path in draw_pictures(system, request, arguments.out, precision):
            print(path)
    return 0


if __name__ == "__main__":
    errors.run(main)
