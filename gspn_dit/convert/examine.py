"""What network published weights are: by their shapes, and by what stands beside them."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from gspn_dit.convert.layouts import DIFFUSERS, Reader, Sizes, measure
from gspn_dit.convert.sources import Source
from gspn_dit.convert.stream import position_table
from gspn_dit.errors import UserError
from gspn_dit.models.settings import MODEL_NAMES, resolve_settings

SETTLED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "attention_bias": True,
}
"""Of diffusers' config.json: what every DiT has."""


@dataclass(frozen=True)
class Found:
    """What published weights turn out to be."""

    kind: str
    """dit (ddpm) or sit (flow)."""
    sizes: Sizes
    input_size: int
    model: dict[str, Any]
    """The model's part of a config: its name and what is set otherwise."""

    @property
    def objective(self) -> str:
        return "ddpm" if self.kind == "dit" else "flow"

    @property
    def settings(self) -> dict[str, Any]:
        """What `create_model` is called with."""
        return {
            **self.model,
            "input_size": self.input_size,
            "in_channels": self.sizes.channels,
            "num_classes": self.sizes.classes,
            "learn_sigma": self.kind == "dit",
        }

    def describe(self) -> str:
        """One line for people."""
        sizes, settings = self.sizes, resolve_settings(**self.settings)
        side = self.input_size
        whose = {"dit": "DiT", "sit": "SiT"}[self.kind]
        return (
            f"{whose}, as model {settings.name}: {sizes.depth} blocks of width {sizes.width}, {settings.heads} heads "
            f"of {sizes.width // settings.heads}, patches of {sizes.patch}, input {sizes.channels}x{side}x{side}, "
            f"output {sizes.out_channels}x{side}x{side}, {sizes.classes} classes (objective {self.objective})"
        )


def examine(source: Source, reader: Reader, kind: str | None, heads: int | None) -> Found:
    """What the weights are, by their shapes and what stands beside them."""
    names = reader.names
    if names is DIFFUSERS and source.config is None:
        raise UserError(
            f"{source.name} is in {names.title}: give the folder, whose config.json says the rest"
        )
    sizes = measure(reader)
    model: dict[str, Any] = {}
    if names is DIFFUSERS:
        kind = check_kind(source, kind)
        input_size, heads, epsilon = read_config(source, sizes)
        model |= {"time_frequencies": "closed", "mlp_norm_eps": epsilon}
    else:
        kind = kind or told_kind(source)
        check_options(source, sizes, kind)
        input_size = side_of(reader, sizes)
        heads = heads or usual_heads(source, sizes)
    if kind == "sit":
        model["time_scale"] = 1.0
    check_channels(source, sizes, kind)
    check_position(reader, sizes, input_size)
    return named(source, Found(kind, sizes, input_size, model), heads)


def check_kind(source: Source, kind: str | None) -> str:
    if kind == "sit":
        raise UserError(f"--kind sit: {source.name} is in {DIFFUSERS.title}, which is of no SiT")
    return "dit"


def told_kind(source: Source) -> str:
    """Whose .pt it is by the options of its training, or its name: its weights are of the same shapes."""
    if "path_type" in source.options or str(source.options.get("model")).startswith("SiT"):
        return "sit"
    if str(source.options.get("model")).startswith("DiT"):
        return "dit"
    told = set(re.findall(r"(?<![a-z])(dit|sit)(?![a-z])", source.path.name.lower()))
    if len(told) != 1:
        raise UserError(
            f"{source.name} may be a DiT or a SiT, whose weights look alike: give --kind dit or --kind sit"
        )
    return told.pop()


def check_options(source: Source, sizes: Sizes, kind: str) -> None:
    """Raise `UserError` for a training whose network predicts something else, or has no null label."""
    expected = {"num_classes": sizes.classes}
    if kind == "sit":
        expected |= {"path_type": "Linear", "prediction": "velocity"}
    for key, value in expected.items():
        if source.options.get(key, value) != value:
            raise UserError(f"{source.name} was trained with {key} {source.options[key]}; expected {value}")


