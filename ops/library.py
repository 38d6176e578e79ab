"""The compiled library: loading it, and what every operator asks of it before a call."""

from pathlib import Path

import torch

LIBRARY = Path(__file__).resolve().parent / "lib" / "libgspn.so"
OPERATORS = tuple(name + end for name in ("scan", "merge", "mix", "conv") for end in ("", "_backward"))


def _load() -> tuple[str, ...]:
    """Load the library; return the device types that it has kernels for, none when it is missing or outdated."""
    if not LIBRARY.exists():
        return ()
    torch.ops.load_library(str(LIBRARY))
    if not all(hasattr(torch.ops.gspn, name) for name in OPERATORS):
        return ()
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(kind for kind in ("cpu", "cuda") if has_kernel("gspn::scan", kind.upper()))


BACKENDS = _load()


def autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in autocast's dtype where it is on for their device; float64 stays as it is."""
    first = tensors[0]
    if not isinstance(first, torch.Tensor) or first.device.type == "meta":
        return tensors
    device = first.device.type
    if not torch.is_autocast_enabled(device) or first.dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in tensors)


def has_kernels(tensor: torch.Tensor) -> bool:
    """Whether the library has kernels for the device and the dtype of `tensor`."""
    device = tensor.device.type
    return device in BACKENDS and not (device == "cuda" and tensor.dtype == torch.float64)


def require_backend(name: str, tensor: torch.Tensor) -> None:
    """Raise RuntimeError or TypeError unless the library has kernels for `tensor`, the argument called `name`."""
    device = tensor.device.type
    if not BACKENDS:
        raise RuntimeError(
            "the scan is not built, or from older sources: run `make build` (or `python ops/build.py`)"
        )
    if device not in (*BACKENDS, "meta"):
        command = "make build CUDA=1" if device == "cuda" else "none exists"
        raise RuntimeError(
            f"the scan has no {device} kernels, only {', '.join(BACKENDS)}; to build them: {command}"
        )
    if device == "cuda" and tensor.dtype == torch.float64:
        raise TypeError(
            f"{name} has dtype torch.float64, which the kernels take on the CPU alone; expected torch.float32"
        )
