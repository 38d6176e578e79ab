"""What samples are compared with: images, ADM's statistics, or statistics that were written here.

Statistics are cached by the hash of the images and of the network: a reference is computed once.
"""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from gspn_dit.data.mnist import load_digits
from gspn_dit.errors import UserError
from gspn_dit.evaluation.extractors import Network
from gspn_dit.evaluation.features import Statistics, extract
from gspn_dit.evaluation.image_sets import (
    ArrayImages,
    Images,
    NpzFile,
    NpzImages,
    open_images,
)
from gspn_dit.evaluation.metrics import Moments
from gspn_dit.files import cache_folder, claimed_file, content_key, replacing
from gspn_dit.random import ORDER, generator

KEPT = 10_000
"""Images of a reference that precision, recall and KID use: as many as ADM's statistics hold."""
HELD_OUT = "mnist"
"""The name that stands for the 1,000 held-out digits of the demo."""
VIRTUAL = re.compile(r"VIRTUAL_imagenet(\d+)(_labeled)?\.npz")
VIRTUAL_IMAGES = {512: 1_000}
"""Images in ADM's statistics where these are not 10,000, by size."""
VIRTUAL_WIDTHS = (2048, 2023)
"""Features of FID and of sFID in ADM's statistics."""


@dataclass(frozen=True)
class Reference:
    """Statistics of real images."""

    name: str
    kind: str
    """"images", with what was done to them, "ADM statistics" or "statistics"."""
    network: str | None
    """Identity of the network; None where nobody says."""
    size: tuple[int, int] | None
    """Height and width of the images; None where the file does not say."""
    count: int | None
    pool: Moments
    spatial: Moments | None
    features: np.ndarray | None
    """(k, d) float32 for precision, recall and KID."""
    virtual: bool = False
    """Whether these are ADM's published statistics of ImageNet, by name and form."""


def check_reference(path: str, crop: bool = False) -> tuple[int, int] | None:
    """Raise `UserError` at once for a reference that cannot be; the size of its images, None where there are none.

    With `crop` its pictures are to be cut to a size that is not known yet, and may differ.
    """
    if crop and not Path(path).is_dir():
        raise UserError(f"--crop is for a folder of pictures; the reference {path} is none: leave it out")
    if path == HELD_OUT:
        return None
    if not Path(path).exists():
        raise UserError(f"no such reference: {path}; expected an npz, a folder of images, or '{HELD_OUT}'")
    file = None if Path(path).is_dir() else NpzFile(Path(path))
    if file is not None and is_statistics(file):
        check_statistics(file)
        if "features" in file.names or "arr_0" not in file.names:
            return None
    if crop:
        open_images(path, crop=1)  # any side will do to see whether there are pictures
        return None
    return tuple(open_images(path).size)


def load_reference(
    path: str, network: Network, accelerator: Accelerator, batch_size: int, crop: int | None = None
) -> Reference | None:
    """The reference, from its own statistics, the cache or its images; None but on the first process.

    Args:
        crop: see `open_images`.
    """
    if path != HELD_OUT and not Path(path).is_dir():
        file = NpzFile(Path(path))
        if is_statistics(file):
            return with_images(file, network, accelerator, batch_size)
    images = held_out_digits() if path == HELD_OUT else open_images(path, crop)
    if images.note:
        accelerator.print(images.note)
    statistics = cached(images, network, accelerator, batch_size)
    if statistics is None:
        return None
    return Reference(
        name=images.name,
        kind="images" if crop is None else f"pictures cut to {crop}x{crop} as for training",
        network=network.identity,
        size=tuple(images.size),
        count=statistics.count,
        pool=statistics.pool,
        spatial=statistics.spatial,
        features=statistics.features,
    )


def held_out_digits() -> ArrayImages:
    return ArrayImages(
        np.repeat(load_digits("heldout")[0][..., None], 3, axis=3), "the 1,000 held-out digits"
    )


def is_statistics(file: NpzFile) -> bool:
    return {"mu", "sigma"} <= set(file.names)


