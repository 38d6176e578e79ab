"""Does a network copy what it learned from? python -m gspn_dit.evaluation.neighbours SAMPLES --images FOLDER

Each sample beside its nearest training pictures, by the Euclidean distance of features; the samples nearest of all come
first. A sample is a near-copy where it is nearer to a training picture than 99 % of these are to another one.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from gspn_dit import errors
from gspn_dit.errors import UserError
from gspn_dit.evaluation.features import extract
from gspn_dit.evaluation.image_sets import Images, open_images
from gspn_dit.evaluation.scores import Options, check_digits, check_network, create_network, side
from gspn_dit.files import check_output, home_path, refuse_inputs, write_json
from gspn_dit.processes import connect, progress_bar
from gspn_dit.sampling.grids import save_grid

QUANTILE = 0.01
"""Of the distances between training pictures: a sample nearer to one than this is a near-copy."""
ROWS = 256
"""Samples whose distances to all training pictures are held at once."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest training pictures of n samples."""

    numbers: np.ndarray
    """(n, k) int64: numbers of training pictures, the nearest first."""
    distances: np.ndarray
    """(n, k) float64."""
    real: np.ndarray
    """(m,) float64: of each training picture to the nearest other one."""

    @property
    def limit(self) -> float:
        """The distance below which a sample is a near-copy; training pictures that are there twice do not count."""
        apart = self.real[self.real > 0]
        return float(np.quantile(apart, QUANTILE)) if len(apart) else 0.0

    @property
    def copies(self) -> np.ndarray:
        """Which samples are near-copies, (n,) bool."""
        return (self.distances[:, 0] < self.limit) | (self.distances[:, 0] == 0)


class Mirrored:
    """Images as a mirror shows them: training may have seen those."""

    lossy, note = False, None

    def __init__(self, images: Images) -> None:
        self.images, self.name, self.size = images, images.name, images.size

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> np.ndarray:
        # A copy leaves no negative stride, which torch refuses, whatever the width.
        return self.images.read(start, stop)[:, :, ::-1].copy()


def distances(
    points: torch.Tensor, others: torch.Tensor, mirrored: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor]]:
    """Distances of points (n, d) to the nearer of others (m, d) and mirrored: the first row's number, (rows, m)."""
    starts = range(0, len(points), ROWS)
    for start in progress_bar(iterable=starts, desc="distances", unit=f" x {ROWS} images"):
        part = points[start : start + ROWS]
        yield start, torch.minimum(torch.cdist(part, others), torch.cdist(part, mirrored))


def find(samples: np.ndarray, real: np.ndarray, mirrored: np.ndarray, count: int) -> Neighbours:
    """The nearest training pictures of each sample, and of each training picture.

    Args:
        samples: features (n, d).
        real: features (m, d) of the training pictures.
        mirrored: features (m, d) of the same in a mirror: of both the nearer counts.
        count: k, the nearest that are wanted, of m at the most.
    """
    points, *pictures = (torch.from_numpy(part).double() for part in (samples, real, mirrored))
    found = [rows.topk(count, largest=False) for _, rows in distances(points, *pictures)]
    among_real = []
    for start, rows in distances(pictures[0], *pictures):
        rows.diagonal(start).fill_(torch.inf)  # none is its own neighbour
        among_real.append(rows.amin(dim=1))
    return Neighbours(
        torch.cat([part.indices for part in found]).numpy(),
        torch.cat([part.values for part in found]).numpy(),
        torch.cat(among_real).numpy(),
    )


