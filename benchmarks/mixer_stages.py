"""GSPN-DiT's mixer in its stages, each a function of tensors that are at hand: for the benchmarks on CPU and GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gspn_dit.models import line_scan, mixers
from gspn_dit.models.basics import normalize, relu_squared
from gspn_dit.models.line_scan import DIRECTIONS
from ops import gated_merge, gspn_mix, gspn_scan

FORMULA = ", as a formula"  # ends the names of what the mixer did before in several passes


class Stage(NamedTuple):
    """A part of the mixer's forward pass."""

    name: str
    run: Callable[..., object]
    inputs: tuple[torch.Tensor, ...]  # leaves, of which `run` is called

    def gradients(self, outputs, grads) -> tuple[torch.Tensor, ...]:
        """The backward pass of `outputs`, which stays possible."""
        return torch.autograd.grad(outputs, self.inputs, grads, retain_graph=True)


def merge_by_formula(h: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return (u * h).sum(-2)


def mix_by_formula(
    x: torch.Tensor, lam: torch.Tensor, logits: torch.Tensor, u: torch.Tensor, *settings
) -> torch.Tensor:
    return merge_by_formula(gspn_scan(x, lam, logits, *settings), u)


def relu_squared_by_formula(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


@contextmanager
def by_formula() -> Iterator[None]:
    """Every mixer as before its passes over memory were joined."""
    joined = line_scan.gspn_mix, mixers.relu_squared
    line_scan.gspn_mix, mixers.relu_squared = mix_by_formula, relu_squared_by_formula
    try:
        yield
    finally:
        line_scan.gspn_mix, mixers.relu_squared = joined


def mixer_stages(mixer: nn.Module, x: torch.Tensor) -> list[Stage]:
    """The stages of a GSPN mixer for tokens x (B, H, W, C), with the inputs that they have in a forward pass."""
    core, stages = mixer.core, []

    def add(name: str, run: Callable[..., object], *inputs: torch.Tensor):
        leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        stages.append(Stage(name, run, leaves))
        with torch.no_grad():
            return run(*leaves)

    def project(z: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(F.linear(z, weight) for weight in weights)

    def convolve(conv: nn.Module) -> Callable[..., torch.Tensor]:
        return lambda tensor, *parameters: torch.func.functional_call(
            conv, dict(zip(dict(conv.named_parameters()), parameters, strict=True)), (tensor,)
        )

    directions = len(DIRECTIONS)
    a = add("1x1 in", F.linear, x, mixer.proj_in.weight)
    b = add("depthwise 7x7", convolve(mixer.conv_in), a, *mixer.conv_in.parameters())
    z = add("bottleneck", F.linear, b, core.bottleneck.weight)
    maps = add("lam, u and logits", project, z, core.to_lam.weight, core.to_u.weight, core.to_logits.weight)
    lam, u = (tensor.unflatten(-1, (directions, -1)) for tensor in maps[:2])
    logits = maps[2].unflatten(-1, (directions, 3, -1))
    mix = add(
        "scan, gate and merge", lambda *inputs: gspn_mix(*inputs, segment=core.segment), b, lam, logits, u
    )
    h = add("scan alone", lambda *inputs: gspn_scan(*inputs, segment=core.segment), b, lam, logits)
    add("merge alone", gated_merge, h, u)
    add("merge alone" + FORMULA, merge_by_formula, h, u)
    c = add("1x1 mid", F.linear, add("norm", normalize, mix), mixer.proj_mid.weight)
    d = add("depthwise 3x3", convolve(mixer.conv_mid), c, *mixer.conv_mid.parameters())
    e = add("relu squared", relu_squared, d)
    add("relu squared" + FORMULA, relu_squared_by_formula, d)
    add("1x1 out", F.linear, e, mixer.proj_out.weight)
    return stages