def described(file: NpzFile) -> dict:
    """What a statistics file that was written here says of itself; empty for one of others."""
    if "about" not in file.names:
        return {}
    try:
        said = {key: value for key, value in json.loads(file.read("about").tobytes()).items() if value}
        if isinstance(said.get("count", 0), int) and isinstance(said.get("network", ""), str):
            height, width = said.get("size", (1, 1))
            if isinstance(height, int) and isinstance(width, int):
                return said
        raise ValueError("values of other types")
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file.path}: about is not as --save-reference writes it") from error


def check_statistics(file: NpzFile) -> tuple[Moments, Moments | None]:
    """The moments in a statistics file; `UserError` for arrays of other shapes, or not finite."""
    count = described(file).get("count", KEPT)
    pool = read_moments(file, "mu", "sigma", count)
    spatial = read_moments(file, "mu_s", "sigma_s", count) if {"mu_s", "sigma_s"} <= set(file.names) else None
    return pool, spatial


def read_moments(file: NpzFile, mean_name: str, covariance_name: str, count: int) -> Moments:
    mean, covariance = file.read(mean_name), file.read(covariance_name)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{file.path}: {mean_name} is {mean.shape} and {covariance_name} {covariance.shape}; "
            "expected (d,) and (d, d)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{file.path}: {mean_name} or {covariance_name} is not finite")
    covariance = covariance.astype(np.float64)
    problem = no_covariance(covariance)
    if problem:
        raise UserError(f"{file.path}: {covariance_name} is no covariance: {problem}")
    return Moments(count, mean.astype(np.float64), covariance)


def no_covariance(matrix: np.ndarray) -> str | None:
    """Why a finite matrix (d, d) float64 cannot be a covariance, beyond what float32 rounds off; None if it can."""
    if matrix.diagonal().min(initial=0) < 0:
        return f"the variance of feature {int(matrix.diagonal().argmin())} is {matrix.diagonal().min():g}"
    # Rounding to float32 moves no element by more than this share of the largest, and no eigenvalue by d times that.
    rounding = len(matrix) * np.finfo(np.float32).eps * np.abs(matrix).max(initial=0)
    row, column = np.unravel_index(np.abs(matrix - matrix.T).argmax(), matrix.shape)
    if abs(matrix[row, column] - matrix[column, row]) > rounding:
        pair = f"{matrix[row, column]:g} at [{row}, {column}], {matrix[column, row]:g} at [{column}, {row}]"
        return f"it is not symmetric ({pair})"
    # All eigenvalues lie above -rounding where this has a Cholesky factor: a tenth of the time of finding them.
    lifted = torch.from_numpy((matrix + matrix.T) / 2 + 2 * rounding * np.eye(len(matrix)))
    if rounding > 0 and torch.linalg.cholesky_ex(lifted).info:
        return "it has negative eigenvalues"
    return None


def read_features(file: NpzFile, network: Network) -> np.ndarray:
    """The kept features in a statistics file; `UserError` unless they are finite rows of the network's width."""
    features = file.read("features")
    if features.ndim != 2 or features.shape[1] != network.width or not np.isfinite(features).all():
        raise UserError(
            f"{file.path}: features is {features.shape}; expected finite (k, {network.width}) of {network.identity}"
        )
    return features


def with_images(
    file: NpzFile, network: Network, accelerator: Accelerator, batch_size: int
) -> Reference | None:
    """A statistics file, with the features of the images it holds, if any."""
    said = described(file)
    pool, spatial = check_statistics(file)
    check_network(file.path, said, len(pool.mean), network.identity, network.width)
    features, images = None, None
    if "features" in file.names:
        features = read_features(file, network)
    elif "arr_0" in file.names:
        images = NpzImages(file.path)
        statistics = cached(images, network, accelerator, batch_size)
        features = statistics.features if statistics else None
    if not accelerator.is_main_process:
        return None
    virtual = not said and is_virtual(file.path.name, pool, spatial, images)
    return Reference(
        name=str(file.path),
        kind="ADM statistics" if virtual else "statistics",
        network=said.get("network") or (network.identity if images else None),
        size=tuple(images.size) if images else tuple(said["size"]) if "size" in said else None,
        count=said.get("count"),
        pool=pool,
        spatial=spatial,
        features=features,
        virtual=virtual,
    )


