"""ADM's public samples against ADM's statistics: the numbers that show this suite to be ADM's."""

from pathlib import Path

from accelerate import Accelerator
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from gspn_dit.errors import UserError
from gspn_dit.evaluation.extractors import find_weights
from gspn_dit.evaluation.scores import Options, score_files

REFERENCE = "VIRTUAL_imagenet256_labeled.npz"
SAMPLES = "admnet_guided_upsampled_imagenet256.npz"
URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256"
PUBLISHED = {"is": 215.8, "fid": 3.94, "sfid": 6.14, "precision": 0.826, "recall": 0.531}
TOLERANCE = 0.01
"""Relative: the published numbers are rounded, and TensorFlow's arithmetic is not torch's."""


def check_files(folder: Path, weights: str | None) -> Path:
    """The file of Inception's weights, from the folder too; one `UserError` for all that is not at hand."""
    beside = folder / URL_INCEPTION_V3.rsplit("/", 1)[1]
    missing = [name for name in (REFERENCE, SAMPLES) if not (folder / name).is_file()]
    if missing:
        addresses = [f"{URL}/{name}" for name in missing]
        if not (weights or beside.is_file()):
            addresses.append(f"(unless it is for this program to download) {URL_INCEPTION_V3}")
        raise UserError(f"{folder} lacks {' and '.join(missing)}: download there {', '.join(addresses)}")
    return find_weights(weights or (beside if beside.is_file() else None))


def golden(folder: Path, options: Options, accelerator: Accelerator) -> tuple[str, bool] | None:
    """The table of published and measured scores, and whether all agree; None but on the first process."""
    result = score_files(folder / SAMPLES, str(folder / REFERENCE), options, accelerator)
    return compare(result) if result is not None else None


def compare(result: dict) -> tuple[str, bool]:
    lines, agreed = [f"{'':<12}{'published':>12}{'measured':>12}"], True
    for name, published in PUBLISHED.items():
        measured = result[name]
        near = measured is not None and abs(measured - published) <= TOLERANCE * published
        agreed &= near
        shown = "-" if measured is None else f"{measured:.3f}"
        lines.append(f"{name:<12}{published:>12}{shown:>12}{'' if near else '  differs'}")
    return "\n".join(lines), agreed
