"""What the operators accept, checked once for the compiled ones and for their references."""

import torch

DIRECTIONS = ("right", "left", "down", "up")
NORMALIZATIONS = ("row_stochastic", "sigmoid", "none")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_arguments(
    x: torch.Tensor,
    lam: torch.Tensor,
    logits: torch.Tensor,
    directions: tuple[str, ...],
    segment: int,
    normalization: str,
) -> None:
    """Raise TypeError or ValueError that names the argument, its value and what was expected."""
    check_mix(x, lam, logits, None, directions, segment, normalization)


def check_mix(
    x: torch.Tensor,
    lam: torch.Tensor,
    logits: torch.Tensor,
    u: torch.Tensor | None,
    directions: tuple[str, ...],
    segment: int,
    normalization: str,
) -> None:
    """Raise TypeError or ValueError as `check_arguments` does; u is like lam, or None."""
    gates = {} if u is None else {"u": u}
    _check_tensors(x=x, lam=lam, logits=logits, **gates)
    _check_directions(directions)
    _check_shapes(x, lam, logits, len(directions))
    if isinstance(segment, bool) or not isinstance(segment, int):
        raise TypeError(f"segment is {segment!r}; expected an int")
    if segment < 0:
        raise ValueError(
            f"segment is {segment}; expected 0 (global) or the lines after which a scan restarts"
        )
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is {normalization!r}; expected one of {', '.join(NORMALIZATIONS)}")
    if u is not None and u.shape != lam.shape:
        raise ValueError(f"u has shape {tuple(u.shape)}; expected {tuple(lam.shape)}, the shape of lam")


def check_merge(h: torch.Tensor, u: torch.Tensor) -> None:
    """Raise TypeError or ValueError as `check_arguments` does."""
    _check_tensors(h=h, u=u)
    if h.dim() < 2:
        raise ValueError(f"h has shape {tuple(h.shape)}; expected (..., K, C)")
    if h.shape[-2] < 1:
        raise ValueError(f"h has shape {tuple(h.shape)}; expected (..., K, C) with at least one direction")
    if u.shape != h.shape:
        raise ValueError(f"u has shape {tuple(u.shape)}; expected {tuple(h.shape)}, the shape of h")


def check_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
) -> None:
    """Raise TypeError or ValueError as `check_arguments` does."""
    _check_tensors(x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, H, W, C)")
    channels, sizes = x.shape[3], (3, 5, 7)
    if weight.dim() != 4 or weight.shape[:2] != (channels, 1) or weight.shape[2] != weight.shape[3]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected (C, 1, k, k) with C = {channels} for x {tuple(x.shape)}"
        )
    if weight.shape[2] not in sizes:
        raise ValueError(f"weight has a kernel of {weight.shape[2]}; expected one of {sizes}")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected ({channels},), the channels of x")
    if activation not in (None, "relu_squared"):
        raise ValueError(f"activation is {activation!r}; expected None or 'relu_squared'")


def _check_tensors(**tensors: torch.Tensor) -> None:
    """All are tensors of one dtype that the kernels know, on one device: those of the first."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; expected a torch.Tensor")
    lead, first = next(iter(tensors.items()))
    if first.dtype not in DTYPES:
        raise TypeError(f"{lead} has dtype {first.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected {first.dtype}, the dtype of {lead}")
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {first.device}, the device of {lead}")


def _check_directions(directions: tuple[str, ...]) -> None:
    if isinstance(directions, str) or not isinstance(directions, (tuple, list)):
        raise TypeError(f"directions is {directions!r}; expected a tuple such as ('right', 'down')")
    if not directions:
        raise ValueError("directions is empty; expected at least one of " + ", ".join(DIRECTIONS))
    for direction in directions:
        if direction not in DIRECTIONS:
            raise ValueError(f"directions has {direction!r}; expected only {', '.join(DIRECTIONS)}")
    if len(set(directions)) != len(directions):
        raise ValueError(f"directions is {tuple(directions)}; expected no direction twice")


def _check_shapes(x: torch.Tensor, lam: torch.Tensor, logits: torch.Tensor, count: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, H, W, C)")
    batch, height, width, channels = x.shape
    if lam.shape != (batch, height, width, count, channels):
        raise ValueError(
            f"lam has shape {tuple(lam.shape)}; expected (B, H, W, K, C) = "
            f"{(batch, height, width, count, channels)} for x {tuple(x.shape)} and {count} directions"
        )
    if logits.dim() != 6 or logits.shape[:5] != (batch, height, width, count, 3):
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}; expected (B, H, W, K, 3, G) = "
            f"{(batch, height, width, count, 3, 'G')} for x {tuple(x.shape)} and {count} directions"
        )
    groups = logits.shape[5]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"logits has G = {groups} groups; expected a divisor of the {channels} channels of x"
        )
