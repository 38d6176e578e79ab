"""CIFAR-10 as an image folder: python -m gspn_dit.data.cifar10 FOLDER [--source DIR]"""

import argparse
import contextlib
import os
import urllib.error
from collections.abc import Sequence
from pathlib import Path

from gspn_dit import errors
from gspn_dit.errors import UserError
from gspn_dit.files import (
    cache_folder,
    check_output_folder,
    claimed,
    claimed_file,
    home_folder,
    refuse_inputs,
)
from gspn_dit.processes import progress_bar
from gspn_dit.signals import noting

EPILOG = """\
example:
  python -m gspn_dit.data.cifar10 data/cifar10
  python train.py configs/cifar10_cpu.yaml data.path=data/cifar10

Writes FOLDER/train/CLASS/NUMBER.png (50,000 images) and FOLDER/test/CLASS/NUMBER.png (10,000); a NUMBER counts
the images of train or test in torchvision's order. The same command again continues an interrupted one.
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.data.cifar10",
        description="Write torchvision's CIFAR-10 as folders of PNG images, to train on with data.kind=images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", type=home_folder, help="where the images go")
    parser.add_argument(
        "--source",
        metavar="DIR",
        type=home_folder,
        help="folder with cifar-10-python.tar.gz or cifar-10-batches-py, as torchvision keeps them; what is not "
        "there is downloaded to it (default: a folder in the cache)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, then write what is missing; the exit status."""
    arguments = parse_arguments(argv)
    for path in (arguments.folder, arguments.source):
        if path is not None and path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: expected a folder")
    source = arguments.source or cache_folder() / "cifar10"
    refuse_inputs("FOLDER", arguments.folder, [("the source", source / "cifar-10-batches-py")])
    check_output_folder("FOLDER", arguments.folder)
    kept = f"the images in {arguments.folder} are kept: the same command writes the others"
    with claimed(arguments.folder), noting(lambda: kept):
        for split in ("train", "test"):
            # The cache is everyone's; a folder that was given may be one that cannot be written.
            with contextlib.nullcontext() if arguments.source else claimed_file(source, wait=True):
                images, labels, names = load(source, split)
            written = write(arguments.folder / split, images, labels, names)
            print(f"{arguments.folder / split}: {len(images):,} images, {written:,} of them written now")
    return 0


def load(source: Path, split: str):
    """Images (n, 32, 32, 3) uint8, labels and the classes' names, from torchvision's files, which are checked."""
    from torchvision.datasets import CIFAR10  # after the arguments are found good: it takes seconds to load

    try:
        data = CIFAR10(str(source), train=split == "train", download=True)
    except (urllib.error.URLError, TimeoutError, ConnectionError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"CIFAR-10 is not in {source} and cannot be downloaded ({reason}): "
            f"put {CIFAR10.filename} ({CIFAR10.url}) there"
        ) from error
    return data.data, data.targets, data.classes


def write(folder: Path, images, labels: Sequence[int], names: Sequence[str]) -> int:
    """Write the images of a split that are not there yet; how many these were."""
    # Speed: `--help` and a rejected argument answer without it.
    from PIL import Image

    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    written = 0
    bar = progress_bar(iterable=images, desc=folder.name, unit=" images")
    for number, (image, label) in enumerate(zip(bar, labels, strict=True)):
        path = folder / names[label] / f"{number:05d}.png"
        if path.exists() and path.stat().st_size > 0:  # a power cut can leave a file empty
            continue
        aside = path.with_name(f".tmp-{path.name}")  # hidden: no reader takes it for an image
        Image.fromarray(image).save(aside, format="PNG")
        os.replace(aside, path)
        written += 1
    return written


if __name__ == "__main__":
    errors.run(main)
