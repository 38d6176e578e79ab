"""A generated task of long range: are the two marked pixels the ends of one curve, among distractors?

A layout has two curves of the same length L and shorter ones. A picture of either label can be made of every layout:
both ends of one are marked, or an end of each, in a place that mirrors that of the first. So neither the curves, nor
where the marks are, nor how the curves set out from them tells the label: it takes following a curve, over L pixels.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gspn_dit.files import claimed_file, replacing

PARTS = ("training", "held_out")
TRAINING, HELD_OUT = range(len(PARTS))
"""Streams of layouts."""
CHANNELS = 2
"""Curves, marks."""
MARKS = 2
SYMMETRIES = 8
"""Of the square: a turn by quarters, after a reflection or none."""
NO_CURVE = -1
COUNTS = np.array([[NO_CURVE, 1, 1, 0], [NO_CURVE, 2, 0, 0]], dtype=np.int8)
"""Marks on a pixel's curve, by the label and what `Layouts.curves` has there."""
TRIES = 10
"""Places tried for a distractor before it is left out."""

MOST = 5000
"""Pairs of long curves tried for a layout: of very short ones no two can set out as they should and not touch."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What decides every picture."""

    size: int
    """Side of a picture, in pixels."""
    lengths: tuple[int, int]
    """Shortest and longest curve whose ends are marked, in pixels; uniform between them."""
    distractors: int
    """Shorter curves beside them, but for those for which no place is found."""
    shortest: int = 4
    """Pixels of the shortest distractor; the longest has L - 1."""
    turn: float = 0.1
    """Chance with which a curve turns at a pixel."""
    layouts: int = 20_000
    held_out: int = 2000

    @property
    def key(self) -> str:
        """Hash of all of it, for the name of a file."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Layouts:
    """Generated layouts; N of them, of side S."""

    curves: np.ndarray
    """(N, S, S) uint8: 0 where no curve is, 1 on the one whose ends are marked together, 2 on the other long one, 3 on
    the distractors."""
    marks: np.ndarray
    """(N, 3, 2) uint8: row and column of a mark, of its curve's other end, of an end of the other long curve."""
    lengths: np.ndarray
    """(N,) uint8: L."""
    turns: np.ndarray
    """(N,) uint8: corners of the marked curve, whose ends a picture of the label "one curve" marks."""

    def __len__(self) -> int:
        return len(self.curves)

    @property
    def hash(self) -> str:
        """SHA-256 of all of it."""
        digest = hashlib.sha256()
        for field in dataclasses.fields(self):
            digest.update(np.ascontiguousarray(getattr(self, field.name)).tobytes())
        return digest.hexdigest()


Curve = list[tuple[int, int]]
"""Rows and columns of its pixels, end to end."""


class Board:
    """The pixels on which a curve may still go."""

    def __init__(self, size: int) -> None:
        self.size, self.stride = (
            size,
            size + 2,
        )  # with a border of one pixel, so that surroundings never leave it
        self.taken = bytearray(self.stride**2)
        self.curves: list[Curve] = []

    def place(self, shape: Curve, row: int, column: int) -> Curve | None:
        """Put a shape's first pixel at a place; None where it would leave the picture or touch another curve."""
        down, right = row - shape[0][0], column - shape[0][1]
        curve = [(r + down, c + right) for r, c in shape]
        last = self.size - 1
        if not all(0 <= r <= last and 0 <= c <= last for r, c in curve):
            return None
        pixels = [(r + 1) * self.stride + c + 1 for r, c in curve]
        if any(map(self.taken.__getitem__, pixels)):
            return None
        for pixel in pixels:
            surround(self.taken, pixel, self.stride)
        self.curves.append(curve)
        return curve

    def place_anywhere(self, shape: Curve, draw: "Draws") -> Curve | None:
        """Put a shape at random, at any place within the picture with the same chance; None where that is taken."""
        rows, columns = zip(*shape, strict=True)
        spare = self.size - 1 - max(rows) + min(rows), self.size - 1 - max(columns) + min(columns)
        if min(spare) < 0:
            return None
        row, column = (int(draw() * (count + 1)) for count in spare)
        return self.place(shape, row + rows[0] - min(rows), column + columns[0] - min(columns))

    def to_border(self, pixel: tuple[int, int]) -> int:
        """Pixels from the nearest border, less than 0 beyond it."""
        return min(*pixel, self.size - 1 - max(pixel))

    def picture(self) -> np.ndarray:
        """(S, S) uint8: 0, or the number of a curve in the order in which they were put, 3 for all from the third."""
        pixels = np.zeros((self.size, self.size), dtype=np.uint8)
        for number, curve in enumerate(self.curves, 1):
            rows, columns = zip(*curve, strict=True)
            pixels[rows, columns] = min(number, 3)
        return pixels


