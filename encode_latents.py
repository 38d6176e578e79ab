"""Encode an image folder once, so that training reads latents instead of images."""

import argparse
import os
from collections.abc import Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from gspn_dit.errors import ArgumentParser, UserError, run
from gspn_dit.files import check_output_folder, home_path, refuse_inputs
from gspn_dit.names import printable

if TYPE_CHECKING:
    from accelerate import PartialState

    from gspn_dit.latents.dataset import Manifest

DESCRIPTION = """\
Encode an image folder into latents for training: the posterior's mean and log-variance of every image and of
its mirror image, in float16, with labels and a manifest. An autoencoder without a posterior (--vae of
AutoencoderTiny, AutoencoderDC or TAEF2) gives the latent alone. At the end the mean and standard deviation of
every channel are measured, which the training normalises by where the autoencoder's own scale is none to trust.

  IMAGE_FOLDER   class folders of images (at any depth below a class), or images without classes; every format
                 that Pillow reads. Classes are numbered by the sorted names of the class folders.
  OUT            a new folder, or that of an earlier run, which is then continued: the same command after a
                 kill does not redo finished work. 32.8 KB an image at 256 px, with 4 channels at 1/8 of
                 the size and a posterior: 42 GB for ImageNet.

Images are cropped as in ADM: halved while the short side is at least twice the size, resized by bicubic until
it is the size, centre-cropped; smaller ones are enlarged. Greyscale, palette, CMYK and 16-bit images become
8-bit RGB; alpha is dropped and EXIF orientation is not applied, as in ADM.

Images that cannot be read are skipped: the run goes on and ends with status 0, counts them in its last lines,
and lists file and reason in OUT/skipped.txt. Bad settings end with status 2 and one line."""

EXAMPLE = """\
example:
  python encode_latents.py /data/imagenet/train data/imagenet256 --image-size 256
  accelerate launch --num_processes 8 encode_latents.py /data/imagenet/train data/imagenet256
  python encode_latents.py /data/imagenet/train data/imagenet256_dc --vae mit-han-lab/dc-ae-f32c32-in-1.0-diffusers"""

LISTED = 10
"""Skipped images named at the end; the file has them all."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", metavar="IMAGE_FOLDER", type=home_path)
    parser.add_argument("out", metavar="OUT", type=home_path)
    parser.add_argument(
        "--vae",
        type=home_path,
        default="stabilityai/sd-vae-ft-ema",
        metavar="HUB_ID_OR_FOLDER",
        help="AutoencoderKL, AutoencoderTiny or AutoencoderDC in diffusers' format, or the folder of "
        "taef2_encoder.pth and taef2_decoder.pth (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size", type=int, default=256, metavar="N", help="side in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images per process (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="readers of images per process; 0: itself (default: its share of the cores, at most 8)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Encode; 0 also when unreadable images were skipped."""
    arguments = parse_arguments(argv)
    for name, least in (("image_size", 1), ("batch_size", 1), ("workers", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")

    refuse_inputs("OUT", arguments.out, [("IMAGE_FOLDER", arguments.images), ("--vae", arguments.vae)])
    refuse_inputs("IMAGE_FOLDER", arguments.images, [("OUT", arguments.out)])

    # Speed: `--help` and a rejected argument answer without waiting for torch.
    import torch
    from accelerate import PartialState

    from gspn_dit.data.images import list_images
    from gspn_dit.latents.autoencoder import create_autoencoder
    from gspn_dit.latents.encoding import Encoder
    from gspn_dit.latents.store import LatentStore
    from gspn_dit.processes import check_launcher

    check_launcher()
    images = list_images(arguments.images)
    store = LatentStore(arguments.out)
    store.check_earlier(images, arguments.image_size)
    check_output_folder("OUT", store.folder)
    # Processes may wait for the slowest one for longer than the ten minutes that NCCL allows.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    if state.is_main_process:
        print("".join(f"{note}\n" for note in images.notes), end="", flush=True)
    manifest = Encoder(
        images=images,
        store=store,
        autoencoder=create_autoencoder(arguments.vae, state.device),
        size=arguments.image_size,
        batch_size=arguments.batch_size,
        workers=default_workers(state) if arguments.workers is None else arguments.workers,
        state=state,
    ).run()
    if state.is_main_process:
        report(manifest, store.folder)
    return 0


def default_workers(state: "PartialState") -> int:
    """This process's share of the machine's cores, at most 8."""
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    return min(8, len(os.sched_getaffinity(0)) // local_processes)


def report(manifest: "Manifest", folder: Path) -> None:
    """Say what there is now, and what was skipped."""
    # Speed: as above.
    from gspn_dit.latents.encoding import in_bytes

    encoded = manifest.images - manifest.skipped
    print(
        f"{printable(folder)}: {encoded:,} images of {len(manifest.class_names):,} classes as latents of "
        f"{'x'.join(map(str, manifest.latent_shape))}, both mirrors, {in_bytes(manifest.moments_bytes)}"
    )
    if not manifest.skipped:
        return
    print(f"skipped {manifest.skipped:,} unreadable images, listed in {printable(folder / 'skipped.txt')}:")
    with open(folder / "skipped.txt", encoding="utf-8") as file:
        for line in islice(file, LISTED):
            print("  " + printable(line.rstrip("\n").replace("\t", ": ")))
    if manifest.skipped > LISTED:
        print(f"  and {manifest.skipped - LISTED:,} more")


if __name__ == "__main__":
    run(main)
