"""What describes a model: a name from the registry, and what is set differently from that name's defaults."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, get_args, get_origin, get_type_hints

# With G = C // 16 the GSPN module has 3.6 C^2 weights, attention 4 C^2 of a block's 18 C^2: so a GSPN-DiT of
# DiT's widths, depths and MLP ratio is within 2 % of the DiT of its name.
# family -> patch sizes, and size -> (width, depth, heads)
_DIT_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
_GSPN_SIZES = {"S": (368, 24, None), "B": (900, 30, None), "L": (1200, 56, None), "XL": (1500, 56, None)}
_FAMILIES = {
    "GSPN": ((2, 4), _GSPN_SIZES),
    "GSPN-DiT": ((1, 2, 4, 8), _DIT_SIZES),
    "DiT": ((1, 2, 4, 8), _DIT_SIZES),
}
_REGISTRY = {
    f"{family}-{size}/{patch}": (family, patch, *shape)
    for family, (patches, sizes) in _FAMILIES.items()
    for size, shape in sizes.items()
    for patch in patches
}
MODEL_NAMES = tuple(_REGISTRY)

_SCAN_FIELDS = (
    "scan",
    "normalization",
    "groups",
    "bottleneck",
    "merge",
    "direction_skip",
    "segment",
    "global_blocks",
    "scan_blocks",
    "scan_order",
    "gate",
    "gain_groups",
    "forget",
)
_MODULE_FIELDS = ("module", "local_path", "conv_init", "kernel_sizes", "block")
_MLP_FIELDS = ("mlp_ratio", "mlp", "mlp_norm_eps", "block")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model; null leaves a setting to the named size. These are the keys of `model` in a config."""

    name: str
    """A name of `create_model`: GSPN-{S,B,L,XL}/{2,4}, GSPN-DiT-{S,B,L,XL}/{1,2,4,8} or
    DiT-{S,B,L,XL}/{1,2,4,8}."""
    label_std: float | None = None
    """Standard deviation of the label embeddings at the start; null: 0.02. At 0.02 (DiT's) a class is small
    beside the embedding of t; 1 makes short runs learn the classes several times sooner."""
    width: int | None = None
    """Channels of a token."""
    depth: int | None = None
    """Number of blocks; a GSPN has one more in its middle, and an even depth."""
    position: Literal["none", "sincos", "learned"] | None = None
    """Positional embedding; DiT's default is sincos, no GSPN model has one unless asked."""
    mlp_ratio: float | None = None
    """Width of a DiT block's MLP over the width of a token: 4 by default, and 3.25 with a modulated local path,
    whose parameters it makes up for. A GSPN has no MLP."""
    mlp: Literal["gelu", "swiglu"] | None = None
    """A DiT block's MLP: gelu (default; DiT's), or swiglu of two thirds of its hidden width (arXiv 2002.05202)."""
    norm: Literal["layer", "rms"] | None = None
    """Every norm of the network: layer (default), or rms, which subtracts no mean (arXiv 1910.07467)."""
    block: Literal["mixer_mlp", "inverted_bottleneck"] | None = None
    """A DiT block around the GSPN module: module and MLP (mixer_mlp, default), or the module alone, its second
    half as wide as makes up for the MLP (inverted_bottleneck: 1x1 to that width, depthwise, gate, 1x1 back)."""
    mixer: Literal["gspn", "attention", "conv_attention"] | None = None
    """What mixes tokens; conv_attention, a control, is the GSPN module with attention in place of its scan."""
    module: Literal["normed", "paper"] | None = None
    """The GSPN module with a norm after its scan and a bottleneck of 16 or more (normed, default), or exactly the
    paper's, with neither (paper; arXiv 2501.12381)."""
    local_path: Literal["none", "norm", "modulated"] | None = None
    """What stands in the GSPN module beside the scan s of x (or attention in its place): nothing, norm(s)
    (none, default); x itself, norm(s) + norm(x) (norm); or norm(s) (1 + a) + norm(x) (1 + b), a and b of the
    time and label by the block's adaLN (modulated)."""
    conv_init: Literal["random", "identity"] | None = None
    """The GSPN module's depthwise convolutions at the start: random (default), or identity, 1 at the centre and
    random weights of a tenth of their usual scale."""
    kernel_sizes: tuple[int, int] | None = None
    """Sizes of the GSPN module's two depthwise convolutions, each 7, 5, 3 or 0 (none); [7, 3] by default."""
    heads: int | None = None
    """Attention heads (mixers with attention only)."""
    scan: Literal["lines", "identity"] | None = None
    """lines by default; identity leaves the scan out of the GSPN module, h = lam * x, as a control."""
    normalization: Literal["row_stochastic", "sigmoid", "none"] | None = None
    """How a scan's logits become its weights: row_stochastic (default; the paper's Stability-Context
    Condition), sigmoid (not divided by their sum: the paper's break condition) or none (the logits are the
    weights)."""
    groups: int | None = None
    """Propagation maps of a scan, each shared by width // groups channels: the width itself (default of GSPN),
    width // 16 (default of GSPN-DiT), or 1 (one map for all channels)."""
    bottleneck: int | None = None
    """Width from which a scan's maps are projected; width // 16 by default, and no default is below 16
    but that of the paper's module."""
    merge: Literal["scalar", "channel", "linear", "sum"] | None = None
    """How the directions' maps become one: a weight per direction (scalar, default), one per direction and
    channel (channel), a full linear layer (linear), or their sum, the read-out gates being weights enough (sum)."""
    direction_skip: bool | None = None
    """Add D_k * x to the map of direction k, with D_k projected from the bottleneck; off by default."""
    segment: int | None = None
    """Lines after which the scan of a local block starts anew; 2 by default."""
    global_blocks: int | None = None
    """How many blocks, the last ones, scan whole lines: 2 by default in a GSPN, all of them in a GSPN-DiT."""
    scan_blocks: tuple[int, ...] | None = None
    """Numbers from 0 of the blocks that scan, the others being without (h = lam * x); null: all of them."""
    scan_order: Literal["parallel", "sequential"] | None = None
    """parallel (default): four directions at once; sequential: right and left, then down and up on the norm of
    what these gave."""
    gate: Literal["directions", "merged", "none"] | None = None
    """Read-out gates u: one for each direction before the merge (directions, default), one after it (merged),
    or none."""
    gain_groups: int | None = None
    """Maps of lam, and of u, for each direction, each shared by width // gain_groups channels; the width itself
    by default."""
    forget: Literal["none", "learned"] | None = None
    """learned: the scan's weights times a gate in (0, 1] for each group and direction, which forgets within 1 line
    (first group) to 16 lines (last group) at the start; none by default."""
    time_scale: float | None = None
    """Factor on t before its embedding, which expects about 0..1000; by default 1 with `learn_sigma` (ddpm
    counts 0..999) and 1000 without (flow runs from 0 to 1)."""
    auxiliary_head: int | None = None
    """Number from 0 of the block after which a second final layer predicts too, for internal guidance (arXiv
    2512.24176, after 8 of 28 blocks: 7); null: none. Not in a GSPN."""
    time_frequencies: Literal["open", "closed"] | None = None
    """The 128 frequencies of the embedding of t, in equal ratios from 1 down to 1/10000: that last one left out
    (open, default; DiT's), or among them (closed; diffusers' DiT)."""
    mlp_norm_eps: float | None = None
    """Epsilon of the norm before a DiT block's MLP: 1e-6 by default, as in every other norm; 1e-5 in diffusers'
    DiT."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward instead of keeping its activations: less memory, a third more
    work."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings(ModelConfig):
    """Everything that `create_model` builds from: what a run chooses, and what its data and objective decide."""

    input_size: int = 32
    """Height and width of the latent, in latent pixels; a multiple of the patch size."""
    in_channels: int = 4
    """Channels of the latent."""
    num_classes: int = 1000
    """Number of classes; label `num_classes` is the null label."""
    learn_sigma: bool = True
    """Predict noise and variance (2C channels, ddpm) instead of one map (C channels, flow)."""

    @property
    def family(self) -> str:
        """The registry's family: "GSPN", "GSPN-DiT" or "DiT"."""
        return _REGISTRY[self.name][0]

    @property
    def patch_size(self) -> int:
        """Side of a token, in latent pixels; fixed by the name."""
        return _REGISTRY[self.name][1]

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def block_count(self) -> int:
        """Blocks in all, a GSPN's middle block included."""
        return self.depth + 1 if self.family == "GSPN" else self.depth

    @property
    def module_width(self) -> int:
        """Width of the GSPN module's second half: that of a token, or an inverted bottleneck's.

        The latter has the parameters of a second half of width C, an MLP and its adaLN: C^2 times 2, 2 r and 3,
        and the depthwise kernel's.
        """
        if self.block != "inverted_bottleneck":
            return self.width
        kernel = self.kernel_sizes[1] ** 2
        return self.width * int((2 * self.mlp_ratio + 5) * self.width + kernel) // (2 * self.width + kernel)

    def segment_of(self, block: int) -> int | None:
        """The `segment` of a block's scan, 0 for a global one, by the block's place; None where it has no scan."""
        if self.mixer != "gspn" or (self.scan_blocks is not None and block not in self.scan_blocks):
            return None
        return 0 if block >= self.block_count - self.global_blocks else self.segment

    def to_dict(self) -> dict:
        """Plain types, for YAML; `create_model(**settings.to_dict())` builds the same model."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def resolve_settings(name: str, **overrides) -> ModelSettings:
    """Fill in the defaults of the named model and check the whole.

    Raises ValueError that names the setting, its value and what was expected.
    """
    if name not in _REGISTRY:
        raise ValueError(f"model name is {name!r}; expected one of {', '.join(MODEL_NAMES)}")
    known = [field.name for field in fields(ModelSettings)]
    for key in overrides:
        if key not in known:
            raise ValueError(f"model setting {key!r} is unknown; expected one of {', '.join(known)}")
    overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    settings = _with_defaults(ModelSettings(name=name, **overrides))
    _check(settings)
    return settings


def _with_defaults(settings: ModelSettings) -> ModelSettings:
    """Replace every `None` that has a default in the named model."""
    family, _, width, depth, heads = _REGISTRY[settings.name]
    is_gspn = family == "GSPN"
    resized = settings.width is not None
    defaults = {
        "label_std": 0.02,
        "width": width,
        "depth": depth,
        "time_scale": 1.0 if settings.learn_sigma else 1000.0,
        "time_frequencies": "open",
        "position": "sincos" if family == "DiT" else "none",
        "norm": "layer",
        "mixer": "attention" if family == "DiT" else "gspn",
    }
    settings = _fill(settings, defaults)
    _check_types(settings)
    if settings.mixer != "attention":
        module = {"module": "normed", "local_path": "none", "conv_init": "random", "kernel_sizes": (7, 3)}
        settings = _fill(settings, module)
    if not is_gspn:
        settings = _fill(settings, _block_defaults(settings))
    if settings.mixer == "gspn":
        narrow = max(settings.width // 16, 1)
        scan_defaults = {
            "scan": "lines",
            "normalization": "row_stochastic",
            "groups": settings.width if is_gspn else narrow,
            "bottleneck": narrow if settings.module == "paper" else max(narrow, 16),
            "merge": "scalar",
            "direction_skip": False,
            "segment": 2,
            "global_blocks": min(2, settings.block_count) if is_gspn else settings.block_count,
            "scan_order": "parallel",
            "gate": "directions",
            "gain_groups": settings.width,
            "forget": "none",
        }
        return _fill(settings, scan_defaults)
    return _fill(settings, {"heads": max(settings.width // 64, 1) if resized or heads is None else heads})


def _block_defaults(settings: ModelSettings) -> dict:
    """The defaults of a DiT block by its mixer."""
    defaults = {"mlp_ratio": 3.25 if settings.local_path == "modulated" else 4.0}
    if settings.mixer != "attention":
        defaults["block"] = "mixer_mlp"
    if settings.block != "inverted_bottleneck":
        defaults |= {"mlp": "gelu", "mlp_norm_eps": 1e-6}
    return defaults


def _fill(settings: ModelSettings, defaults: dict) -> ModelSettings:
    return replace(settings, **{k: v for k, v in defaults.items() if getattr(settings, k) is None})


_POSITIVE = (
    "input_size",
    "in_channels",
    "num_classes",
    "width",
    "depth",
    "heads",
    "groups",
    "bottleneck",
    "gain_groups",
)
_NOT_NEGATIVE = ("segment", "global_blocks", "auxiliary_head")
_BOOLEAN = ("learn_sigma", "direction_skip", "checkpoint_activations")
_CHOICES = {
    key: get_args(get_args(hint)[0])
    for key, hint in get_type_hints(ModelConfig).items()
    if get_args(hint) and get_origin(get_args(hint)[0]) is Literal
}
"""Setting -> the values that its annotation allows."""


def _check_types(settings: ModelSettings) -> None:
    for key in _POSITIVE + _NOT_NEGATIVE:
        value, least = getattr(settings, key), 1 if key in _POSITIVE else 0
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"model setting {key} is {value!r}; expected an integer of {least} or more")
    for key in ("time_scale", "mlp_ratio", "mlp_norm_eps", "label_std"):
        value = getattr(settings, key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf
        ):
            raise ValueError(f"model setting {key} is {value!r}; expected a number above 0")
    for key in _BOOLEAN:
        value = getattr(settings, key)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"model setting {key} is {value!r}; expected true or false")
    for key, choices in _CHOICES.items():
        value = getattr(settings, key)
        if value is not None and value not in choices:
            raise ValueError(f"model setting {key} is {value!r}; expected one of {', '.join(choices)}")
    sizes = settings.kernel_sizes
    if sizes is not None and not (_is_integers(sizes) and len(sizes) == 2 and set(sizes) <= {7, 5, 3, 0}):
        raise ValueError(f"model setting kernel_sizes is {sizes!r}; expected two of 7, 5, 3 and 0 (none)")
    if settings.scan_blocks is not None and not _is_integers(settings.scan_blocks):
        raise ValueError(
            f"model setting scan_blocks is {settings.scan_blocks!r}; expected a list of integers"
        )


def _is_integers(value: object) -> bool:
    return isinstance(value, tuple) and all(type(item) is int for item in value)


def _check(settings: ModelSettings) -> None:
    """Check what settings mean together, once the defaults are in."""
    if settings.input_size % settings.patch_size:
        raise ValueError(
            f"input_size is {settings.input_size}; expected a multiple of {settings.patch_size}, "
            f"the patch size of {settings.name}"
        )
    if settings.family == "GSPN" and settings.depth % 2:
        raise ValueError(f"depth is {settings.depth}; expected an even number for {settings.name}")
    if settings.block == "inverted_bottleneck" and settings.mlp is not None:
        raise ValueError(f"mlp is {settings.mlp!r}; expected none: block 'inverted_bottleneck' has no MLP")
    if settings.block == "inverted_bottleneck":
        _refuse(settings, ("mlp_norm_eps",), "block 'inverted_bottleneck' has no MLP")
    if settings.family == "GSPN":
        _refuse(settings, _MLP_FIELDS, f"{settings.name} has no MLP")
        _refuse(
            settings, ("auxiliary_head",), f"long skips pass {settings.name}'s middle, which is no prediction"
        )
        if settings.local_path == "modulated":
            raise ValueError(
                f"local_path is 'modulated'; expected none or norm: {settings.name} has no adaLN"
            )
    if settings.module == "paper" and settings.local_path != "none":
        raise ValueError(
            f"local_path is {settings.local_path!r}; expected none: it needs a norm, and module 'paper' has none"
        )
    if settings.auxiliary_head is not None and settings.auxiliary_head >= settings.depth - 1:
        expected = (
            f"a block from 0 to {settings.depth - 2}, before the last" if settings.depth > 1 else "none"
        )
        raise ValueError(f"auxiliary_head is {settings.auxiliary_head}; expected {expected}")
    if settings.position == "sincos" and settings.width % 4:
        raise ValueError(f"width is {settings.width}; expected a multiple of 4 for sincos positions")
    if settings.mixer == "gspn":
        _refuse(settings, ("heads",), "mixer 'gspn' has no use for it")
        _check_scan(settings)
        return
    fields_of_others = _SCAN_FIELDS if settings.mixer == "conv_attention" else _SCAN_FIELDS + _MODULE_FIELDS
    _refuse(settings, fields_of_others, f"mixer {settings.mixer!r} has no use for it")
    if settings.width % settings.heads:
        raise ValueError(f"heads is {settings.heads}; expected a divisor of the width {settings.width}")


def _refuse(settings: ModelSettings, keys: tuple[str, ...], reason: str) -> None:
    for key in keys:
        value = getattr(settings, key)
        if value is not None:
            raise ValueError(f"{key} is {value!r}; expected none: {reason}")


def _check_scan(settings: ModelSettings) -> None:
    """Check what the settings of a GSPN module mean together."""
    for key in ("groups", "gain_groups"):
        value = getattr(settings, key)
        if settings.width % value:
            raise ValueError(f"{key} is {value}; expected a divisor of the width {settings.width}")
    if settings.global_blocks > settings.block_count:
        raise ValueError(
            f"global_blocks is {settings.global_blocks}; expected at most {settings.block_count}, all blocks"
        )
    if not set(settings.scan_blocks or ()) <= set(range(settings.block_count)):
        raise ValueError(
            f"scan_blocks is {list(settings.scan_blocks)}; expected blocks from 0 to {settings.block_count - 1}"
        )
    if settings.scan_order == "sequential" and (settings.merge == "linear" or settings.direction_skip):
        raise ValueError(
            "scan_order is 'sequential'; expected parallel with merge 'linear' or direction_skip, which need all "
            "four directions at once"
        )
    if settings.forget == "learned" and settings.normalization != "row_stochastic":
        raise ValueError(
            f"forget is 'learned'; expected none with normalization {settings.normalization!r}: it scales "
            "row-stochastic weights"
        )
    if settings.forget == "learned" and settings.scan == "identity":
        raise ValueError("forget is 'learned'; expected none: scan 'identity' has no weights")
    if settings.forget == "learned" and settings.groups == 1:
        raise ValueError("forget is 'learned'; expected none with groups 1: its reach goes by group")