def walk(length: int, turn: float, draw: "Draws") -> Curve:
    """A walk by unit steps along rows and columns that does not touch itself, on a board without end.

    It turns with the chance `turn` at each pixel, and where it would touch itself; one that gets stuck is begun anew.
    """
    stride = 2 * length + 3
    while True:
        taken = bytearray(stride**2)
        pixel, before = stride * (length + 1) + length + 1, 0
        step = (1, -1, stride, -stride)[int(4 * draw())]
        curve = [pixel]
        taken[pixel] = 1
        while len(curve) < length:
            side = (stride if abs(step) == 1 else 1) * (1 if draw() < 0.5 else -1)
            first, second = (side, step) if draw() < turn else (step, side)
            for step in (first, second, -side):
                if not taken[pixel + step]:
                    break
            else:
                break
            if (
                before
            ):  # the pixel before the last may touch the next one at a corner, those before it may not
                surround(taken, before, stride)
            before, pixel = pixel, pixel + step
            curve.append(pixel)
            taken[pixel] = 1
        if len(curve) == length:
            return [divmod(pixel, stride) for pixel in curve]


def surround(taken: bytearray, pixel: int, stride: int) -> None:
    """Take a pixel and its eight neighbours."""
    for start in (pixel - stride - 1, pixel - 1, pixel + stride - 1):
        taken[start : start + 3] = b"\1\1\1"


class Draws:
    """Uniform numbers in [0, 1) of a layout, by its stream and number alone."""

    def __init__(self, stream: int, number: int) -> None:
        self.rng = np.random.Generator(np.random.Philox(key=[stream, number]))
        self.next = iter(()).__next__

    def __call__(self) -> float:
        try:
            return self.next()
        except StopIteration:
            self.next = iter(self.rng.random(512).tolist()).__next__
            return self.next()

    def below(self, count: int) -> int:
        return int(count * self())


def draw_layout(task: Task, stream: int, number: int) -> tuple[np.ndarray, Curve, int, int]:
    """Curves (S, S) uint8, the three marks, L and corners of a layout, by its stream and number alone."""
    draw = Draws(stream, number)
    low, high = task.lengths
    length = low + draw.below(high - low + 1)
    for _ in range(MOST):
        board = Board(task.size)
        curve = board.place_anywhere(walk(length, task.turn, draw), draw)
        marks = curve and place_other(board, curve, walk(length, task.turn, draw), draw)
        if marks:
            break
    else:
        raise ValueError(
            f"found no two curves of {length} pixels in {task}; expected longer ones or more room"
        )
    for _ in range(task.distractors):
        shape = walk(task.shortest + draw.below(length - task.shortest), task.turn, draw)
        any(board.place_anywhere(shape, draw) for _ in range(TRIES))
    return board.picture(), marks, length, corners(curve)


def place_other(board: Board, curve: Curve, shape: Curve, draw: Draws) -> Curve | None:
    """Put the second long curve so that a mark, its curve's other end and an end of the second are a fair question.

    Seen from the mark, that end is the mirror image of the other end of the mark's own curve, and the second curve
    starts there in the mirrored direction. So nothing tells one from the other that knows where the ends are and how
    the curves set out from them. Both are as far from the border, within a pixel. Gives mark, other end, and end of the
    second curve; None where there is no room.
    """
    options = [(end, ahead, sides) for end in (1, -1) for ahead in (1, -1) for sides in range(SYMMETRIES)]
    while options:
        end, ahead, sides = options.pop(draw.below(len(options)))
        mine, other = curve[::end], shape[::ahead]
        mark, same = mine[0], mine[-1]
        across = (
            0 if mine[1][0] == mark[0] else 1
        )  # the axis along which the curve does not set out from the mark
        apart, start = difference(same, mark), turned(other[:2], sides)
        if apart[across] == 0 or difference(*start) != mirrored(difference(same, mine[-2]), across):
            continue
        rows, columns = mirrored(apart, across)
        place = mark[0] + rows, mark[1] + columns
        if abs(board.to_border(place) - board.to_border(same)) > 1:
            continue
        if board.place(turned(other, sides), *place):
            return [mark, same, place]
    return None


