"""Token mixers: what moves information between the tokens of an image.

All have one interface, (B, H, W, C) -> (B, H, W, C), channels last: projections, the scan and attention take
tokens in that order, and a depthwise convolution sees the same memory as a `channels_last` image. Nothing is
permuted.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gspn_dit.models.basics import fan_in_normal_, normalize, relu_squared, xavier_
from gspn_dit.models.line_scan import LineScan
from gspn_dit.models.settings import ModelSettings
from ops import depthwise_conv as convolve
from ops.library import has_kernels
from ops.transforms import under_forward_mode


def create_mixer(settings: ModelSettings, segment: int | None) -> nn.Module:
    """The mixer that `settings` ask for; `segment` is that of the block's scan, None where it has none."""
    if settings.mixer == "attention":
        return AttentionMixer(settings.width, settings.heads)
    if settings.mixer == "conv_attention":
        return GatedConvMixer(settings, SelfAttention(settings.width, settings.heads))
    return GatedConvMixer(settings, LineScan(settings, segment))


class GatedConvMixer(nn.Module):
    """The GSPN module: convolution and gate around a `core`, the line scan in the paper (arXiv 2501.12381).

    1x1, depthwise 7x7, core, norm, 1x1, depthwise 3x3, gate x * relu(x), 1x1. The norm has no weights and is
    not in the paper: a line scan is of degree three in its input and the gate squares it, and a module of
    degree six has outputs with heavy tails, on which training is slow. The setting `module: paper` leaves it out.

    With a local path what the core receives stands beside what it returns, each with a norm of its own: a sum
    over whole lines drowns the token's own value, and one norm over both would not bring it back.
    """

    def __init__(self, settings: ModelSettings, core: nn.Module) -> None:
        super().__init__()
        width, wide = settings.width, settings.module_width
        first, second = settings.kernel_sizes
        self.module, self.local_path = settings.module, settings.local_path
        self.norm, self.conv_init = settings.norm, settings.conv_init
        self.proj_in = nn.Linear(width, width, bias=False)
        self.conv_in = depthwise_conv(width, first, bias=True)
        self.core = core
        self.proj_mid = nn.Linear(width, wide, bias=False)
        self.conv_mid = depthwise_conv(wide, second, bias=False)
        self.proj_out = nn.Linear(wide, width, bias=False)

    def initialize_weights(self) -> None:
        """Unit variance in, unit variance out, in every layer before the gate."""
        for layer in (self.proj_in, self.conv_in, self.proj_mid, self.conv_mid, self.proj_out):
            if isinstance(layer, DepthwiseConv):
                layer.draw_weights(self.conv_init)
            elif not isinstance(layer, nn.Identity):
                fan_in_normal_(layer.weight)

    def forward(self, x: torch.Tensor, *scales: torch.Tensor) -> torch.Tensor:
        """x (B, H, W, C); `scales` of the core's and of the local path, each (B, 1, 1, C), when modulated."""
        x = self.conv_in(self.proj_in(x))  # (B, H, W, C)
        x = self.conv_mid(self.proj_mid(self._beside(self.core(x), x, *scales)))  # (B, H, W, wide)
        return self.proj_out(relu_squared(x))

    def _beside(self, y: torch.Tensor, x: torch.Tensor, *scales: torch.Tensor) -> torch.Tensor:
        """The core's output y, with its input x where there is a local path."""
        if self.module == "paper":
            return y
        if self.local_path == "none":
            return normalize(y, self.norm)
        parts = [normalize(part, self.norm) for part in (y, x)]
        if self.local_path == "modulated":
            parts = [part * (1 + scale) for part, scale in zip(parts, scales, strict=True)]
        return parts[0] + parts[1]


class SelfAttention(nn.Module):
    """Multi-head softmax attention among all tokens, without its output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width)

    def initialize_weights(self) -> None:
        xavier_(self.to_qkv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.to_qkv(x).flatten(1, 2)  # (B, N, 3 * C)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(
            2, 0, 3, 1, 4
        )  # each (B, heads, N, C / heads)
        return self._attend(q, k, v).transpose(1, 2).reshape(x.shape)  # from (B, heads, N, C / heads)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling() and under_forward_mode():
            with sdpa_kernel(SDPBackend.MATH):  # torch's fused kernels have no forward mode
                return F.scaled_dot_product_attention(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)


class AttentionMixer(nn.Module):
    """The mixer of DiT (arXiv 2212.09748): attention and its output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.proj_out = nn.Linear(width, width)

    def initialize_weights(self) -> None:
        xavier_(self.proj_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj_out(self.attention(x))  # (B, H, W, C)


def depthwise_conv(width: int, kernel_size: int, bias: bool) -> nn.Module:
    """A `DepthwiseConv`; a kernel size of 0 is none."""
    return DepthwiseConv(width, kernel_size, bias) if kernel_size else nn.Identity()


class TokenConv(nn.Conv2d):
    """A convolution over channels-last tokens (B, H, W, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # views of channels_last memory


class DepthwiseConv(TokenConv):
    """A depthwise convolution over channels-last tokens (B, H, W, C), zero-padded to the same size."""

    def __init__(self, width: int, kernel_size: int, bias: bool) -> None:
        super().__init__(width, width, kernel_size, padding=kernel_size // 2, groups=width, bias=bias)

    def draw_weights(self, kind: str) -> None:
        """Weights of unit gain: random, or 1 at the centre and a tenth of those (identity); zero bias."""
        fan_in_normal_(self.weight, gain=0.1 if kind == "identity" else 1.0)
        if kind == "identity":
            with torch.no_grad():
                self.weight[:, :, self.kernel_size[0] // 2, self.kernel_size[1] // 2] += 1
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Where it is faster than torch's (benchmarks/bench_conv.py), most of all by the gradient of the weights, and in
        # half precision, for which torch has no depthwise kernel on the CPU, by a hundred times; on CUDA it is expected
        # to be, and not yet measured.
        if (self.kernel_size[0] > 3 or x.dtype.itemsize == 2) and (x.device.type == "cpu" or has_kernels(x)):
            return convolve(x, self.weight, self.bias)
        return super().forward(x)