def check_network(path: Path, said: dict, features: int, identity: str, width: int) -> None:
    """Raise `UserError` for statistics of another network's features."""
    if said.get("network", identity) != identity:
        raise UserError(f"{path} holds features of {said['network']}, not of {identity}")
    if features != width:
        raise UserError(f"{path}: mu is of {features} features; {identity} has {width}")


def check_statistics_of(path: str, identity: str, width: int) -> None:
    """Raise `UserError` for a reference that is statistics of another network's features."""
    if path != HELD_OUT and Path(path).is_file():
        file = NpzFile(Path(path))
        if is_statistics(file):
            check_network(file.path, described(file), file.header("mu")[0][0], identity, width)


def is_virtual(name: str, pool: Moments, spatial: Moments | None, images: Images | None) -> bool:
    """Whether statistics have the name and the form of ADM's, of which no hash is published."""
    match = VIRTUAL.fullmatch(name)
    if match is None or spatial is None or images is None:
        return False
    size, widths = int(match[1]), (len(pool.mean), len(spatial.mean))
    images_of_form = tuple(images.size) == (size, size) and len(images) == VIRTUAL_IMAGES.get(size, KEPT)
    return images_of_form and widths == VIRTUAL_WIDTHS


def cached(images: Images, network: Network, accelerator: Accelerator, batch_size: int) -> Statistics | None:
    """Statistics of a reference's images, from the first process's cache where that has them."""
    path = cache_path(images, network) if accelerator.is_main_process else None
    statistics = read_cached(path) if path else None
    with contextlib.ExitStack() as stack:
        if path and statistics is None:
            stack.enter_context(claimed_file(path, wait=True))
            statistics = read_cached(path)  # another may have made it meanwhile
        (found,) = broadcast_object_list([statistics is not None])
        if found:
            return statistics
        kept = kept_numbers(len(images))
        statistics = extract(
            images, network, accelerator, batch_size=batch_size, kept=kept, label="features of the reference"
        )
        if statistics is not None:
            about = {"name": images.name, "network": network.identity, "size": list(images.size)}
            write_statistics(path, statistics, about)
        return statistics


def cache_path(images: Images, network: Network) -> Path:
    key = content_key([images.key().encode(), network.identity.encode()])
    return cache_folder() / f"reference-{key[:24]}.npz"


def read_cached(path: Path) -> Statistics | None:
    """The statistics in a file of the cache; None where it is absent or damaged, and to be made anew."""
    try:
        return read_statistics(NpzFile(path)) if path.exists() else None
    except UserError:
        return None


def kept_numbers(count: int) -> np.ndarray:
    """Which images of a reference precision, recall and KID use: all, or a keyed choice of 10,000; rising."""
    if count <= KEPT:
        return np.arange(count)
    return np.sort(torch.randperm(count, generator=generator(ORDER, count))[:KEPT].numpy())


def write_statistics(path: Path, statistics: Statistics, about: dict) -> None:
    """Write a statistics file: moments, kept features, and what they are of."""
    arrays = {
        "mu": statistics.pool.mean,
        "sigma": statistics.pool.covariance,
    }
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    if statistics.features is not None:
        arrays["features"] = statistics.features
    text = json.dumps({**about, "count": statistics.count}).encode()
    with replacing(path) as file:
        np.savez(file, about=np.frombuffer(text, dtype=np.uint8), **arrays)


def read_statistics(file: NpzFile) -> Statistics:
    """A statistics file that `write_statistics` wrote."""
    pool, spatial = check_statistics(file)
    return Statistics(pool.count, pool, spatial, file.read("features"), None)


def save_reference(reference: Reference, path: Path) -> None:
    """Write a reference as a statistics file, to be given as one."""
    statistics = Statistics(reference.count, reference.pool, reference.spatial, reference.features, None)
    about = {"name": reference.name, "network": reference.network, "size": list(reference.size or ())}
    write_statistics(path, statistics, about)
