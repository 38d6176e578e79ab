"""The norms under autocast: half precision in and out, statistics in float32."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gspn_dit.models.basics import modulate, normalize
from gspn_dit.models.mixers import create_mixer
from gspn_dit.models.settings import resolve_settings

from .tiny import TINY, model

HALVES = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # and the most of a number that one rounding changes


def norm_in_float64(x, kind):
    x = x.double()
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def maps(dtype, mean=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 5, 7, 96, generator=generator, dtype=torch.float64) + mean).to(dtype)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_a_norm_under_autocast_is_rounded_once(kind, dtype, mean):
    """Far from zero statistics of half precision would be of no use."""
    x = maps(dtype, mean).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = normalize(x, kind)
    expected = norm_in_float64(x, kind)
    assert y.dtype == dtype
    error = (y.double() - expected).abs()
    assert (error <= HALVES[dtype] * expected.abs() + 2e-5).all()


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradient_under_autocast(kind, dtype):
    x, grad_y = maps(dtype).requires_grad_(), maps(dtype, seed=1)
    wide = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(norm_in_float64(wide, kind), wide, grad_y.double())
    with torch.autocast("cpu", dtype):
        y = normalize(x, kind)
    (found,) = torch.autograd.grad(y, x, grad_y)
    assert found.dtype == dtype
    assert ((found.double() - wanted).abs() <= 2 * HALVES[dtype] * wanted.abs().max()).all()


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_modulated_norm_under_autocast(kind):
    x, shift, scale = (
        maps(torch.bfloat16),
        maps(torch.bfloat16, seed=1)[:, :1, :1],
        maps(torch.bfloat16, seed=2)[:, :1, :1],
    )
    with torch.autocast("cpu", torch.bfloat16):
        y = modulate(normalize(x, kind), shift, scale)
    expected = norm_in_float64(x, kind) * (1 + scale.double()) + shift.double()
    assert y.dtype == torch.bfloat16
    assert ((y.double() - expected).abs() <= 2**-6 * (expected.abs() + 1)).all()


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_float32_stays_float32(kind):
    with torch.autocast("cpu", torch.bfloat16):
        assert normalize(maps(torch.float32), kind).dtype == torch.float32


class Widened(TorchDispatchMode):
    """Counts the maps of `elements` that an operation writes in float32."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.found = elements, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            wide = isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
            if wide and tensor.numel() >= self.elements:
                self.found.append(str(function))
        return result


@pytest.mark.parametrize("local_path", ["none", "modulated"])
def test_no_map_of_a_mixer_or_of_a_block_is_widened(local_path):
    settings = resolve_settings("GSPN-DiT-S/4", **{**TINY, "local_path": local_path})
    mixer = create_mixer(settings, 0)
    scales = [torch.zeros(2, 1, 1, settings.width, dtype=torch.bfloat16)] * (
        2 if local_path == "modulated" else 0
    )
    x = torch.randn(2, 7, 9, settings.width).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Widened(x.numel()) as widened:
        mixer(x, *scales)
    assert not widened.found
    network = model(local_path=local_path)
    tokens = torch.randn(2, 7, 9, settings.width).bfloat16()
    condition = torch.randn(2, settings.width).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Widened(tokens.numel()) as widened:
        network.blocks[0](tokens, condition)
    assert not widened.found
