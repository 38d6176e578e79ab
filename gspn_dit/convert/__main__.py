"""Make a release of published weights: python -m gspn_dit.convert SOURCE FOLDER"""

import argparse
from collections.abc import Sequence

from gspn_dit import errors
from gspn_dit.errors import UserError
from gspn_dit.files import home_path

EPILOG = """\
SOURCE is a .pt file of DiT's or SiT's (the weights themselves, or a checkpoint with "ema"), a folder in diffusers'
DiT layout (with transformer/, or transformer/ itself), or either on the hub: ORG/NAME, or ORG/NAME/FILE.pt.

examples:
  python -m gspn_dit.convert DiT-XL-2-256x256.pt released/dit_xl2
  python -m gspn_dit.convert facebook/DiT-XL-2-256 released/dit_xl2
  python -m gspn_dit.convert nyu-visionx/SiT-collections/SiT-XL-2-256.pt released/sit_xl2

The weights' licence is their authors'; the card says so.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, then convert; the exit status."""
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.convert",
        description="Make a release, as of a run, of published DiT or SiT weights.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=home_path, help="file, folder or hub id")
    parser.add_argument("folder", metavar="FOLDER", type=home_path, help="a new folder")
    parser.add_argument(
        "--kind", choices=("dit", "sit"), help="whose .pt (default: as the file or its name says)"
    )
    parser.add_argument("--heads", metavar="N", type=int, help="attention heads, of a width that DiT has not")
    parser.add_argument(
        "--vae", metavar="HUB_ID", help="decoder (default: as SOURCE says, or stabilityai/sd-vae-ft-ema)"
    )
    arguments = parser.parse_args(argv)
    if arguments.heads is not None and arguments.heads < 1:
        raise UserError(f"--heads {arguments.heads}: expected at least 1")
    # Speed: `--help` and a rejected argument answer without waiting for torch.
    from gspn_dit.convert.release import convert

    convert(
        arguments.source,
        arguments.folder,
        kind=arguments.kind,
        heads=arguments.heads,
        vae=arguments.vae,
        report=lambda line: print(line, flush=True),
    )
    return 0


if __name__ == "__main__":
    errors.run(main)
