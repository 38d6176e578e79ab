"""Train a model: python train.py CONFIG.yaml [key.path=value ...]"""

import argparse
from collections.abc import Sequence

from gspn_dit import errors
from gspn_dit.config import Config, load_config
from gspn_dit.files import home_path
from gspn_dit.schema import help_text

EPILOG = """\
example:
  python train.py configs/demo.yaml run_dir=runs/demo train.steps=200 train.seed=1
  accelerate launch --num_processes 8 train.py configs/gspn_b2.yaml data.path=/data/imagenet256

The same command again continues from the newest complete checkpoint in run_dir.

keys of CONFIG.yaml, each of which key.path=value overrides:
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="train.py",
        description="Train a class-conditional diffusion model on one or many processes.",
        epilog=EPILOG + help_text(Config),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", metavar="CONFIG.yaml", type=home_path, help="settings of the run; configs/ has ready ones"
    )
    parser.add_argument(
        "overrides", metavar="key.path=value", nargs="*", help="replaces a setting of the file"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, then train; the exit status."""
    arguments = parse_arguments(argv)
    config = load_config(arguments.config, arguments.overrides)
    # Speed: a bad config is rejected without waiting for torch.
    from gspn_dit.training.trainer import train

    return train(config)


if __name__ == "__main__":
    errors.run(main)
