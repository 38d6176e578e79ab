"""Small networks in the published layouts, written from arXiv 2212.09748, section 3.2, with random weights.

`PublishedDiT` is DiT's and SiT's, `DiffusersDiT` diffusers'. Each is called as model(x, t, y) and has the names
that the published files have. Nothing is left at zero, where it would hide what follows it.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, DEPTH, HEADS, PATCH, CHANNELS, GRID, CLASSES = 48, 3, 4, 2, 4, 4, 5
SIDE = PATCH * GRID


def stacked(**modules: nn.Module) -> nn.Module:
    """A module that is nothing but the names of its parts; numbers are written as _0."""
    module = nn.Module()
    for name, part in modules.items():
        module.add_module(name.removeprefix("_"), part)
    return module


def waves(t: torch.Tensor, last: int) -> torch.Tensor:
    """128 cosines, then 128 sines, of t times 10,000^(-i / last)."""
    angles = t[:, None] * 10_000.0 ** (-torch.arange(128) / last)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def positions() -> torch.Tensor:
    """(1, tokens, C): half of the channels are of a token's column, half of its row; of each half, sines first."""
    quarter = WIDTH // 4
    rates = [10_000 ** (-i / quarter) for i in range(quarter)]
    table = [
        [f(place * rate) for place in (column, row) for f in (math.sin, math.cos) for rate in rates]
        for row in range(GRID)
        for column in range(GRID)
    ]
    return torch.tensor(table)[None]


