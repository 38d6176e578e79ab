"""What the public functions check of the tensors that they are given: the message names the argument.

Shapes and dtypes are checked always, they cost nothing. Values are looked at only where they lie in this process's
memory: on a GPU the check would wait for the device, under compilation, export, tracing or a transform there
are none.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode


class NotFinite(FloatingPointError):
    """A result holds NaN or infinity; `place` is that of the first such image in its batch."""

    def __init__(self, what: str, place: int) -> None:
        super().__init__(f"image {place} of the batch: {what}")
        self.what, self.place = what, place


def check_finite(values: torch.Tensor, what: str) -> None:
    """Raise `NotFinite` for the first image of (B, ...) that holds NaN or infinity; waits for the device."""
    finite = values.flatten(1).isfinite().all(dim=1)  # (B,)
    if not finite.all():
        place = int((~finite).nonzero()[0])
        raise NotFinite(f"{what} not finite", place)


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where there is none."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def check_batch(name: str, value: torch.Tensor, length: int) -> None:
    """Raise ValueError unless `value` is a tensor of one number for each of `length` images."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(
            f"{name} is a {type(value).__name__}; expected a tensor ({length},), one for each image"
        )
    if value.shape != (length,):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; expected (B,) = ({length},), one for each image"
        )


def check_times(t: torch.Tensor, length: int, name: str = "t") -> None:
    """Raise ValueError unless t is (B,) real numbers."""
    check_batch(name, t, length)
    if t.dtype == torch.bool or t.is_complex():
        raise ValueError(f"{name} is {t.dtype}; expected real numbers")


def check_labels(y: torch.Tensor, num_classes: int, length: int | None = None, name: str = "y") -> None:
    """Raise ValueError unless y is (B,) int64 or int32 labels from 0 to `num_classes`, the null label.

    `length` is B; None takes any. On a GPU the labels' values are not looked at: give `y.cpu()` to have them be.
    """
    if length is None:
        length = y.shape[0] if isinstance(y, torch.Tensor) and y.dim() else 0
    check_batch(name, y, length)
    if y.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} is {y.dtype}; expected labels as int64 (or int32)")
    values = visible(y)
    if values is None or not values.size:
        return
    low, high = values.min(), values.max()
    if low < 0 or high > num_classes:
        raise ValueError(
            f"{name} holds {low if low < 0 else high}; expected 0 to {num_classes - 1}, "
            f"or {num_classes} for no class"
        )


def check_images(name: str, value: torch.Tensor, shape: torch.Size | tuple[int, ...] | None = None) -> None:
    """Raise ValueError unless `value` is a tensor (B, C, H, W) of floating point, and of `shape` where it is given."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"{name} is {found}; expected a tensor (B, C, H, W) of floating point")
    if value.dim() != 4 or (shape is not None and value.shape != shape):
        expected = "(B, C, H, W)" if shape is None else tuple(shape)
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {expected}")


def check_noising(x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> None:
    """Raise ValueError unless x0 and noise are (B, C, H, W) alike and t is (B,): others might be broadcast."""
    check_images("x0", x0)
    check_images("noise", noise, x0.shape)
    check_times(t, x0.shape[0])


def visible(tensor: torch.Tensor) -> np.ndarray | None:
    """The values of a tensor where they can be had without waiting for a device; None where not."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or tensor.device.type != "cpu":
        return None
    if _get_current_dispatch_mode() is not None:  # fake tensors, or a trace
        return None
    try:
        return tensor.numpy()  # a view, not a copy
    except (RuntimeError, TypeError):  # sharded, or within a transform such as vmap: there are no values
        return None
