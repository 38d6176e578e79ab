"""The denoising networks, `create_model` and `from_pretrained`.

Both families are called alike: model(x (B, C, H, W), t (B,), y (B,)) -> (B, 2C or C, H, W).
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gspn_dit.checks import check_images, check_labels, check_times
from gspn_dit.errors import UserError
from gspn_dit.models import weights
from gspn_dit.models.basics import modulate, normalize, zero_
from gspn_dit.models.layers import (
    MLPS,
    FinalLayer,
    LabelEmbedding,
    PatchEmbedding,
    PositionEmbedding,
    TimestepEmbedding,
)
from gspn_dit.models.mixers import create_mixer
from gspn_dit.models.settings import ModelSettings, resolve_settings


def create_model(name: str, **overrides) -> nn.Module:
    """Build the model of this name, float32 on the current default device, freshly initialised.

    `overrides` are fields of `ModelSettings`; `model.config` holds all of them, so that
    `create_model(**model.config)` builds the same model. Raises ValueError for an unknown name or a bad
    override.
    """
    settings = resolve_settings(name, **overrides)
    return GSPN(settings) if settings.family == "GSPN" else DiT(settings)


def from_pretrained(name: str | Path, *, device: str = "cpu") -> nn.Module:
    """The model in a folder or on the hub, in eval mode, whatever its family.

    Raises `UserError` when there is none, or its weights do not fit its settings.
    """
    folder = weights.find_folder(name)
    try:
        model = create_model(**weights.read_settings(folder))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder} has no usable config.json ({error}): expected what save_pretrained writes"
        ) from error
    weights.load_weights(model, folder / weights.WEIGHTS)
    return model.to(device).eval()


class Denoiser(nn.Module):
    """Embeddings in, blocks in the middle (a subclass's `process`), final layer out."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.config = settings.to_dict()
        self.input_size = settings.input_size
        self.in_channels = settings.in_channels
        self.num_classes = settings.num_classes
        self.embed_patches = PatchEmbedding(settings.patch_size, settings.in_channels, settings.width)
        self.embed_position = None
        if settings.position != "none":
            grid = settings.input_size // settings.patch_size
            self.embed_position = PositionEmbedding(settings.position, grid, settings.width)
        self.embed_time = TimestepEmbedding(settings.width, settings.time_scale, settings.time_frequencies)
        self.embed_label = LabelEmbedding(settings.num_classes, settings.width, settings.label_std)
        self.final = self._final_layer()
        self.auxiliary: FinalLayer | None = None

    def _final_layer(self) -> FinalLayer:
        settings = self.settings
        return FinalLayer(settings.patch_size, settings.width, settings.out_channels, settings.norm)

    def initialize_weights(self) -> None:
        """Draw all weights, and fill the buffers: what a model built on meta needs after `to_empty`.

        Whatever ends a residual branch or the model starts at zero (adaLN-Zero, arXiv 2212.09748, section
        3.2): each block is the identity and the prediction is zero.
        """
        for module in self.modules():
            if module is not self and hasattr(module, "initialize_weights"):
                module.initialize_weights()
        heads = [self.final] if self.auxiliary is None else [self.final, self.auxiliary]
        for layer in (*heads, *self.residual_ends()):
            zero_(layer)

    def residual_ends(self) -> list[nn.Module]:
        """The layers inside the blocks that start at zero."""
        raise NotImplementedError  # abstract: the layers are those of the family

    def process(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the blocks on tokens x (B, H, W, C) with the embedding of t and y, condition (B, C).

        Returns the last block's tokens, and those that an auxiliary head reads, None where there is no head.
        """
        raise NotImplementedError  # abstract: each family arranges its own blocks

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, *, auxiliary: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Predict from the noisy latent x (B, C, H, W), its time t (B,) and its label y (B,).

        Returns (B, 2C, H, W) with `learn_sigma`, noise before variance, else (B, C, H, W); with `auxiliary` two of
        them, the second that of the auxiliary head (see `ModelConfig.auxiliary_head`). A model without positional
        embedding takes any H and W that the patch size divides. Raises ValueError for another shape or dtype of x,
        t (real numbers) or y (int64 or int32), for `auxiliary` without the head, and for a label out of range; on a
        GPU, where looking at labels would wait for it, `gspn_dit.checks.check_labels(y.cpu(), num_classes)` does that.
        """
        self._check_input(x, t, y)
        if auxiliary and self.auxiliary is None:
            raise ValueError(
                "auxiliary is True; expected False: the model has no auxiliary head (auxiliary_head)"
            )
        condition = self.embed_time(t) + self.embed_label(y)  # (B, C)
        x = self.embed_patches(x)  # (B, H/p, W/p, C)
        x = x.to(self.embed_label.weight.dtype)  # autocast rounds the branches, not the residual stream
        if self.embed_position is not None:
            x = self.embed_position(x)
        x, early = self.process(x, condition)  # (B, H/p, W/p, C)
        condition = F.silu(condition)
        prediction = self.final(x, condition)  # (B, out, H, W)
        return (prediction, self.auxiliary(early, condition)) if auxiliary else prediction

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and a card; `UserError` for the folder of a checkpoint or release."""
        weights.refuse_checkpoint(Path(folder))
        weights.write_weights(self, Path(folder))
        weights.write_text(Path(folder) / "README.md", weights.card(self))

    @classmethod
    def from_pretrained(cls, name: str | Path, **settings: Any) -> Self:
        """See the function `from_pretrained`; ValueError when `name` is a model of another class."""
        model = from_pretrained(name, **settings)
        if not isinstance(model, cls):
            raise ValueError(f"{name} is a {type(model).__name__}; expected a {cls.__name__}")
        return model

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload as `save_pretrained` writes; the address of the repository on the hub."""
        with tempfile.TemporaryDirectory() as name:
            self.save_pretrained(name)
            return weights.upload(Path(name), repository, private=private)

    def _run(self, block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        if self.settings.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)

    def _check_input(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> None:
        check_images("x", x)
        size, patch = self.input_size, self.settings.patch_size
        fits = x.shape[1] == self.in_channels
        if self.embed_position is None:
            fits = fits and x.shape[2] % patch == 0 and x.shape[3] % patch == 0
            expected = f"(B, {self.in_channels}, H, W) with H and W multiples of {patch}"
        else:
            fits = fits and x.shape[2] == size and x.shape[3] == size
            expected = f"(B, {self.in_channels}, {size}, {size})"
        if not fits:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected {expected}")
        check_times(t, x.shape[0])
        check_labels(y, self.num_classes, x.shape[0])


class DiT(Denoiser):
    """Diffusion transformer (arXiv 2212.09748), with attention or the GSPN module as its mixer."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.blocks = nn.ModuleList(DiTBlock(settings, i) for i in range(settings.depth))
        self.initialize_weights()
        if settings.auxiliary_head is not None:
            self.auxiliary = self._final_layer()  # last: the others start as they do without it
            zero_(self.auxiliary)

    def residual_ends(self) -> list[nn.Module]:
        return [block.modulation for block in self.blocks]

    def process(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        condition, early = F.silu(condition), None
        for index, block in enumerate(self.blocks):
            x = self._run(block, x, condition)
            if index == self.settings.auxiliary_head:
                early = x
        return x, early


class DiTBlock(nn.Module):
    """adaLN-Zero block: mixer and MLP, each between a modulated norm and a gated residual sum.

    With a modulated local path two more scales go into the mixer; in an inverted bottleneck the mixer is all.
    """

    def __init__(self, settings: ModelSettings, index: int) -> None:
        super().__init__()
        width = settings.width
        self.norm, self.mlp_norm_eps = settings.norm, settings.mlp_norm_eps
        self.mixer = create_mixer(settings, settings.segment_of(index))
        self.mlp = None
        if settings.mlp is not None:
            self.mlp = MLPS[settings.mlp](width, int(width * settings.mlp_ratio))
        self.branches = 1 if self.mlp is None else 2
        self.scales = 2 if settings.local_path == "modulated" else 0
        self.modulation = nn.Linear(width, (3 * self.branches + self.scales) * width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        modulation = self.modulation(condition)[:, None, None]  # (B, 1, 1, 6 * C), or 3 to 8 of them
        parts = modulation.chunk(3 * self.branches + self.scales, dim=-1)
        scales = parts[3 * self.branches :]
        shift, scale, gate = parts[:3]
        x = torch.addcmul(
            x, gate, self.mixer(modulate(normalize(x, self.norm), shift, scale), *scales)
        )  # (B, H, W, C)
        if self.mlp is None:
            return x
        shift, scale, gate = parts[3:6]
        x_normed = normalize(x, self.norm, self.mlp_norm_eps)
        return torch.addcmul(x, gate, self.mlp(modulate(x_normed, shift, scale)))


def modulation_rows(settings: ModelSettings) -> dict[str, slice]:
    """The rows of a DiT block's modulation by what they steer: mixer, mlp and local_path, where there are such."""
    width, rows = settings.width, {"mixer": 3}
    if settings.mlp is not None:
        rows["mlp"] = 3
    if settings.local_path == "modulated":
        rows["local_path"] = 2
    ends = list(itertools.accumulate(rows.values()))
    return {key: slice((end - rows[key]) * width, end * width) for key, end in zip(rows, ends, strict=True)}


class GSPN(Denoiser):
    """The paper's network (arXiv 2501.12381): GSPN blocks without MLP, in two halves joined by long skips.

    The condition is added to the tokens at the input, and modulates the final layer.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        half = settings.depth // 2
        self.first = nn.ModuleList(GSPNBlock(settings, i) for i in range(half))
        self.middle = GSPNBlock(settings, half)
        self.second = nn.ModuleList(GSPNBlock(settings, half + 1 + i, long_skip=True) for i in range(half))
        self.initialize_weights()

    def residual_ends(self) -> list[nn.Module]:
        return [block.mixer.proj_out for block in (*self.first, self.middle, *self.second)]

    def process(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, None]:
        x = x + condition[:, None, None]  # (B, H, W, C)
        skips = []
        for block in self.first:
            x = self._run(block, x)
            skips.append(x)
        x = self._run(self.middle, x)
        for block in self.second:
            x = self._run(block, x, skips.pop())
        return x, None


class GSPNBlock(nn.Module):
    """Norm, mixer and residual sum, after joining the skip from the first half where there is one."""

    def __init__(self, settings: ModelSettings, index: int, long_skip: bool = False) -> None:
        super().__init__()
        self.join = nn.Linear(2 * settings.width, settings.width) if long_skip else None
        norm = nn.LayerNorm if settings.norm == "layer" else nn.RMSNorm
        self.norm = norm(settings.width, eps=1e-6)
        self.mixer = create_mixer(settings, settings.segment_of(index))

    def initialize_weights(self) -> None:
        """The join starts by passing the stream through.

        An average with the skip would halve, in every block of the second half, what the middle says and the
        gradient that it hears.
        """
        self.norm.reset_parameters()
        if self.join is not None:
            nn.init.zeros_(self.join.bias)
            nn.init.eye_(self.join.weight)  # (C, 2 * C): identity on the stream, zero on the skip

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        if self.join is not None:
            x = self.join(torch.cat([x, skip], dim=-1)).to(x.dtype)  # (B, H, W, C)
        return x + self.mixer(self.norm(x))
