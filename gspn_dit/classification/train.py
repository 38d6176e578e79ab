"""Train a classifier: python -m gspn_dit.classification.train CONFIG.yaml [key.path=value ...]"""

import argparse
from collections.abc import Sequence

from gspn_dit import errors
from gspn_dit.classification.recipe import ClassifierConfig, load_recipe
from gspn_dit.files import home_path
from gspn_dit.schema import help_text

EPILOG = """\
example:
  python -m gspn_dit.classification.train configs/classification/cifar10_cpu.yaml train.seed=1
  accelerate launch --num_processes 8 -m gspn_dit.classification.train \\
      configs/classification/gspn_t.yaml data.path=/data/imagenet

The same command again continues from the newest complete checkpoint in run_dir.

keys of CONFIG.yaml, each of which key.path=value overrides:
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.classification.train",
        description="Train a classifier with GSPN's backbone on one or many processes.",
        epilog=EPILOG + help_text(ClassifierConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", metavar="CONFIG.yaml", type=home_path, help="settings; configs/classification/ has some"
    )
    parser.add_argument(
        "overrides", metavar="key.path=value", nargs="*", help="replaces a setting of the file"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, then train; the exit status."""
    arguments = parse_arguments(argv)
    config = load_recipe(arguments.config, arguments.overrides)
    # Speed: a bad config is rejected without waiting for torch.
    from gspn_dit.classification.classifier import train_classifier

    return train_classifier(config)


if __name__ == "__main__":
    errors.run(main)
