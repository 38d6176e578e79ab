"""What samples are compared with: images, ADM's statistics, or statistics that were written here.

Statistics are cached by the hash of the images and of the network: a reference is computed once.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from gspn_dit.errors import UserError
from gspn_dit.evaluation.cache import cache_folder, content_key
from gspn_dit.evaluation.extraction import Statistics, extract
from gspn_dit.evaluation.images import ArrayImages, Images, NpzFile, NpzImages, open_images
from gspn_dit.evaluation.metrics import Moments
from gspn_dit.evaluation.networks import Network
from gspn_dit.files import replacing, sha256
from gspn_dit.random import ORDER, generator

KEPT = 10_000
"""Images of a reference that precision, recall and KID use: as many as ADM's statistics hold."""
HELD_OUT = "mnist"
"""The name that stands for the 1,000 held-out digits of the demo."""
VIRTUAL = re.compile(r"VIRTUAL_imagenet(\d+)(_labeled)?\.npz")


@dataclass(frozen=True)
class Reference:
    """Statistics of real images."""

    name: str
    kind: str
    """"images", "ADM statistics" or "statistics"."""
    network: str | None
    """Identity of the network; None where the file does not say."""
    size: tuple[int, int] | None
    """Height and width of the images; None where the file does not say."""
    count: int | None
    pool: Moments
    spatial: Moments | None
    features: np.ndarray | None
    """(k, d) float32 for precision, recall and KID."""
    virtual: bool = False
    """Whether these are ADM's published statistics of ImageNet, by name and form."""


def check_reference(path: str) -> None:
    """Raise `UserError` at once for a reference that cannot be."""
    if path == HELD_OUT:
        return
    if not Path(path).exists():
        raise UserError(f"no such reference: {path}; expected an npz, a folder of images, or '{HELD_OUT}'")
    if Path(path).is_dir():
        open_images(path)
    elif is_statistics(NpzFile(Path(path))):
        check_statistics(NpzFile(Path(path)))
    else:
        open_images(path)


def load_reference(
    path: str, network: Network, accelerator: Accelerator, batch_size: int
) -> Reference | None:
    """The reference, from its own statistics, the cache or its images; None but on the first process."""
    if path != HELD_OUT and not Path(path).is_dir():
        file = NpzFile(Path(path))
        if is_statistics(file):
            return with_images(file, network, accelerator, batch_size)
    images = held_out_digits() if path == HELD_OUT else open_images(path)
    statistics = cached(images, network, accelerator, batch_size)
    if statistics is None:
        return None
    return Reference(
        name=images.name,
        kind="images",
        network=network.identity,
        size=tuple(images.size),
        count=statistics.count,
        pool=statistics.pool,
        spatial=statistics.spatial,
        features=statistics.features,
    )


def held_out_digits() -> ArrayImages:
    from gspn_dit.data.mnist import load_digits

    return ArrayImages(
        np.repeat(load_digits("heldout")[0][..., None], 3, axis=3), "the 1,000 held-out digits"
    )


def is_statistics(file: NpzFile) -> bool:
    return {"mu", "sigma"} <= set(file.names)


def check_statistics(file: NpzFile) -> tuple[Moments, Moments | None]:
    """The moments in a statistics file; `UserError` for arrays of other shapes, or not finite."""
    count = int(file.read("count")) if "count" in file.names else KEPT
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
    return Moments(count, mean.astype(np.float64), covariance.astype(np.float64))


def with_images(
    file: NpzFile, network: Network, accelerator: Accelerator, batch_size: int
) -> Reference | None:
    """A statistics file, with the features of the images it holds, if any."""
    about = json.loads(file.read("about").tobytes()) if "about" in file.names else {}
    if about.get("network", network.identity) != network.identity:
        raise UserError(f"{file.path} holds features of {about['network']}, not of {network.identity}")
    features, size = None, tuple(about["size"]) if about else None
    if "features" in file.names:
        features = file.read("features")
    elif "arr_0" in file.names:
        images = NpzImages(file.path)
        size = tuple(images.size)
        statistics = cached(images, network, accelerator, batch_size)
        features = statistics.features if statistics else None
    if not accelerator.is_main_process:
        return None
    pool, spatial = check_statistics(file)
    name = VIRTUAL.fullmatch(file.path.name)
    return Reference(
        name=str(file.path),
        kind="statistics" if about else "ADM statistics",
        network=about.get("network"),
        size=size,
        count=about.get("count"),
        pool=pool,
        spatial=spatial,
        features=features,
        virtual=bool(name) and not about and spatial is not None and size == (int(name[1]), int(name[1])),
    )


def cached(images: Images, network: Network, accelerator: Accelerator, batch_size: int) -> Statistics | None:
    """Statistics of a reference's images, from the cache where it has them."""
    path = (
        cache_folder()
        / f"reference-{content_key([images.key().encode(), network.identity.encode()])[:24]}.npz"
    )
    found = path.exists()
    accelerator.wait_for_everyone()  # all must have looked before the first process writes it
    if found:
        return read_statistics(NpzFile(path)) if accelerator.is_main_process else None
    kept = kept_numbers(len(images))
    statistics = extract(
        images, network, accelerator, batch_size=batch_size, kept=kept, label="features of the reference"
    )
    if statistics is not None:
        write_statistics(
            path, statistics, {"name": images.name, "network": network.identity, "size": list(images.size)}
        )
    return statistics


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
        "features": statistics.features,
    }
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    about = json.dumps({**about, "count": statistics.count}).encode()
    with replacing(path) as file:
        np.savez(file, about=np.frombuffer(about, dtype=np.uint8), count=np.array(statistics.count), **arrays)


def read_statistics(file: NpzFile) -> Statistics:
    """A statistics file that `write_statistics` wrote."""
    pool, spatial = check_statistics(file)
    return Statistics(pool.count, pool, spatial, file.read("features"), None)


def save_reference(reference: Reference, path: Path) -> None:
    """Write a reference as a statistics file, to be given as one."""
    statistics = Statistics(reference.count, reference.pool, reference.spatial, reference.features, None)
    about = {"name": reference.name, "network": reference.network, "size": list(reference.size or ())}
    write_statistics(path, statistics, about)


def reference_hash(path: str) -> str | None:
    """The start of a reference file's SHA-256, printed beside the scores; None for other references."""
    return sha256(Path(path))[:16] if Path(path).is_file() else None
