"""Distil a text-to-image UNet: python -m gspn_dit.text_to_image.distil CONFIG.yaml [key.path=value ...]"""

import argparse
from collections.abc import Sequence

from gspn_dit import errors
from gspn_dit.files import home_path
from gspn_dit.schema import help_text
from gspn_dit.text_to_image.distil_config import DistilConfig, load_distil_config

EPILOG = """\
example:
  python -m gspn_dit.text_to_image.distil configs/distil/sd15.yaml data.path=/data/pictures

The same command again continues from the newest complete checkpoint in run_dir.

keys of CONFIG.yaml, each of which key.path=value overrides:
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.text_to_image.distil",
        description="Replace the self-attention of a UNet of diffusers by the line scan and distil it, on one device.",
        epilog=EPILOG + help_text(DistilConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", metavar="CONFIG.yaml", type=home_path, help="settings of the run; see configs/distil/"
    )
    parser.add_argument(
        "overrides", metavar="key.path=value", nargs="*", help="replaces a setting of the file"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, then distil; the exit status."""
    arguments = parse_arguments(argv)
    config = load_distil_config(arguments.config, arguments.overrides)
    # Speed: a bad config is rejected without waiting for torch.
    from gspn_dit.text_to_image.distiller import distil

    return distil(config)


if __name__ == "__main__":
    errors.run(main)