def usual_heads(source: Source, sizes: Sizes) -> int:
    """The heads of DiT's sizes, by their width."""
    known = {settings.width: settings.heads for settings in map(resolve_settings, dit_names(2))}
    if sizes.width not in known:
        raise UserError(
            f"{source.name} has width {sizes.width}, which is none of DiT's ({', '.join(map(str, sorted(known)))}), "
            "and weights do not tell the number of heads: give --heads N"
        )
    return known[sizes.width]


def dit_names(patch: int) -> list[str]:
    return [name for name in MODEL_NAMES if re.fullmatch(rf"DiT-\w+/{patch}", name)]


def side_of(reader: Reader, sizes: Sizes) -> int:
    """Height and width of the input, by the number of positions."""
    _, tokens, _ = reader.shape(reader.names.position, 3)
    if math.isqrt(tokens) ** 2 != tokens:
        raise UserError(f"{reader.source}: {reader.names.position} has {tokens} positions; expected a square")
    return math.isqrt(tokens) * sizes.patch


def read_config(source: Source, sizes: Sizes) -> tuple[int, int, float]:
    """Input size, heads and epsilon out of diffusers' config.json; `UserError` for one of another network."""
    config = {"norm_eps": 1e-5, **source.config}
    heads, side = (config.get(key) for key in ("num_attention_heads", "sample_size"))
    for key, value in (("num_attention_heads", heads), ("sample_size", side)):
        if type(value) is not int or value < 1:
            raise UserError(f"{source.name}: {key} is {value!r} in config.json; expected a number above 0")
    shapes = {
        "patch_size": sizes.patch,
        "in_channels": sizes.channels,
        "num_layers": sizes.depth,
        "num_embeds_ada_norm": sizes.classes,
        "attention_head_dim": sizes.width // heads,
    }
    for key, expected in {**SETTLED, **shapes}.items():
        if config.get(key, expected) != expected:
            raise UserError(f"{source.name}: {key} is {config[key]!r} in config.json; expected {expected!r}")
    return side, heads, config["norm_eps"]


def check_channels(source: Source, sizes: Sizes, kind: str) -> None:
    """Raise `UserError` for predictions of so many channels that they are something else."""
    allowed = (2 * sizes.channels,) if kind == "dit" else (2 * sizes.channels, sizes.channels)
    if sizes.out_channels not in allowed:
        what = "noise and variance, as DiT does" if kind == "dit" else "a velocity"
        raise UserError(
            f"{source.name} predicts {sizes.out_channels} channels of {sizes.channels}; expected {allowed[0]}, {what}"
        )


def check_position(reader: Reader, sizes: Sizes, input_size: int) -> None:
    """Take the table of positions, where there is one, which must be DiT's."""
    key, grid = reader.names.position, input_size // sizes.patch
    if key in reader.left:
        table = reader.take(key, 1, grid**2, sizes.width)[0]
        if (table - position_table(grid, sizes.width)).abs().max() > 1e-3:  # half precision
            raise UserError(f"{reader.source}: {key} is not DiT's table of sines and cosines; expected that")


def named(source: Source, found: Found, heads: int) -> Found:
    """With the model's name, and only what is set otherwise than in a model of that name."""
    sizes = found.sizes
    if not dit_names(sizes.patch):
        raise UserError(f"{source.name} has patches of {sizes.patch}; expected 1, 2, 4 or 8")
    shape = {
        "width": sizes.width,
        "depth": sizes.depth,
        "heads": heads,
        "mlp_ratio": sizes.hidden / sizes.width,
    }
    fitting = [name for name in dit_names(sizes.patch) if fits(name, shape)]
    name = fitting[0] if fitting else dit_names(sizes.patch)[0]
    usual = resolve_settings(name, learn_sigma=found.kind == "dit")
    chosen = {key: value for key, value in {**shape, **found.model}.items() if getattr(usual, key) != value}
    found = dataclasses.replace(found, model={"name": name, **chosen})
    try:
        resolve_settings(**found.settings)
    except ValueError as error:
        raise UserError(f"{source.name} is no model of ours: {error}") from error
    return found


def fits(name: str, shape: dict[str, Any]) -> bool:
    usual = resolve_settings(name)
    return all(getattr(usual, key) == shape[key] for key in ("width", "depth", "heads"))
