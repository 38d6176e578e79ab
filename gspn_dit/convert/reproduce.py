"""Published DiT and SiT weights against their published scores: python -m gspn_dit.convert.reproduce FOLDER

What shows that network, sampler, decoder and scores together are those of the papers. Not yet measured: 50,000 samples
of an XL model take a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gspn_dit import errors
from gspn_dit.convert.release import VAE, convert
from gspn_dit.errors import UserError
from gspn_dit.evaluation.golden import REFERENCE, URL
from gspn_dit.files import home_folder


@dataclass(frozen=True)
class Published:
    """A file of weights, and what was published of its samples."""

    file: str
    kind: str
    release: str
    get: str
    """Its address, or the command that fetches it into the folder {}."""
    scores: tuple[tuple[float, str, str], ...]
    """Guidance to give here, FID, and how that was sampled."""


PUBLISHED = (
    Published(
        "DiT-XL-2-256x256.pt",
        "dit",
        "dit_xl2",
        "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt",
        (
            (1.0, "9.62", "250 ddpm steps, as here"),
            (1.375, "2.20", "250 ddpm steps, as here; and 2.27 at 1.5 on three of the four latent channels"),
        ),
    ),
    Published(
        "SiT-XL-2-256.pt",
        "sit",
        "sit_xl2",
        "`hf download nyu-visionx/SiT-collections SiT-XL-2-256.pt --local-dir {}`",
        (
            (1.0, "8.3", "250 steps of an SDE; here its ODE, 125 steps of Heun's"),
            (
                1.375,
                "2.15",
                "the ODE at 1.5 on three of the four latent channels; and 2.06 by 250 steps of an SDE",
            ),
        ),
    ),
)
"""arXiv 2212.09748, tables 2 and 5 and appendix A; arXiv 2401.08740, tables 1 and 7."""


def check_files(folder: Path) -> list[Published]:
    """The weights that are there; one `UserError` for all that is missing where nothing can be done."""
    there = [item for item in PUBLISHED if (folder / item.file).is_file()]
    wanted = [f"{URL}/{REFERENCE}"] * (not (folder / REFERENCE).is_file())
    wanted += [item.get.format(folder) for item in PUBLISHED] * (not there)
    if wanted:
        either = (
            "" if there else " (one of the weights suffices, 2.7 GB each; their licences are their authors')"
        )
        raise UserError(f"{folder} lacks files to compare with: download there {', '.join(wanted)}{either}")
    return there


def describe(folder: Path, item: Published) -> list[str]:
    """The commands that score a release, with what was published."""
    lines = [f"{item.file} (decoder {VAE}):"]
    for scale, fid, how in item.scores:
        lines += [
            f"  published FID {fid} ({how}); here: not yet measured",
            f"    .venv/bin/accelerate launch eval_fid.py {folder / item.release} --reference {folder / REFERENCE} "
            f"--num 50000 --cfg-scale {scale:g} --json {folder / item.release}-cfg{scale:g}.json",
        ]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Convert what is there and is not converted yet; print commands and published numbers; the exit status."""
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.convert.reproduce",
        description="Convert published DiT and SiT weights, and print how their published scores are reproduced.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=home_folder, help="where weights and reference lie")
    folder = parser.parse_args(argv).folder
    for item in check_files(folder):
        release = folder / item.release
        if not (release / "state.json").exists():
            convert(str(folder / item.file), release, kind=item.kind, vae=VAE, report=print)
        print("\n".join(describe(folder, item)))
    print("A command that was stopped goes on. Guidance here is on all latent channels.")
    return 0


if __name__ == "__main__":
    errors.run(main)
