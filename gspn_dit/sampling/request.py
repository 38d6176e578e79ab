"""Sampling from a trained run: the request and its checks, grids of classes, sample files of any length."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from gspn_dit.checkpoint import find_checkpoint, load_model, parts_of_run, read_state, weights_name
from gspn_dit.config import Config, load_config
from gspn_dit.diffusion import check_sampling, create_diffusion, default_sampler
from gspn_dit.diffusion.samplers import Watch
from gspn_dit.errors import NonFiniteError, UserError
from gspn_dit.files import claimed_file
from gspn_dit.latents.autoencoder import Autoencoder, create_autoencoder, fit_decoder
from gspn_dit.latents.normalization import difference
from gspn_dit.models.networks import create_model
from gspn_dit.models.settings import resolve_settings
from gspn_dit.processes import held_for_all, on_main_process
from gspn_dit.sampling.generation import generate, keyed_labels
from gspn_dit.sampling.grids import save_grid
from gspn_dit.sampling.intervals import INTERVALS
from gspn_dit.sampling.sample_file import SampleFile
from gspn_dit.signals import noting

GUIDE_SCALE = 2.1
"""Of a guide unless another is asked for: that of EDM2-S, guided by a smaller network trained for 1/16 as long (FID
1.34 for 2.56; arXiv 2406.02507)."""
GUIDE_FITS = ("in_channels", "input_size", "num_classes")
"""Settings of a model that its guide's must equal."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a run; None leaves a choice to the run's config."""

    run: str
    """A run folder, a checkpoint folder, or the hub id of a released run."""
    ema: bool = True
    """The averaged weights, not the last ones."""
    sampler: str | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    cfg_interval: tuple[float, float] | str | None = None
    """In the units of t, or a name of `INTERVALS`."""
    # Not in the repr, which names the sample files of evaluation: see `Resolved.guidance`.
    internal_guidance: float | None = field(default=None, repr=False)
    guide: str | None = field(default=None, repr=False)
    """Another run, in the same three ways, for autoguidance; then there is no other guidance unless asked for."""
    guide_scale: float | None = field(default=None, repr=False)
    seed: int = 0
    vae: str | None = None
    """Decoder in place of the run's own: a hub id or a folder, as for encode_latents.py."""
    size: tuple[int, int] | None = field(default=None, repr=False)
    """Height and width of the images in pixels, other than those trained on."""
    batch_size: int = 16

    def resolve(self) -> "Resolved":
        """Fill in the run's own choices and check them all, without loading a weight."""
        checkpoint = find_checkpoint(self.run)
        config = load_config(checkpoint / "config.yaml")
        defaults, objective = config.sample, config.diffusion.objective
        if self.guide is not None:
            defaults = dataclasses.replace(defaults, cfg_scale=1.0, cfg_interval=None, internal_guidance=1.0)
        sampler = self.sampler or defaults.sampler or default_sampler(objective)
        internal = defaults.internal_guidance if self.internal_guidance is None else self.internal_guidance
        request = dataclasses.replace(
            self,
            run=str(checkpoint),
            sampler=sampler,
            steps=defaults.steps if self.steps is None else self.steps,
            cfg_scale=defaults.cfg_scale if self.cfg_scale is None else self.cfg_scale,
            cfg_interval=in_times(self.cfg_interval, objective) or defaults.cfg_interval,
            internal_guidance=internal,
            guide=None if self.guide is None else str(find_checkpoint(self.guide)),
            guide_scale=self.scale_of_guide(),
            vae=self.vae or config.data.autoencoder,
        )
        try:
            check_sampling(
                objective,
                sampler,
                request.steps,
                request.cfg_scale,
                request.cfg_interval,
                request.internal_guidance,
                request.guide_scale,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        resolved = Resolved(request, config, read_state(checkpoint))
        resolved.check_positions()
        resolved.check_guides()
        return resolved

    def scale_of_guide(self) -> float | None:
        """None without a guide."""
        if self.guide is None:
            return None
        return GUIDE_SCALE if self.guide_scale is None else self.guide_scale


@dataclass(frozen=True)
class Resolved:
    """A request whose every choice is made and checked."""

    request: Request
    config: Config
    state: dict
    """state.json of the checkpoint."""

    @property
    def num_classes(self) -> int:
        return self.state["model"]["num_classes"]

    def inputs(self) -> list[tuple[str, Path]]:
        """What is read, by name and path: no output may replace it."""
        vae = [("--vae", Path(self.request.vae))] if self.request.vae else []
        guide = parts_of_run(Path(self.request.guide)) if self.request.guide else []
        return [*parts_of_run(Path(self.request.run)), *guide, *vae]

    def check_guides(self) -> None:
        """Raise `UserError` for a network that lacks the auxiliary head asked for, or a guide that does not fit."""
        request, model = self.request, self.state["model"]
        if request.internal_guidance != 1 and model.get("auxiliary_head") is None:
            raise UserError(
                f"internal_guidance is {request.internal_guidance:g}; expected 1 (none): the network of {request.run} "
                "was trained without an auxiliary head (model.auxiliary_head)"
            )
        if request.guide is None:
            return
        guide = Path(request.guide)
        state = read_state(guide)
        objective = load_config(
            guide / "config.yaml"
        ).diffusion.objective  # which says what is no diffusion model
        found = {key: state["model"][key] for key in GUIDE_FITS} | {"objective": objective}
        expected = {key: model[key] for key in GUIDE_FITS} | {"objective": self.config.diffusion.objective}
        for key, value in expected.items():
            if found[key] != value:
                raise UserError(
                    f"--guide {guide} has {key} {found[key]}; expected {value}, as {request.run} has"
                )
        if how := difference(state.get("dataset", {}), self.state.get("dataset", {})):
            raise UserError(
                f"--guide {guide} was trained {how} than those of {request.run}: give one trained on the same latents"
            )
        position = resolve_settings(**state["model"]).position
        if request.size is not None and position != "none":
            raise UserError(
                f"--size is for networks without positions; --guide {guide} has position {position!r}"
            )

    def check_classes(self, classes: list[int]) -> None:
        """Raise `UserError` for a class that the model was not trained on."""
        for label in classes:
            if not 0 <= label < self.num_classes:
                raise UserError(
                    f"--classes holds {label}; this model has the classes 0 to {self.num_classes - 1}"
                )

    def check_positions(self) -> None:
        """Raise `UserError` for another size than the one trained on where the network knows that one alone."""
        model = self.state["model"]
        position = resolve_settings(**model).position
        if self.request.size is not None and position != "none":
            raise UserError(
                f"--size is for networks without positions; {model['name']} of this run has position {position!r}, "
                f"for its {model['input_size']}x{model['input_size']} latents alone: leave it out"
            )

    def latent_size(self, autoencoder: Autoencoder) -> tuple[int, int]:
        """Height and width of the latents; `UserError` for a size in pixels that has no whole number of tokens."""
        settings = resolve_settings(**self.state["model"])
        if self.request.size is None:
            return settings.input_size, settings.input_size
        token = autoencoder.factor * settings.patch_size
        if any(length % token for length in self.request.size):
            raise UserError(
                f"--size {'x'.join(map(str, self.request.size))}: expected multiples of {token}, the pixels of a token "
                f"(patches of {settings.patch_size}, decoded to {autoencoder.factor} times the size)"
            )
        height, width = self.request.size
        return height // autoencoder.factor, width // autoencoder.factor

    def load_decoder(self, device: torch.device) -> Autoencoder:
        """The decoder, on the device; `UserError` when there is none, or it is not of this model's latents."""
        if self.request.vae is None and self.config.data.kind == "latents":
            raise UserError("the run does not say what decodes its latents: give --vae HUB_ID_OR_FOLDER")
        autoencoder = create_autoencoder(self.request.vae, device)
        model = self.state["model"]
        fit_decoder(
            autoencoder,
            self.state.get("dataset", {}),
            channels=model["in_channels"],
            size=resolve_settings(**model).input_size,
        )
        self.latent_size(autoencoder)
        return autoencoder

    def load_model(self, device: torch.device) -> nn.Module:
        """The model, on the device."""
        return load_model(self.request.run, ema=self.request.ema, device=device)[0]

    def load_guide(self, device: torch.device) -> nn.Module | None:
        """The model that guides, on the device; None where none does."""
        request = self.request
        return load_model(request.guide, ema=request.ema, device=device)[0] if request.guide else None

    def guidance(self) -> dict:
        """The guidance in use beside `cfg_scale`; a guide by the hash of its weights."""
        request, used = self.request, {}
        if request.internal_guidance != 1:
            used["internal_guidance"] = request.internal_guidance
        if request.guide is not None:
            state = read_state(Path(request.guide))
            used["guide"] = state["files"][weights_name(state, request.ema)]["sha256"]
            used["guide_scale"] = request.guide_scale
        return used

    def settings(self, autoencoder: Autoencoder, labels: str) -> dict:
        """What decides the images of a sample file, stored beside it and printed with its scores."""
        request, state = self.request, self.state
        with torch.device("meta"):
            model = create_model(**state["model"])
        return {
            "path": request.run,
            "checkpoint": state["files"][weights_name(state, request.ema)]["sha256"],
            "model": self.config.model.name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "training_step": state["step"],
            "training_images": state["images_seen"],
            "ema": request.ema,
            "objective": self.config.diffusion.objective,
            "sampler": request.sampler,
            "steps": request.steps,
            "cfg_scale": request.cfg_scale,
            "cfg_interval": request.cfg_interval,
            **self.guidance(),
            "labels": labels,
            "seed": request.seed,
            "size": list(request.size) if request.size else None,
            "decoder": autoencoder.identity,
        }

    def generate(
        self,
        model: nn.Module,
        autoencoder: Autoencoder,
        labels: torch.Tensor,
        indices: torch.Tensor,
        device: torch.device,
        progress: bool = True,
        watch: Watch | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`gspn_dit.sampling.generation.generate` with the request's choices, and its guide loaded."""
        request = self.request
        return generate(
            model,
            self.config,
            autoencoder,
            labels,
            indices,
            seed=request.seed,
            sampler=request.sampler,
            steps=request.steps,
            cfg_scale=request.cfg_scale,
            cfg_interval=request.cfg_interval,
            size=self.latent_size(autoencoder),
            internal_guidance=request.internal_guidance,
            guide=self.load_guide(device),
            guide_scale=request.guide_scale,
            batch_size=request.batch_size,
            device=device,
            progress=progress,
            watch=watch,
        )


def in_times(interval: tuple[float, float] | str | None, objective: str) -> tuple[float, float] | None:
    """An interval, which may be a name of `INTERVALS`, in the units of t of an objective."""
    if not isinstance(interval, str):
        return interval
    published = INTERVALS[interval]
    return create_diffusion(objective).interval(published.low, published.high)


def sample_grid(
    resolved: Resolved, classes: list[int], per_class: int, path: Path, device: torch.device
) -> None:
    """Write a PNG with a row of `per_class` samples for each class."""
    resolved.check_classes(classes)
    autoencoder = resolved.load_decoder(device)
    model = resolved.load_model(device)
    labels = torch.tensor(classes).repeat_interleave(per_class)
    batches = resolved.generate(model, autoencoder, labels, torch.arange(len(labels)), device)
    images = torch.cat([images for _, images in batches])
    save_grid(images, len(classes), path)


def sample_file(resolved: Resolved, count: int, labels: str, path: Path, accelerator: Accelerator) -> dict:
    """Write `count` samples as one npz, or what is missing of it; returns its settings.

    Every process must call this: each makes its own shards, the first joins them. Memory does not grow with
    `count`.
    """
    autoencoder = resolved.load_decoder(accelerator.device)
    settings = {**resolved.settings(autoencoder, labels), "count": count}
    file = SampleFile(path, count, settings)
    file.check()
    if file.complete:
        return settings
    main = accelerator.is_main_process
    with held_for_all(main, claimed_file(path)), noting(file.kept):
        file.check()
        if not file.complete:  # by another, a moment ago
            height, width = resolved.latent_size(autoencoder)
            image_bytes = 3 * height * width * autoencoder.factor**2
            accelerator.print(on_main_process(main, lambda: file.room(image_bytes)))
            fill(resolved, file, autoencoder, labels, accelerator)
    return settings


def fill(
    resolved: Resolved,
    file: SampleFile,
    autoencoder: Autoencoder,
    labels: str,
    accelerator: Accelerator,
) -> None:
    """Sample the shards that are missing, then join them all."""
    model = resolved.load_model(accelerator.device)
    file.open()
    shards = file.missing(accelerator.process_index, accelerator.num_processes)
    numbers = [number for shard in shards for number in file.numbers(shard)]
    indices = torch.tensor(numbers, dtype=torch.int64)
    y = keyed_labels(indices, resolved.num_classes, seed=resolved.request.seed, balanced=labels == "balanced")
    batches = resolved.generate(
        model, autoencoder, y, indices, accelerator.device, progress=accelerator.is_main_process
    )
    places = iter(y.split(resolved.request.batch_size))
    try:
        file.write(shards, ((images.numpy(), next(places).numpy()) for _, images in batches))
    except NonFiniteError:
        file.close_unused()
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        file.merge()
    accelerator.wait_for_everyone()
