"""The parts of a training, built from its config; whatever does not fit together is a `UserError`."""

import dataclasses
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from gspn_dit.config import Config, DataConfig, TrainingConfig
from gspn_dit.data import Dataset, describe_dataset
from gspn_dit.data.mnist import Digits
from gspn_dit.data.pixels import training_pixels
from gspn_dit.diffusion import Diffusion, check_sampling, create_diffusion, default_sampler
from gspn_dit.errors import UserError
from gspn_dit.evaluation.validation import Validator, check_held_out, held_out_dataset
from gspn_dit.latents.dataset import LatentDataset
from gspn_dit.models.networks import create_model
from gspn_dit.models.settings import resolve_settings
from gspn_dit.processes import connect
from gspn_dit.random import WEIGHTS, seed_of
from gspn_dit.training.muon import MuonAdamW

AUXILIARY_WEIGHT = 0.5
"""Of an auxiliary head's loss, unless diffusion.auxiliary_weight says otherwise: that of arXiv 2512.24176."""


def create_dataset(config: DataConfig) -> Dataset:
    """The training set that `config.kind` names.

    Raises `UserError` when its folder is missing or not what encode_latents.py makes, or its images cannot be read.
    """
    if config.kind == "mnist":
        return Digits("train", config.tuning)
    if config.kind == "latents":
        return LatentDataset(config.path, config.normalization)
    return training_pixels(config.path, config.size, config.held_out, config.flip)


def fit_to_data(config: Config, dataset: Dataset, learn_sigma: bool) -> Config:
    """The config with the data set's own autoencoder, unless it names one.

    Raises `UserError` for sample classes that the data has not, and a model that cannot be.
    """
    for label in config.sample.classes or ():
        if label >= dataset.num_classes:
            raise UserError(
                f"sample.classes: expected classes from 0 to {dataset.num_classes - 1}, got {label}"
            )
    check_model(config, dataset, learn_sigma)
    autoencoder = config.data.autoencoder or dataset.autoencoder
    return dataclasses.replace(config, data=dataclasses.replace(config.data, autoencoder=autoencoder))


def check_before_reading(config: Config, learn_sigma: bool) -> None:
    """Raise `UserError` for a model that cannot be, while a folder of images, minutes to read, is still unread."""
    if config.data.kind == "images":
        shape = SimpleNamespace(size=config.data.size, channels=3, num_classes=1)
        check_model(config, shape, learn_sigma)


def check_model(config: Config, dataset: Dataset | SimpleNamespace, learn_sigma: bool) -> None:
    """Raise `UserError` for a model that cannot be, of data with this size, these channels and classes."""
    try:
        resolve_settings(**model_settings(config, dataset, learn_sigma))
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def model_settings(config: Config, dataset: Dataset | SimpleNamespace, learn_sigma: bool) -> dict[str, Any]:
    """What `create_model` is called with: what the config chooses, and what data and objective decide."""
    return {
        "input_size": dataset.size,
        "in_channels": dataset.channels,
        "num_classes": dataset.num_classes,
        "learn_sigma": learn_sigma,
        **{key: value for key, value in vars(config.model).items() if value is not None},
    }


def build_model(config: Config, dataset: Dataset, learn_sigma: bool) -> nn.Module:
    """The model of a config for a data set, with initial weights keyed by train.seed; see `fit_to_data`."""
    torch.manual_seed(seed_of(WEIGHTS, config.train.seed))
    return create_model(**model_settings(config, dataset, learn_sigma))


def build_diffusion(config: Config) -> Diffusion:
    """The objective of a config, once its settings and the sampler's are found to fit it."""
    settings = {key: value for key, value in vars(config.diffusion).items() if value is not None}
    if config.model.auxiliary_head is not None:
        settings.setdefault("auxiliary_weight", AUXILIARY_WEIGHT)
    sample, objective = config.sample, config.diffusion.objective
    sampler = sample.sampler or default_sampler(objective)
    try:
        check_sampling(
            objective,
            sampler,
            sample.steps,
            sample.cfg_scale,
            sample.cfg_interval,
            internal_guidance=sample.internal_guidance,
        )
        return create_diffusion(**settings)
    except ValueError as error:
        raise UserError(str(error)) from error


def build_validator(
    config: Config, dataset: Dataset, batch_size: int, accelerator: Accelerator
) -> Validator | None:
    """What measures the run on held-out images; None where there are none or none is asked for.

    Raises `UserError` when validation is asked for but there are no held-out images, or they do not fit.
    """
    train = config.train
    trained_on = describe_dataset(dataset)
    held_out = held_out_dataset(config.data, trained_on) if train.validation_images else None
    if held_out is None:
        if train.validate_every:
            raise UserError("train.validate_every: there are no held-out images; set it to 0")
        return None
    check_held_out(held_out, trained_on)
    return Validator(
        held_out,
        config.diffusion.objective,
        images=train.validation_images,
        batch_size=batch_size,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )


def block_classes(model: nn.Module) -> list[str]:
    """The names of the classes of a model's blocks, as accelerate wants them."""
    return sorted({name for module in model.modules() if (name := type(module).__name__).endswith("Block")})


def create_accelerator(config: TrainingConfig) -> Accelerator:
    """Device and processes as the launcher says; `UserError` when the batch cannot be shared among them."""
    # DDP takes the stride of an axis of length one (a depthwise kernel's) for a difference in layout.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    accelerator = connect(DistributedDataParallelKwargs(gradient_as_bucket_view=True))
    processes = accelerator.num_processes
    if config.batch_size % processes:
        expected = f"a multiple of the {processes} processes"
        raise UserError(f"train.batch_size: expected {expected}, got {config.batch_size}")
    return accelerator


def create_optimizer(
    model: nn.Module,
    config: TrainingConfig,
    device: torch.device,
    *,
    decay_all: bool = True,
    matrices: Sequence[nn.Parameter] = (),
    share: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW, in one fused kernel where the device has it; Muon for `matrices`, at a `share` of its rate.

    Without `decay_all` there is no weight decay on what has one axis: biases and the scales of norms.
    """
    apart = set(matrices)
    parameters: Any = [parameter for parameter in model.parameters() if parameter not in apart]
    if not decay_all:
        flat = [parameter for parameter in parameters if parameter.dim() <= 1]
        decayed = [parameter for parameter in parameters if parameter.dim() > 1]
        parameters = [{"params": decayed}, {"params": flat, "weight_decay": 0.0}]
    settings: Any = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "fused": device.type in ("cpu", "cuda"),
    }
    if not matrices:
        return torch.optim.AdamW(parameters, **settings)
    return MuonAdamW(matrices, parameters, share=share, **settings)