def norm(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention (B, N, C) of HEADS heads."""
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(WIDTH / HEADS), dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def adaptive_block(x: torch.Tensor, six: torch.Tensor, attention, mlp, eps: float) -> torch.Tensor:
    """adaLN-Zero: shift, scale and gate of attention, then of the MLP, whose norm has its own epsilon."""
    shift1, scale1, gate1, shift2, scale2, gate2 = six[:, None].chunk(6, dim=-1)
    x = x + gate1 * attention(norm(x) * (1 + scale1) + shift1)
    return x + gate2 * mlp(norm(x, eps) * (1 + scale2) + shift2)


def unpatch(tokens: torch.Tensor, channels: int) -> torch.Tensor:
    """(B, N, p p c) to (B, c, H, W)."""
    tokens = tokens.reshape(len(tokens), GRID, GRID, PATCH, PATCH, channels)
    return tokens.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), channels, SIDE, SIDE)


def randomise(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(
            std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3, generator=generator
        )
    return network


class PublishedDiT(nn.Module):
    """DiT; with `sit` SiT, which leaves out the second half of what it predicts where that is twice the input."""

    def __init__(self, out_channels: int = 2 * CHANNELS, sit: bool = False) -> None:
        super().__init__()
        self.out_channels, self.sit = out_channels, sit
        linear = nn.Linear
        self.x_embedder = stacked(proj=nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH))
        self.t_embedder = stacked(mlp=stacked(_0=linear(256, WIDTH), _2=linear(WIDTH, WIDTH)))
        self.y_embedder = stacked(embedding_table=nn.Embedding(CLASSES + 1, WIDTH))
        self.blocks = nn.ModuleList(
            stacked(
                attn=stacked(qkv=linear(WIDTH, 3 * WIDTH), proj=linear(WIDTH, WIDTH)),
                mlp=stacked(fc1=linear(WIDTH, 4 * WIDTH), fc2=linear(4 * WIDTH, WIDTH)),
                adaLN_modulation=stacked(_1=linear(WIDTH, 6 * WIDTH)),
            )
            for _ in range(DEPTH)
        )
        self.final_layer = stacked(
            linear=linear(WIDTH, PATCH**2 * out_channels),
            adaLN_modulation=stacked(_1=linear(WIDTH, 2 * WIDTH)),
        )
        randomise(self)
        self.register_buffer("pos_embed", positions())

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        hidden, out = self.t_embedder.mlp.children()
        c = F.silu(out(F.silu(hidden(waves(t, 128)))) + self.y_embedder.embedding_table(y))
        for block in self.blocks:
            attention = lambda z, part=block.attn: part.proj(attend(*part.qkv(z).chunk(3, dim=-1)))  # noqa: E731
            mlp = lambda z, part=block.mlp: part.fc2(F.gelu(part.fc1(z), approximate="tanh"))  # noqa: E731
            x = adaptive_block(x, block.adaLN_modulation.get_submodule("1")(c), attention, mlp, 1e-6)
        shift, scale = self.final_layer.adaLN_modulation.get_submodule("1")(c)[:, None].chunk(2, dim=-1)
        x = unpatch(self.final_layer.linear(norm(x) * (1 + scale) + shift), self.out_channels)
        return x[:, :CHANNELS] if self.sit else x


CONFIG = {
    "_class_name": "DiTTransformer2DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": WIDTH // HEADS,
    "in_channels": CHANNELS,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": HEADS,
    "num_embeds_ada_norm": CLASSES,
    "num_layers": DEPTH,
    "out_channels": 2 * CHANNELS,
    "patch_size": PATCH,
    "sample_size": SIDE,
}
"""config.json of diffusers' layout."""


class DiffusersDiT(nn.Module):
    """DiT as diffusers' DiTTransformer2DModel computes it: other frequencies, another epsilon before the MLP."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        linear = nn.Linear
        self.pos_embed = stacked(proj=nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH))
        self.transformer_blocks = nn.ModuleList(
            stacked(
                norm1=stacked(
                    emb=stacked(
                        timestep_embedder=stacked(linear_1=linear(256, WIDTH), linear_2=linear(WIDTH, WIDTH)),
                        class_embedder=stacked(embedding_table=nn.Embedding(CLASSES + 1, WIDTH)),
                    ),
                    linear=linear(WIDTH, 6 * WIDTH),
                ),
                attn1=stacked(
                    **{f"to_{name}": linear(WIDTH, WIDTH) for name in "qkv"},
                    to_out=stacked(_0=linear(WIDTH, WIDTH)),
                ),
                ff=stacked(
                    net=stacked(_0=stacked(proj=linear(WIDTH, 4 * WIDTH)), _2=linear(4 * WIDTH, WIDTH))
                ),
            )
            for _ in range(DEPTH)
        )
        self.proj_out_1 = linear(WIDTH, 2 * WIDTH)
        self.proj_out_2 = linear(WIDTH, PATCH**2 * 2 * CHANNELS)
        randomise(self)
        first = self.transformer_blocks[0].norm1.emb.state_dict()
        for block in self.transformer_blocks:
            block.norm1.emb.load_state_dict(
                first
            )  # the published file has one embedding, copied to every block

    def condition(self, block: nn.Module, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        emb = block.norm1.emb
        time = emb.timestep_embedder
        return F.silu(
            time.linear_2(F.silu(time.linear_1(waves(t, 127)))) + emb.class_embedder.embedding_table(y)
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.pos_embed.proj(x).flatten(2).transpose(1, 2) + positions()
        for block in self.transformer_blocks:
            attn, (hidden, out) = block.attn1, block.ff.net.children()
            project = attn.to_out.get_submodule("0")
            attention = lambda z, a=attn, p=project: p(attend(a.to_q(z), a.to_k(z), a.to_v(z)))  # noqa: E731
            mlp = lambda z, h=hidden, o=out: o(F.gelu(h.proj(z), approximate="tanh"))  # noqa: E731
            x = adaptive_block(x, block.norm1.linear(self.condition(block, t, y)), attention, mlp, self.eps)
        final = self.proj_out_1(self.condition(self.transformer_blocks[0], t, y))
        shift, scale = final[:, None].chunk(2, dim=-1)
        return unpatch(self.proj_out_2(norm(x) * (1 + scale) + shift), 2 * CHANNELS)


def images(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """x (3, C, H, W) and labels (3,), the last of them the null label."""
    return torch.randn(3, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)), torch.tensor(
        [0, 3, 5]
    )
