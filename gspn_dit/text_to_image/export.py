"""A distilled run as a pipeline's folder of diffusers: python -m gspn_dit.text_to_image.export RUN FOLDER"""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from gspn_dit import errors
from gspn_dit.errors import UserError
from gspn_dit.files import check_output_folder, home_folder, read_json, refuse_inputs, write_json

EPILOG = """\
example:
  python -m gspn_dit.text_to_image.export runs/sd15_gspn sd15-gspn

Then, with this package installed:
  from diffusers import StableDiffusionPipeline
  from gspn_dit.text_to_image import GSPNUNet2DConditionModel  # diffusers looks for its module among those imported
  pipeline = StableDiffusionPipeline.from_pretrained("sd15-gspn")
"""
PARTS = ("scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "vae")


def export(run: str | Path, folder: str | Path) -> Path:
    """Write the pipeline of a run's teacher with the student as its UNet to a new or empty folder.

    `UserError` for what is no run of a distillation, or a folder that holds something.
    """
    # Speed: `--help` answers without torch and diffusers.
    from gspn_dit.text_to_image.student import load_distilled

    folder = Path(folder)
    refuse_inputs("FOLDER", folder, [("RUN", run)])
    check_output_folder("FOLDER", folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"FOLDER {folder} is not empty: give a new name")
    system = load_distilled(run)
    aside = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for part in PARTS:
        if (system.folder / part).is_dir():
            shutil.copytree(system.folder / part, aside / part)
    system.unet.save_pretrained(aside / "unet")
    index = read_json(system.folder / "model_index.json")
    if index is not None:
        settings = {key: value for key, value in index.items() if not isinstance(value, list)}
        kept = {**settings, **{key: value for key, value in index.items() if key in PARTS}}
        absent = {
            key: [None, None]
            for key in index
            if key in ("safety_checker", "feature_extractor", "image_encoder")
        }
        unet = {"unet": [type(system.unet).__module__, type(system.unet).__name__]}
        write_json(aside / "model_index.json", {**kept, **absent, **unet})
    if folder.is_dir():
        folder.rmdir()
    os.replace(aside, folder)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, then write the folder; the exit status."""
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.text_to_image.export",
        description="Write a distilled run as the folder of a StableDiffusionPipeline or StableDiffusionXLPipeline.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=home_folder, help="the run of a distillation")
    parser.add_argument("folder", metavar="FOLDER", type=home_folder, help="a new folder")
    arguments = parser.parse_args(argv)
    print(f"wrote {export(arguments.run, arguments.folder)}")
    return 0


if __name__ == "__main__":
    errors.run(main)
