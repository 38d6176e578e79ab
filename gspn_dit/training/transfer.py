"""What a new run takes of the weights of `train.init_from`: whatever fits, of an equal network everything.

A part of a network, such as the mixer of a block, is taken whole or begun anew. Whatever begins anew behind a gate
that is taken ends in zeros, as a residual branch does at its start: the network begins as the one that the weights
are of, without that part.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gspn_dit.checkpoint import read_state, weights_file
from gspn_dit.config import load_config
from gspn_dit.data import Dataset
from gspn_dit.errors import UserError
from gspn_dit.models.basics import zero_
from gspn_dit.models.networks import DiTBlock, modulation_rows
from gspn_dit.models.settings import ModelSettings, resolve_settings
from gspn_dit.models.weights import fill, read_weights
from gspn_dit.training.resume import show

FIXED = {
    "in_channels": "take other weights, or data of as many channels",
    "width": "give model.width={0}",
    "depth": "give model.depth={0}",
    "patch_size": "give a model.name that ends in /{0}",
}
"""Settings of a network without which nothing of its weights fits, and what to do."""
READ_BY = ("norm", "time_scale", "time_frequencies", "mlp_norm_eps")
"""Settings of a network without which its weights are not the same function, and that no shape tells."""
MIXER_READ_BY = ("heads", "module", "local_path", "scan", "normalization", "scan_order")
"""The same of its mixers, where both networks have the same kind."""
REACH = ("segment", "global_blocks")
"""How far the scans of the same mixers go, which a run may mean to change."""
PART = re.compile(r"(?:(?:blocks|first|second)\.\d+|middle)\.\w+|\w+")
"""The part of the network in the name of a parameter: blocks.3.mixer, embed_label."""

Tensors = dict[str, torch.Tensor]


def check_start(folder: Path, now: ModelSettings) -> None:
    """Raise `UserError` where the weights in `folder` are of a network of which `now` can take nothing, or has
    another reading."""
    load_config(folder / "config.yaml")  # which says what is no diffusion model
    before = resolve_settings(**read_state(folder)["model"])
    what = f"the weights of train.init_from {folder}"
    if (before.family == "GSPN") != (now.family == "GSPN"):
        raise UserError(
            f"model.name is {now.name}, but {what} are of another model, {before.name}, whose blocks are others: "
            "give weights of the same family"
        )
    if before.learn_sigma != now.learn_sigma:
        objective = "ddpm" if before.learn_sigma else "flow"
        raise UserError(
            f"{what} are of another model, of objective {objective}: give diffusion.objective={objective}"
        )
    for key, remedy in FIXED.items():
        old, new = getattr(before, key), getattr(now, key)
        if old != new:
            raise UserError(f"{what} are of another model: {key} {old}, expected {new}: {remedy.format(old)}")
    for key in (*READ_BY, *(MIXER_READ_BY if before.mixer == now.mixer else ())):
        old, new = getattr(before, key), getattr(now, key)
        if None not in (old, new) and old != new:
            raise UserError(
                f"model.{key} is {show(new)}, but {what} are for {show(old)}: give model.{key}={show(old)}"
            )


def begin_from(folder: Path, model: nn.Module, dataset: Dataset, report: Callable[[str], object]) -> None:
    """Fill a fresh model with what it can take of the EMA weights in `folder`, and say what that is.

    Where the networks and their classes are equal it takes all, or raises `UserError`.
    """
    state = read_state(folder)
    file = weights_file(folder, state, ema=True)
    before, now = resolve_settings(**state["model"]), model.settings
    names = (state.get("dataset", {}).get("class_names"), list(dataset.class_names))
    classes = other_classes(before.num_classes, now.num_classes, *names)
    report(f"starting from the EMA weights of {folder}")
    source, target = read_weights(file), model.state_dict()
    if classes is None and shapes(source) == shapes(target):
        fill(model, source, file)
    else:
        transfer = Transfer(source, target)
        transfer.take(before, now, {"embed_label"} if classes else set())
        transfer.zero_ends(model)
        report(transfer.told())
    for line in (classes, *remarks(before, now)):
        if line:
            report(line)


def shapes(tensors: Tensors) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def other_classes(before: int, now: int, names: list[str] | None, names_now: list[str]) -> str | None:
    """Why the label table begins anew; None where the classes are the same, or may be."""
    if before != now:
        return f"the label table is begun anew: {now} classes, the weights are for {before}"
    if names is not None and list(names) != names_now:
        old, new = next(pair for pair in zip(names, names_now, strict=True) if pair[0] != pair[1])
        return f"the label table is begun anew: other classes, such as {show(new)} where the weights have {show(old)}"
    return None


def remarks(before: ModelSettings, now: ModelSettings) -> Iterable[str]:
    """What the names of parameters do not say: positions, an MLP that another setting would take, how far scans go, and
    where an auxiliary head reads."""
    grids = [f"{side}x{side}" for side in (s.input_size // s.patch_size for s in (before, now))]
    if before.position != now.position:
        yield f"positions: {now.position}, the weights are for {before.position}"
    elif now.position != "none" and grids[0] != grids[1]:
        how = {"learned": "interpolated", "sincos": "begun anew (they are computed)"}[now.position]
        yield f"positions of {grids[1]} tokens, the weights are for {grids[0]}: {how}"
    keys = ("mlp", "mlp_ratio")
    differing = [key for key in keys if getattr(before, key) != getattr(now, key)]
    if differing and None not in (before.mlp, now.mlp):
        settings = " ".join(f"model.{key}={getattr(before, key)}" for key in differing)
        yield f"the MLPs are begun anew: {settings} would take them"
    for key in (*(REACH if before.mixer == now.mixer else ()), "auxiliary_head"):
        old, new = getattr(before, key), getattr(now, key)
        if None not in (old, new) and old != new:
            yield f"model.{key} is {new}, the weights are for {old}"


@dataclass
class Transfer:
    """Tensors of a file for those of a model, part by part."""

    source: Tensors
    target: Tensors
    taken: dict[str, int] = field(default_factory=dict)
    """Part, blocks not told apart -> parameters."""
    anew: dict[str, int] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    """Parts, blocks told apart."""
    gated: set[str] = field(default_factory=set)
    """Parts whose gate is taken."""

    @torch.no_grad()
    def take(self, before: ModelSettings, now: ModelSettings, excluded: set[str]) -> None:
        """Copy every part that is the same in both but the `excluded`; count it, and what begins anew."""
        parts = {part_of(name): {} for name in self.target}
        for name, tensor in self.target.items():
            parts[part_of(name)][name] = tensor
        later = []
        for part, tensors in parts.items():
            found = {name: tensor for name, tensor in self.source.items() if part_of(name) == part}
            if part in excluded:
                self.count(self.anew, part, tensors.values())
            elif part.endswith(".modulation") and part.startswith("blocks."):
                later.append((part, tensors))
            elif shapes(found) == shapes(tensors):
                for name, tensor in tensors.items():
                    tensor.copy_(found[name])
                self.count(self.taken, part, tensors.values())
            elif part == "embed_position" and found:
                (table,) = tensors.values()
                table.copy_(interpolated(*found.values(), table.shape[0]))
                self.count(self.taken, part, [table])
            else:
                self.begun.add(part)
                self.count(self.anew, part, tensors.values())
        for part, tensors in later:
            self.take_modulation(part, tensors, before, now)

    def take_modulation(self, part: str, tensors: Tensors, before: ModelSettings, now: ModelSettings) -> None:
        """Copy the rows of a block's modulation that steer what both blocks have."""
        block = part.removesuffix(".modulation")
        old_rows = modulation_rows(before)
        for steered, rows in modulation_rows(now).items():
            lost = steered == "local_path" and f"{block}.mixer" in self.begun  # it is of the mixer
            taken = steered in old_rows and not lost
            for name, tensor in tensors.items():
                if taken:
                    tensor[rows].copy_(self.source[name][old_rows[steered]])
                whole = f"{part}" if taken else f"{part}.{steered}"
                self.count(self.taken if taken else self.anew, whole, [tensor[rows]])
            if taken:
                self.gated.add(f"{block}.{steered}")

    def count(self, where: dict[str, int], part: str, tensors: Iterable[torch.Tensor]) -> None:
        key = re.sub(r"\.\d+\.", ".*.", part)
        where[key] = where.get(key, 0) + sum(tensor.numel() for tensor in tensors)

    def zero_ends(self, model: nn.Module) -> None:
        """Begin with zeros whatever begins anew behind a gate that was taken."""
        for name, block in model.named_modules():
            if not isinstance(block, DiTBlock):
                continue
            for kind, end in (("mixer", block.mixer.proj_out), ("mlp", block.mlp and block.mlp.out)):
                if f"{name}.{kind}" in self.begun & self.gated:
                    zero_(end)

    def told(self) -> str:
        """One line: how many parameters were taken and begun anew, and of which parts."""
        parts = [
            f"{sum(where.values()):,} parameters ({', '.join(sorted(where)) or 'none'})"
            for where in (self.taken, self.anew)
        ]
        return f"taken: {parts[0]}; begun anew: {parts[1]}"


def part_of(name: str) -> str:
    return PART.match(name)[0]


def interpolated(table: torch.Tensor, grid: int) -> torch.Tensor:
    """A learned table of positions (N, N, C) as one of (grid, grid, C), bicubic, as for vision transformers."""
    image = table.permute(2, 0, 1).unsqueeze(0)  # (1, C, N, N)
    return F.interpolate(image, (grid, grid), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
