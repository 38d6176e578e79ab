"""The FLOP counts of the operators, against counting every operation of the formulas as they are written."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import ops.flops  # noqa: F401 (makes the counter know the operators)
from ops import gated_merge, gspn_mix, gspn_scan
from tests.ops.cases import make_inputs


class Counted:
    """A number none of whose operations goes uncounted."""

    total = 0

    def operation(self, *_) -> "Counted":
        Counted.total += 1
        return self

    __add__ = __mul__ = __sub__ = __truediv__ = operation

    def sigmoid(self) -> "Counted":
        one = Counted()
        return one / (one + self.operation())  # the exponential


def add_up(terms: list[Counted]) -> Counted:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def lines_of(height: int, width: int, direction: str) -> tuple[int, int]:
    return (width, height) if direction in ("right", "left") else (height, width)


def neighbours(place: int, length: int) -> list[int]:
    return [other for other in (place - 1, place, place + 1) if 0 <= other < length]


def weights(count: int, normalization: str) -> list[Counted]:
    if normalization == "none":
        return [Counted()] * count
    sigmoids = [Counted().sigmoid() for _ in range(count)]
    if normalization == "sigmoid":
        return sigmoids
    total = add_up(sigmoids)
    return [sigmoid / total for sigmoid in sigmoids]


def forward(lines: int, length: int, channels: int, groups: int, segment: int, normalization: str) -> None:
    """Equations (1) and (2) of ops/README.md, in one direction of one image."""
    for line in range(lines):
        for place in range(length):
            first = line == 0 or (segment and line % segment == 0)
            count = len(neighbours(place, length))
            if not first:
                for _ in range(groups):
                    weights(count, normalization)
            for _ in range(channels):
                h = Counted() * Counted()
                for _ in range(0 if first else count):
                    h = h + Counted() * Counted()


def backward(lines: int, length: int, channels: int, groups: int, segment: int, normalization: str) -> None:
    """Equations (3) and (4), but for the sum of dx over the directions."""
    for line in range(lines):
        for place in range(length):
            last = line == lines - 1 or (segment and (line + 1) % segment == 0)
            first = line == 0 or (segment and line % segment == 0)
            count = len(neighbours(place, length))
            for _ in range(channels):
                g = Counted()
                for _ in range(0 if last else count):
                    g = g + Counted() * g
                _ = Counted() * g, Counted() * g  # lam g, x g
            if not first:
                for _ in range(groups):
                    logits_backward(count, channels // groups, normalization)


def logits_backward(count: int, shared: int, normalization: str) -> None:
    products = [add_up([Counted() * Counted() for _ in range(shared)]) for _ in range(count)]
    w = weights(count, normalization)
    if normalization == "none":
        return
    mean = None
    if normalization == "row_stochastic":
        mean = add_up([a * b for a, b in zip(w, products, strict=True)])
    for product, weight in zip(products, w, strict=True):
        _ = weight * (Counted() - Counted()) * (product if mean is None else product - mean)


@pytest.mark.parametrize("normalization", ["row_stochastic", "sigmoid", "none"])
@pytest.mark.parametrize("segment", [0, 1, 2])
@pytest.mark.parametrize("directions", [("right", "left", "down", "up"), ("down",)])
@pytest.mark.parametrize(("height", "width"), [(3, 5), (4, 1)])
def test_scan_is_counted_operation_by_operation(height, width, directions, segment, normalization):
    batch, channels, groups = 2, 6, 3
    count = len(directions)
    inputs = make_inputs(batch, height, width, channels, groups, count, torch.float32)
    with FlopCounterMode(display=False) as counter:
        h = gspn_scan(*inputs, directions, segment, normalization)
        h.sum().backward()
    found = counter.get_flop_counts()["Global"]
    for operator, formulas in ((torch.ops.gspn.scan, forward), (torch.ops.gspn.scan_backward, backward)):
        Counted.total = 0
        for direction in directions:
            formulas(*lines_of(height, width, direction), channels, groups, segment, normalization)
        if formulas is backward:
            Counted.total += (count - 1) * height * width * channels  # dx over the directions
        assert found[operator] == batch * Counted.total


def test_merge_is_counted():
    h, u = torch.randn(2, 2, 3, 4, 5, 6).requires_grad_().unbind()
    with FlopCounterMode(display=False) as counter:
        gated_merge(h, u).sum().backward()
    found = counter.get_flop_counts()["Global"]
    assert found[torch.ops.gspn.merge] == 2 * 3 * 4 * 6 * (5 + 4)
    assert found[torch.ops.gspn.merge_backward] == 2 * 3 * 4 * 6 * (5 + 5)


@pytest.mark.parametrize("gated", [True, False])
def test_mix_is_counted_as_its_two_parts(gated):
    """Without gates the read-out is K - 1 sums, and its gradient is dy as it is."""
    x, lam, logits = make_inputs(2, 3, 5, 6, 3, 4, torch.float32)
    u = lam.detach().clone().requires_grad_() if gated else None
    with FlopCounterMode(display=False) as counter:
        gspn_mix(x, lam, logits, u).sum().backward()
    mixed = counter.get_flop_counts()["Global"]
    with FlopCounterMode(display=False) as counter:
        h = gspn_scan(x, lam, logits)
        (gated_merge(h, u) if gated else h.sum(3)).sum().backward()
    parts = counter.get_flop_counts()["Global"]
    more = (0, 0) if gated else (3 * x.numel(), 0)
    for i, name in enumerate(("", "_backward")):
        expected = sum(parts.get(getattr(torch.ops.gspn, part + name), 0) for part in ("scan", "merge"))
        assert mixed[getattr(torch.ops.gspn, "mix" + name)] == expected + more[i]


def test_fake_tensors_are_counted_too():
    inputs = make_inputs(1, 4, 4, 6, 3, 4, torch.float32)
    counts = []
    for device in ("cpu", "meta"):
        with FlopCounterMode(display=False) as counter:
            gspn_scan(*(tensor.to(device) for tensor in inputs))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
