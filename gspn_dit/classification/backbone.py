"""The ImageNet backbone of GSPN (arXiv 2501.12381): four stages of line-scan blocks. See README.md."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gspn_dit.checks import check_images
from gspn_dit.classification.sizes import BackboneSettings, resolve_backbone
from gspn_dit.models.basics import fan_in_normal_, zero_
from gspn_dit.models.layers import MLP
from gspn_dit.models.line_scan import LineScan
from gspn_dit.models.mixers import DepthwiseConv, TokenConv
from gspn_dit.models.settings import resolve_settings

EPS = 1e-6
LEAST = 1e-30
"""Of a sum of squares under a root."""


def create_backbone(
    name: str, *, num_classes: int = 1000, features_only: bool = False, **settings: Any
) -> "Backbone":
    """Build a backbone, float32 on the current default device, freshly initialised.

    Args:
        name: "gspn_tiny", "gspn_small" or "gspn_base".
        num_classes: logits of the head; 0 for no head.
        features_only: give the four stages' maps; `feature_info` then has their channels and strides.
        settings: other fields of `BackboneSettings` (width, depths, stem_stride, drop_path_rate, scan, ...).

    Raises ValueError for an unknown name or setting, or a value out of range.
    """
    return Backbone(resolve_backbone(name, num_classes=num_classes, features_only=features_only, **settings))


class FeatureInfo(list):
    """What the maps of `features_only` are, in timm's manner: a list of dicts, with a method for each column."""

    def channels(self) -> list[int]:
        return [stage["num_chs"] for stage in self]

    def reduction(self) -> list[int]:
        """Pixels of the picture from one place of a map to the next."""
        return [stage["reduction"] for stage in self]

    def module_name(self) -> list[str]:
        return [stage["module"] for stage in self]


