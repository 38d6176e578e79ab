"""One assertion and one table of tolerances for every comparison with a reference."""

import torch

# Largest error relative to the largest element of the reference: some ulps of the storage type, no more.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_near(
    actual: torch.Tensor, expected: torch.Tensor, name: str = "result", tolerance: float | None = None
):
    """Compare shape and values; the message names the worst element, its index and both values."""
    assert actual.shape == expected.shape, (
        f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    if actual.numel() == 0:
        return
    tolerance = TOLERANCES[actual.dtype] if tolerance is None else tolerance
    got, want = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert got.isfinite().all(), f"{name}: {(~got.isfinite()).sum()} of {got.numel()} elements are not finite"
    error = (got - want).abs()
    worst = int(error.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), got.shape))
    limit = tolerance * max(float(want.abs().max()), 1e-3)
    assert error.max() <= limit, (
        f"{name} ({actual.dtype}, {actual.device}): error {error.max():.3e} > {limit:.3e} at {index}: "
        f"{got.flatten()[worst]:.8g}, expected {want.flatten()[worst]:.8g}"
    )
