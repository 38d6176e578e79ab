"""The two layouts of a published DiT: what its weights are called there, and here.

Both are the network of arXiv 2212.09748, section 3.2, and so is ours; they differ in names, in queries, keys and values
as one layer or three, and, diffusers', in a copy of the embeddings of t and y in every block.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gspn_dit.errors import UserError


@dataclass(frozen=True)
class Names:
    """What the layers of a layout are called; `{}` is the number of a block."""

    title: str
    patches: str
    time: tuple[str, str]
    label: str
    block: str
    qkv: tuple[str, ...]
    attention_out: str
    mlp: tuple[str, str]
    modulation: str
    final_modulation: str
    final: str
    position: str
    """The table of positions, which is the same for all weights."""
    shared: bool
    """Whether the embeddings stand once, not in every block."""


DIT = Names(
    title="DiT's layout",
    patches="x_embedder.proj",
    time=("t_embedder.mlp.0", "t_embedder.mlp.2"),
    label="y_embedder.embedding_table.weight",
    block="blocks.{}.",
    qkv=("attn.qkv",),
    attention_out="attn.proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    modulation="adaLN_modulation.1",
    final_modulation="final_layer.adaLN_modulation.1",
    final="final_layer.linear",
    position="pos_embed",
    shared=True,
)
DIFFUSERS = Names(
    title="diffusers' DiT layout",
    patches="pos_embed.proj",
    time=tuple(f"transformer_blocks.{{}}.norm1.emb.timestep_embedder.linear_{n}" for n in (1, 2)),
    label="transformer_blocks.{}.norm1.emb.class_embedder.embedding_table.weight",
    block="transformer_blocks.{}.",
    qkv=("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    attention_out="attn1.to_out.0",
    mlp=("ff.net.0.proj", "ff.net.2"),
    modulation="norm1.linear",
    final_modulation="proj_out_1",
    final="proj_out_2",
    position="pos_embed.pos_embed",
    shared=False,
)


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the weights tell."""

    width: int
    depth: int
    hidden: int
    patch: int
    channels: int
    out_channels: int
    classes: int


