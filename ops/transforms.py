"""What makes the library's kernels operators that torch's transforms know: autograd, torch.func, dual numbers.

`torch.library.register_autograd` knows reverse mode alone: under it forward mode loses a tangent without a word, and
torch.func refuses. So each operator gets a kernel for the dispatch key Autograd here, as torch's own have one.
It is called once for each level of torch.func, sets up the derivatives of that level, and hands on to the one below.
"""

from collections.abc import Callable

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

_REGISTRY = torch.library.Library("gspn", "FRAGMENT")  # registrations live as long as it does


def register_derivatives(
    name: str,
    setup_context: Callable,
    backward: Callable,
    jvp: Callable,
    prepare: Callable = lambda inputs: inputs,
) -> None:
    """Give `torch.ops.gspn.NAME` its derivatives, by functions as those of torch.autograd.Function.

    Args:
        name: the operator, such as "scan".
        setup_context: (ctx, inputs, output), saves what the two below need.
        backward: (ctx, *gradients of the outputs) -> a gradient, or None, for every input.
        jvp: (ctx, saved, *tangents of the inputs, None where there is none) -> the tangents of the outputs;
            `saved` is what setup_context saved for forward mode.
        prepare: (inputs) -> the inputs of a call that derivatives are asked of.
    """
    operator = getattr(torch.ops.gspn, name).default

    def run(keys, inputs):
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *inputs)

    def forward(ctx, keys, *inputs):
        # A Function turns both modes off in its forward; the levels below have derivatives of their own.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            output = run(keys, inputs)
        setup_context(ctx, inputs, output)
        return output

    def forward_mode(ctx, keys, *tangents):
        # What is saved still carries this level's tangents, and forward mode is off for the levels below as well.
        saved = [torch._VF._unpack_dual(tensor, level=0)[0] for tensor in ctx.saved_tensors]
        with forward_ad._set_fwd_grad_enabled(True):
            return jvp(ctx, saved, *tangents)

    members = {
        "forward": forward,
        "backward": lambda ctx, *gradients: (None, *backward(ctx, *gradients)),
        "jvp": forward_mode,
    }
    members = {member: staticmethod(function) for member, function in members.items()}
    function = type(f"gspn_{name}", (_SingleLevelFunction,), members)

    def kernel(keys, *inputs):
        tracked = torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)
        if not tracked and not under_transform():
            return run(keys, inputs)
        with enable_single_level_autograd_function():
            return function.apply(keys, *prepare(inputs))

    _REGISTRY.impl(name, kernel, "Autograd", with_keyset=True)


def register_once_differentiable(name: str, public: str) -> None:
    """Make every derivative of `torch.ops.gspn.NAME`, the backward of the function called `public`, an error."""

    def refuse(ctx, *_):
        raise RuntimeError(
            f"{public} is differentiable once: its gradient has no derivative (a forward derivative is to be had by "
            "torch.func.jvp; of dual numbers, call backward after forward_ad.dual_level has ended)"
        )

    register_derivatives(name, lambda ctx, inputs, output: None, refuse, refuse)


def under_transform() -> bool:
    """Whether a transform of torch.func, or a level of dual numbers, is at work."""
    return under_forward_mode() or torch._C._are_functorch_transforms_active()


def under_forward_mode() -> bool:
    """Whether a level of dual numbers is at work, which torch.func.jvp has too."""
    return forward_ad._current_level >= 0


def fold(tensors: tuple[torch.Tensor, ...], dims: tuple[int | None, ...], size: int) -> list[torch.Tensor]:
    """The axis that vmap put at `dims` made the first one, of `size` where there was none (None); all contiguous."""
    folded = []
    for tensor, dim in zip(tensors, dims, strict=True):
        tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        folded.append(tensor.contiguous())
    return folded