def draw(neighbours: Neighbours, samples: Images, pictures: Images, rows: int, path: Path) -> None:
    """Write a row for each of the `rows` samples nearest to a training picture: the sample, then its nearest."""
    images = []
    for number in np.argsort(neighbours.distances[:, 0], kind="stable")[:rows].tolist():
        images.append(samples.read(number, number + 1))
        images += [pictures.read(other, other + 1) for other in neighbours.numbers[number].tolist()]
    save_grid(np.concatenate(images), len(images) // (1 + neighbours.numbers.shape[1]), path)


def measure(
    arguments: argparse.Namespace, accelerator: Accelerator
) -> tuple[Neighbours, Images, Images] | None:
    """The neighbours, the samples and the training pictures, cut to the samples' size; None but on the first process.

    Raises `UserError` for whatever is wrong with an input, before a network is loaded.
    """
    samples = open_images(arguments.samples)
    if not Path(arguments.images).is_dir():
        raise UserError(
            f"--images {arguments.images}: expected the folder of the pictures that were trained on"
        )
    pictures = open_images(arguments.images, crop=side(samples, "SAMPLES"))
    for note in filter(None, (samples.note, pictures.note)):
        accelerator.print(note)
    if arguments.nearest > len(pictures):
        raise UserError(f"--nearest {arguments.nearest}: {pictures.name} holds {len(pictures)} pictures")
    options = Options(features=arguments.features, inception_weights=arguments.inception_weights)
    if options.features == "digits":
        check_digits(samples.name, samples.size)
    # The first may have to download the weights, or train the classifier.
    with accelerator.main_process_first():
        check_network(options)
        network = create_network(options, accelerator.device)
    parts = [
        extract(images, network, accelerator, batch_size=arguments.batch_size, label=label)
        for images, label in (
            (samples, "samples"),
            (pictures, "training pictures"),
            (Mirrored(pictures), "training pictures, mirrored"),
        )
    ]
    if None in parts:
        return None
    return find(*(part.features for part in parts), arguments.nearest), samples, pictures


def describe(found: Neighbours, drawn: str) -> str:
    """What was found, for people."""
    near, count = found.distances[:, 0], len(found.distances)
    return (
        f"nearest training picture of {count:,} samples: median distance {np.median(near):.3f}, "
        f"least {near.min():.3f}\n"
        f"nearest other one of {len(found.real):,} training pictures: median {np.median(found.real):.3f}, "
        f"{found.limit:.3f} or more for 99 % of them\n"
        f"near-copies, nearer than that: {int(found.copies.sum()):,} of {count:,} ({found.copies.mean():.1%})\n"
        f"the samples nearest to a training picture, each with its nearest: {drawn}"
    )


EPILOG = """\
example:
  python -m gspn_dit.evaluation.neighbours samples.npz --images pictures --features efficientnet

The pictures are cut to the size of the samples, as training does. Training pictures that are there twice do not count
where distances among them are measured.
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.evaluation.neighbours",
        description="Show samples beside the training pictures that are nearest to them, and count near-copies.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("samples", metavar="SAMPLES", type=home_path, help="an npz (arr_0 uint8), or a folder of images")
    add("--images", metavar="FOLDER", type=home_path, required=True, help="the pictures trained on")
    add(
        "--features",
        choices=("inception", "efficientnet", "digits"),
        default="inception",
        help="as in eval_fid.py (default: inception)",
    )
    add("--inception-weights", metavar="FILE", type=home_path, help="as in eval_fid.py")
    add("--nearest", metavar="K", type=int, default=4, help="training pictures of a sample (default: 4)")
    add("--show", metavar="N", type=int, default=8, help="samples in the picture (default: 8)")
    add("--batch-size", metavar="N", type=int, default=32, help="images at once (default: 32)")
    add("--out", metavar="FILE", type=home_path, default="neighbours.png", help="default: neighbours.png")
    add("--json", metavar="FILE", type=home_path, help="also write numbers and distances here")
    return parser.parse_args(argv)


def check(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for what is wrong before anything is read."""
    for option in ("nearest", "show", "batch_size"):
        value = getattr(arguments, option)
        if value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: expected at least 1")
    if Path(arguments.out).suffix.lower() != ".png":
        raise UserError(f"--out {arguments.out}: expected a name that ends in .png")
    if arguments.json and Path(arguments.json).suffix.lower() == ".png":
        raise UserError(f"--json {arguments.json}: expected a name that does not end in .png")
    if arguments.inception_weights and arguments.features != "inception":
        raise UserError(
            f"--inception-weights has no effect on --features {arguments.features}: leave out one"
        )
    inputs = [("SAMPLES", Path(arguments.samples)), ("--images", Path(arguments.images))]
    for option, path in (("--out", arguments.out), ("--json", arguments.json)):
        if path is not None:
            check_output(option, path, in_place=True)
            refuse_inputs(option, path, inputs)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, measure, draw, print; the exit status."""
    arguments = parse_arguments(argv)
    check(arguments)
    accelerator = connect()
    result = measure(arguments, accelerator)
    if result is not None:
        found, samples, pictures = result
        draw(found, samples, pictures, arguments.show, Path(arguments.out))
        print(describe(found, arguments.out))
        if arguments.json:
            lists = {name: values.tolist() for name, values in vars(found).items()}
            write_json(
                Path(arguments.json), {**lists, "limit": found.limit, "copies": int(found.copies.sum())}
            )
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    errors.run(main)