class Reader:
    """Tensors taken one by one: what is missing, left over, of another shape or not finite is a `UserError`."""

    def __init__(self, source: str, names: Names, tensors: dict[str, torch.Tensor]) -> None:
        self.source, self.names, self.left = source, names, dict(tensors)

    def shape(self, key: str, axes: int) -> torch.Size:
        """The shape of a tensor that stays, with so many axes."""
        if key not in self.left:
            raise UserError(f"{self.source} lacks {key}, which {self.names.title} has")
        shape = self.left[key].shape
        if len(shape) != axes:
            raise UserError(f"{self.source}: {key} has shape {list(shape)}; expected {axes} axes")
        return shape

    def take(self, key: str, *shape: int) -> torch.Tensor:
        """A tensor of this shape, in float32."""
        if self.shape(key, len(shape)) != shape:
            found = list(self.left[key].shape)
            raise UserError(f"{self.source}: {key} has shape {found}; expected {list(shape)}")
        tensor = self.left.pop(key)
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(f"{self.source}: {key} is not finite numbers; download it again")
        return tensor.detach().float()

    def linear(self, ours: str, theirs: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        """Weight and bias of a linear layer, under our name."""
        return {
            f"{ours}.weight": self.take(f"{theirs}.weight", rows, columns),
            f"{ours}.bias": self.take(f"{theirs}.bias", rows),
        }

    def finish(self) -> None:
        """Raise `UserError` for what nobody took."""
        if self.left:
            key = min(self.left)
            raise UserError(
                f"{self.source} holds {key}, which {self.names.title} has not ({len(self.left)} such in all)"
            )


def find_layout(source: str, tensors: dict[str, torch.Tensor]) -> Names:
    """The layout of a state dict, by its first layer; `UserError` for another network's."""
    for names in (DIT, DIFFUSERS):
        if f"{names.patches}.weight" in tensors:
            return names
    raise UserError(
        f"{source} is no DiT: of its {len(tensors)} tensors none is {DIT.patches}.weight (DiT, SiT) or "
        f"{DIFFUSERS.patches}.weight (diffusers)"
    )


def measure(reader: Reader) -> Sizes:
    """The sizes of a network; `UserError` where its shapes are no DiT's."""
    names = reader.names
    width, channels, patch, _ = reader.shape(f"{names.patches}.weight", 4)
    pattern = re.compile(re.escape(names.block).replace(r"\{\}", r"(\d+)"))
    numbers = [int(match[1]) for key in reader.left if (match := pattern.match(key))]
    hidden, _ = reader.shape(names.block.format(0) + f"{names.mlp[0]}.weight", 2)
    rows, _ = reader.shape(f"{names.final}.weight", 2)
    labels, _ = reader.shape(names.label.format(0), 2)
    if rows % patch**2 or labels < 2 or width % 4:
        raise UserError(
            f"{reader.source} is no DiT: it has width {width}, patches of {patch} x {patch}, {rows} outputs a patch "
            f"and {labels} labels"
        )
    return Sizes(width, max(numbers) + 1, hidden, patch, channels, rows // patch**2, labels - 1)


def read_network(
    reader: Reader, sizes: Sizes, waves: int, done: Callable[[], object]
) -> dict[str, torch.Tensor]:
    """All weights under our names, in the order and with the meaning that they have there.

    Args:
        waves: width of the sinusoids of t.
        done: called after every block.

    Raises:
        UserError: a weight is missing, too many, of another shape, or not finite; blocks have different embeddings.
    """
    names, width = reader.names, sizes.width
    pixels = (sizes.channels, sizes.patch, sizes.patch)
    network = {
        "embed_patches.proj.weight": reader.take(f"{names.patches}.weight", width, *pixels).flatten(1),
        "embed_patches.proj.bias": reader.take(f"{names.patches}.bias", width),
        **read_embeddings(reader, sizes, waves),
        **reader.linear("final.modulation", names.final_modulation, 2 * width, width),
        **reader.linear("final.proj", names.final, sizes.patch**2 * sizes.out_channels, width),
    }
    for number in range(sizes.depth):
        network |= read_block(reader, sizes, number)
        done()
    reader.finish()
    return network


def read_embeddings(reader: Reader, sizes: Sizes, waves: int) -> dict[str, torch.Tensor]:
    """The embeddings of t and y; of those in every block the first, which the others must equal."""
    names, width = reader.names, sizes.width
    first: dict[str, torch.Tensor] = {}
    for number in range(1 if names.shared else sizes.depth):
        hidden, out = (name.format(number) for name in names.time)
        found = {
            **reader.linear("embed_time.hidden", hidden, width, waves),
            **reader.linear("embed_time.out", out, width, width),
            "embed_label.weight": reader.take(names.label.format(number), sizes.classes + 1, width),
        }
        first = first or found
        if not all(torch.equal(first[key], found[key]) for key in found):
            raise UserError(
                f"{reader.source}: block {number} has other embeddings of t and y than block 0, as if trained in "
                "diffusers: expected one for all blocks, as DiT has"
            )
    return first


def read_block(reader: Reader, sizes: Sizes, number: int) -> dict[str, torch.Tensor]:
    names, width, hidden = reader.names, sizes.width, sizes.hidden
    theirs, ours = names.block.format(number), f"blocks.{number}."
    rows = 3 * width // len(names.qkv)
    parts = [reader.linear("qkv", theirs + name, rows, width) for name in names.qkv]
    qkv = {key: torch.cat([part[f"qkv.{key}"] for part in parts]) for key in ("weight", "bias")}
    return {
        **{f"{ours}mixer.attention.to_qkv.{key}": tensor for key, tensor in qkv.items()},
        **reader.linear(f"{ours}mixer.proj_out", theirs + names.attention_out, width, width),
        **reader.linear(f"{ours}mlp.hidden", theirs + names.mlp[0], hidden, width),
        **reader.linear(f"{ours}mlp.out", theirs + names.mlp[1], width, hidden),
        **reader.linear(f"{ours}modulation", theirs + names.modulation, 6 * width, width),
    }
