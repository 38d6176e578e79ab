"""A UNet of diffusers whose self-attention is replaced by the line scan; cross-attention stays as it is."""

import inspect
from typing import Any

import torch
from diffusers import ModelMixin, Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from gspn_dit.text_to_image.scan_attention import ScanAttention

LOADED_AS = ModelMixin
"""A pipeline that is loaded looks for this name in the module of each of its parts' classes."""
SEGMENT = 4
"""Lines after which a scan starts anew, in the published text-to-image models."""


class GSPNUNet2DConditionModel(UNet2DConditionModel):
    """What `replace_self_attention` makes; diffusers' own `save_pretrained`, `from_pretrained` and pipelines take it.

    `gspn` in its config says what was replaced: rank (None for the share of the width), segment and keep_qkv.
    """

    def __init__(self, *args: Any, gspn: dict[str, Any] | None = None, **settings: Any) -> None:
        if gspn is None:
            raise ValueError(
                "gspn is None: these are the settings of a UNet with attention; load it as UNet2DConditionModel "
                "and call replace_self_attention"
            )
        super().__init__(*args, **settings)
        insert(self, **gspn)

    # diffusers asks the signature which keys of a config are the class's own.
    __init__.__signature__ = inspect.signature(UNet2DConditionModel.__init__).replace(
        parameters=[
            *inspect.signature(UNet2DConditionModel.__init__).parameters.values(),
            inspect.Parameter("gspn", inspect.Parameter.KEYWORD_ONLY, default=None),
        ]
    )


def replace_self_attention(
    unet: UNet2DConditionModel,
    rank: int | None = None,
    segment: int = SEGMENT,
    keep_qkv: bool | None = None,
) -> GSPNUNet2DConditionModel:
    """Put a `ScanAttention` in place of every self-attention (attn1) of a UNet, which is changed and returned.

    The output projections stay with their weights; the other new weights are drawn by torch's generator.

    Args:
        rank: width of the bottleneck of the maps; None: C/8 of a layer of width C, with q, k and v C/32.
        segment: lines of the token grid after which a scan starts anew; 0 for whole images.
        keep_qkv: whether to keep the projections to q, k and v; None: in SDXL's layout (a UNet with text and time
            embeddings added), not in SD 1.5's.

    Raises:
        TypeError, ValueError: the UNet is none, is replaced already, or has layers that cannot be; or an argument is
            out of range. It is unchanged then.
    """
    if not isinstance(unet, UNet2DConditionModel):
        raise TypeError(f"unet is a {type(unet).__name__}; expected diffusers' UNet2DConditionModel")
    if isinstance(unet, GSPNUNet2DConditionModel):
        raise ValueError("unet has its self-attention replaced already")
    if keep_qkv is None:
        keep_qkv = unet.config.addition_embed_type == "text_time"
    insert(unet, rank=rank, segment=segment, keep_qkv=keep_qkv)
    # So that diffusers saves and loads it; all else about the object stays, hooks, device and dtype included.
    unet.__class__ = GSPNUNet2DConditionModel
    return unet


def insert(unet: UNet2DConditionModel, *, rank: int | None, segment: int, keep_qkv: bool) -> None:
    """The work of `replace_self_attention`; notes it in the config."""
    if type(segment) is not int or segment < 0:
        raise ValueError(f"segment is {segment!r}; expected a whole number, at least 0")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ValueError(f"rank is {rank!r}; expected a whole number, at least 1, or None")
    if type(keep_qkv) is not bool:
        raise ValueError(f"keep_qkv is {keep_qkv!r}; expected True, False or None")
    blocks = {name: block for name, block in unet.named_modules() if isinstance(block, BasicTransformerBlock)}
    if not blocks:
        raise ValueError("unet has no transformer block whose self-attention could be replaced")
    for name, block in blocks.items():
        check_block(name, block)
    for block in blocks.values():
        block.attn1 = scan_for(block.attn1, rank, segment, keep_qkv)
    for module in unet.modules():
        if isinstance(module, Transformer2DModel):
            module.register_forward_pre_hook(carry_grid, with_kwargs=True)
    unet.register_to_config(gspn={"rank": rank, "segment": segment, "keep_qkv": keep_qkv})


def check_block(name: str, block: BasicTransformerBlock) -> None:
    """Raise ValueError for a block whose first attention is not plain self-attention of one width."""
    attention = block.attn1
    if block.only_cross_attention or attention.is_cross_attention:
        raise ValueError(f"{name}.attn1 is cross-attention (only_cross_attention); expected self-attention")
    if attention.inner_dim != attention.query_dim:
        raise ValueError(
            f"{name}.attn1 is {attention.inner_dim} wide inside, its tokens {attention.query_dim}; expected the same"
        )
    if attention.fused_projections:
        raise ValueError(f"{name}.attn1 has fused projections: call unet.unfuse_qkv_projections() first")


def scan_for(attention: nn.Module, rank: int | None, segment: int, keep_qkv: bool) -> ScanAttention:
    """The module that takes a self-attention's place, on its device and in its dtype."""
    width = attention.query_dim
    qkv = (attention.to_q, attention.to_k, attention.to_v) if keep_qkv else None
    weight = attention.to_out[0].weight
    with torch.device(weight.device):
        module = ScanAttention(
            width, rank or default_rank(width, keep_qkv), segment, attention.to_out, qkv
        ).train(attention.training)
    # Not to the dtype that it has already: fake tensors refuse even that.
    return module if module.merge.dtype == weight.dtype else module.to(weight.dtype)


def default_rank(width: int, keep_qkv: bool) -> int:
    """The bottleneck's width in a layer of `width` channels, in the published models."""
    return max(1, width // (32 if keep_qkv else 8))


def scan_modules(unet: nn.Module) -> dict[str, ScanAttention]:
    """The modules that `replace_self_attention` put into a UNet, by name."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, ScanAttention)}


def carry_grid(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of a Transformer2DModel: the shape of its image goes to attn1 in place of a mask.

    Blocks get tokens without their grid. The mask for self-attention is what they hand on to attn1, and to it
    alone; an empty tensor (H, W, 0) in its place holds the grid without any state, so that recomputation under
    gradient checkpointing sees the grid of its own forward, and torch.compile symbolic sizes.
    """
    if len(args) > 6 or kwargs.get("attention_mask") is not None:
        raise ValueError("attention_mask: expected None, a UNet without self-attention has no use for it")
    image = args[0] if args else kwargs["hidden_states"]  # (B, C, H, W)
    return args, {**kwargs, "attention_mask": image.new_empty(*image.shape[2:], 0)}