def difference(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] - b[0], a[1] - b[1]


def mirrored(step: tuple[int, int], axis: int) -> tuple[int, int]:
    """A step with its rows (axis 0) or columns (axis 1) turned round."""
    return (-step[0], step[1]) if axis == 0 else (step[0], -step[1])


def turned(curve: Curve, symmetry: int) -> Curve:
    """A curve under one of the symmetries of the square, somewhere on the plane."""
    down, right = (-1 if symmetry & 1 else 1), (-1 if symmetry & 2 else 1)
    if symmetry & 4:
        return [(right * column, down * row) for row, column in curve]
    return [(down * row, right * column) for row, column in curve]


def corners(curve: Curve) -> int:
    """Pixels at which a curve turns."""
    return sum(a[0] != c[0] and a[1] != c[1] for a, c in zip(curve, curve[2:], strict=False))


def draw_layouts(task: Task, stream: int, count: int) -> Layouts:
    """The first `count` layouts of a stream."""
    label = f"curves, {task.size}x{task.size}"
    numbers = tqdm(range(count), desc=label, unit="layout", leave=False, disable=count < 1000)
    curves, *rest = zip(*(draw_layout(task, stream, number) for number in numbers), strict=True)
    return Layouts(np.stack(curves), *(np.array(column, dtype=np.uint8) for column in rest))


def cached_layouts(task: Task, folder: Path) -> tuple[Layouts, Layouts]:
    """Training and held-out layouts, from the file in `folder` that is made where there is none."""
    path = folder / f"layouts-{task.key}.npz"
    names = [field.name for field in dataclasses.fields(Layouts)]
    folder.mkdir(parents=True, exist_ok=True)
    with claimed_file(path, wait=True):
        if not path.exists():
            sets = draw_layouts(task, TRAINING, task.layouts), draw_layouts(task, HELD_OUT, task.held_out)
            arrays = {
                f"{part}_{name}": getattr(layouts, name)
                for part, layouts in zip(PARTS, sets, strict=True)
                for name in names
            }
            with replacing(path) as file:
                np.savez_compressed(file, **arrays)
    with np.load(path) as arrays:
        return tuple(Layouts(*(arrays[f"{part}_{name}"] for name in names)) for part in PARTS)


def draw_pictures(
    layouts: Layouts, chosen: np.ndarray, labels: np.ndarray, symmetries: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, 2, S, S) float32 of 0 and 1, the curves and the marks; and the counts (n, S, S) int64.

    Counts are the marks on a pixel's curve, `NO_CURVE` where there is none.

    Args:
        chosen: (n,) numbers of layouts.
        labels: (n,) 1 for two ends of one curve, 0 for an end of each.
        symmetries: (n,) of 0 to 7, by which a picture is turned and reflected; None leaves them as they are.
    """
    count = np.arange(len(chosen))
    curves = layouts.curves[chosen]
    planes = np.zeros((len(chosen), CHANNELS + 1, *curves.shape[1:]), dtype=np.int8)
    planes[:, 0] = curves > 0
    for mark in (layouts.marks[chosen, 0], layouts.marks[chosen, np.where(labels, 1, 2)]):
        planes[count, 1, mark[:, 0], mark[:, 1]] = 1
    planes[:, 2] = np.where(labels[:, None], COUNTS[1], COUNTS[0])[count[:, None, None], curves]
    if symmetries is not None:
        for symmetry in range(1, SYMMETRIES):
            which = symmetries == symmetry
            found = np.rot90(planes[which], symmetry % 4, axes=(2, 3))
            planes[which] = found[..., ::-1] if symmetry >= 4 else found
    return planes[:, :CHANNELS].astype(np.float32), planes[:, CHANNELS].astype(np.int64)