class GlobalResponseNorm(nn.Module):
    """Scales each channel by its share of the picture's response (ConvNeXt V2, arXiv 2301.00808, section 3).

    g_c = ||x_c||_2 over the places, n_c = g_c / mean over the channels of g: x + gamma (x n) + beta, the identity at
    the start.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # On a CPU torch's vector_norm over these axes is several times slower. The least keeps the root's gradient.
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square()
        response = squares.sum(dim=(1, 2), keepdim=True).clamp_min(LEAST).sqrt().to(x.dtype)  # (B, 1, 1, C)
        share = response / (response.mean(dim=-1, keepdim=True) + EPS)
        return torch.addcmul(self.beta, x, 1 + self.gamma * share)


class BackboneMixer(nn.Module):
    """1x1 to D = 3/2 C, depthwise 7x7, line scan with a map for every channel, norm, response norm, 1x1 to C."""

    def __init__(self, settings: BackboneSettings, width: int, segment: int) -> None:
        super().__init__()
        wide = width * 3 // 2
        # The paper's scan for D channels: G = D, four merge weights; and a skip for each direction.
        scan = resolve_settings(
            "GSPN-S/2", width=wide, bottleneck=settings.rank, direction_skip=True, scan=settings.scan
        )
        self.proj_in = nn.Linear(width, wide, bias=False)
        self.conv = DepthwiseConv(wide, 7, bias=False)
        self.core = LineScan(scan, segment)
        self.norm = nn.LayerNorm(wide, eps=EPS)
        self.response_norm = GlobalResponseNorm(wide)
        self.proj_out = nn.Linear(wide, width, bias=False)

    def initialize_weights(self) -> None:
        fan_in_normal_(self.proj_in.weight)
        self.conv.draw_weights("identity")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.core(self.conv(self.proj_in(x)))  # (B, H, W, D)
        return self.proj_out(self.response_norm(self.norm(x)))  # (B, H, W, C)


class BackboneBlock(nn.Module):
    """Mixer and MLP, each after a norm and before a residual sum that training leaves out now and then."""

    def __init__(self, settings: BackboneSettings, width: int, segment: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm_mixer = nn.LayerNorm(width, eps=EPS)
        self.mixer = BackboneMixer(settings, width, segment)
        self.norm_mlp = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, int(width * settings.mlp_ratio), approximate="none")

    def residual_ends(self) -> tuple[nn.Module, nn.Module]:
        return self.mixer.proj_out, self.mlp.out

    def forward(self, x: torch.Tensor, paths: torch.Tensor | None) -> torch.Tensor:
        """x (B, H, W, C); `paths` (B, 2) uniform in [0, 1), one for each branch, None to keep all."""
        x = x + self._kept(self.mixer(self.norm_mixer(x)), paths, 0)
        return x + self._kept(self.mlp(self.norm_mlp(x)), paths, 1)

    def _kept(self, branch: torch.Tensor, paths: torch.Tensor | None, number: int) -> torch.Tensor:
        """Stochastic depth by image (arXiv 1603.09382): 0 at `drop_rate`, else larger, so that the mean stays."""
        if paths is None or not self.drop_rate:
            return branch
        scale = (paths[:, number] >= self.drop_rate) / (1 - self.drop_rate)
        return branch * scale.to(branch.dtype).view(-1, 1, 1, 1)


class Stem(nn.Module):
    """Conv 3x3 to C/2, norm, GELU, conv 3x3 to C, norm; the stride is that of both together."""

    def __init__(self, in_chans: int, width: int, stride: int) -> None:
        super().__init__()
        first, second = {4: (2, 2), 2: (2, 1), 1: (1, 1)}[stride]
        self.conv1 = TokenConv(in_chans, width // 2, 3, stride=first, padding=1)
        self.norm1 = nn.LayerNorm(width // 2, eps=EPS)
        self.conv2 = TokenConv(width // 2, width, 3, stride=second, padding=1)
        self.norm2 = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))  # (B, H / stride, W / stride, C)


class Stage(nn.Module):
    """Blocks on one grid, after the convolution of stride 2 and its norm that lead to it; the first has none."""

    def __init__(self, settings: BackboneSettings, number: int) -> None:
        super().__init__()
        width, before = settings.widths[number], sum(settings.depths[:number])
        self.down = nn.Identity()
        if number:
            conv = TokenConv(settings.widths[number - 1], width, 3, stride=2, padding=1)
            self.down = nn.Sequential(conv, nn.LayerNorm(width, eps=EPS))
        self.blocks = nn.ModuleList(
            BackboneBlock(
                settings, width, settings.segment_of(number, block), settings.drop_rates[before + block]
            )
            for block in range(settings.depths[number])
        )


class Backbone(nn.Module):
    """Pictures (B, 3, H, W) of any size to logits (B, classes), or to the stages' maps with `features_only`."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.settings = settings
        self.config = settings.to_dict()
        self.num_classes, self.num_features = settings.num_classes, settings.widths[-1]
        self.feature_info = FeatureInfo(
            {"num_chs": settings.widths[n], "reduction": settings.strides[n], "module": f"stages.{n}"}
            for n in settings.out_indices
        )
        self.stem = Stem(settings.in_chans, settings.width, settings.stem_stride)
        self.stages = nn.ModuleList(Stage(settings, number) for number in range(len(settings.depths)))
        if not settings.features_only:
            self.norm = nn.LayerNorm(self.num_features, eps=EPS)
            self.reset_classifier(settings.num_classes)
        self.initialize_weights()

    @property
    def branches(self) -> int:
        """Residual branches: the columns of `paths`."""
        return 2 * sum(self.settings.depths)

    def reset_classifier(self, num_classes: int) -> None:
        """A new head with small random weights; none for 0 classes."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self._draw_head()

    def get_classifier(self) -> nn.Module:
        return self.head

    def initialize_weights(self) -> None:
        """Unit variance in, unit variance out, and every residual branch at zero: each block is the identity.

        The 7x7 starts near the identity, which in DiG's networks was worth a third of the FID.
        """
        for module in self.modules():
            if type(module) is TokenConv:  # of the stem, and between stages
                fan_in_normal_(module.weight)
                nn.init.zeros_(module.bias)
            elif module is not self and hasattr(module, "initialize_weights"):
                module.initialize_weights()
        for module in self.modules():
            if isinstance(module, BackboneBlock):
                for layer in module.residual_ends():
                    zero_(layer)
        if not self.settings.features_only:
            self._draw_head()

    def _draw_head(self) -> None:
        if self.num_classes:
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(
        self, x: torch.Tensor, paths: torch.Tensor | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Logits of pictures x (B, in_chans, H, W); with `features_only` the maps (B, C, H, W) of `out_indices`.

        `paths` (B, branches), uniform in [0, 1), decide which residual branches training leaves out; without them
        torch's own generator draws. In eval mode all are kept. Raises ValueError for x of another kind or shape, or
        smaller than the stem's stride.
        """
        if self.settings.features_only:
            maps = self._tokens(x, paths)
            return [maps[n].permute(0, 3, 1, 2) for n in self.settings.out_indices]
        return self.forward_head(self.forward_features(x, paths))

    def forward_features(self, x: torch.Tensor, paths: torch.Tensor | None = None) -> torch.Tensor:
        """The last stage's map after its norm, (B, C, H, W)."""
        return self.norm(self._tokens(x, paths)[-1]).permute(0, 3, 1, 2)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits (B, classes) of such a map; its mean over the places (B, C) with `pre_logits`."""
        x = x.mean(dim=(2, 3))
        return x if pre_logits else self.head(x)

    def _tokens(self, x: torch.Tensor, paths: torch.Tensor | None) -> list[torch.Tensor]:
        """What each stage ends with, (B, H, W, C)."""
        self._check_input(x)
        if not self.training:
            paths = None
        elif paths is None and self.settings.drop_path_rate:
            paths = torch.rand(x.shape[0], self.branches, device=x.device)
        dtype = self.stem.conv1.weight.dtype
        x = self.stem(x.to(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        maps, number = [], 0
        last = max(self.settings.out_indices) if self.settings.features_only else len(self.stages) - 1
        for stage in self.stages[: last + 1]:
            x = stage.down(x).to(dtype)  # autocast rounds the branches, not the residual stream
            for block in stage.blocks:
                x = self._run(block, x, None if paths is None else paths[:, number : number + 2])
                number += 2
            maps.append(x)
        return maps

    def _run(self, block: nn.Module, x: torch.Tensor, paths: torch.Tensor | None) -> torch.Tensor:
        if self.settings.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, x, paths, use_reentrant=False, preserve_rng_state=False)
        return block(x, paths)

    def _check_input(self, x: torch.Tensor) -> None:
        check_images("x", x)
        channels, least = self.settings.in_chans, self.settings.stem_stride
        if x.shape[1] != channels or x.shape[2] < least or x.shape[3] < least:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected (B, {channels}, H, W) with H and W of {least} or more, the "
                "stride of the stem"
            )
