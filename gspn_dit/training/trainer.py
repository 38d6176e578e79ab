"""The training of a diffusion model: its parts, sample grids and results."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from gspn_dit.checkpoint import find_checkpoint
from gspn_dit.config import Config, load_config
from gspn_dit.data.batches import Batch, Batches
from gspn_dit.diffusion import Diffusion
from gspn_dit.errors import NonFiniteError
from gspn_dit.models.settings import ModelSettings, resolve_settings
from gspn_dit.sampling.grids import NoDecoder, draw_grid, save_grid
from gspn_dit.training.build import (
    build_diffusion,
    build_model,
    build_validator,
    check_before_reading,
    create_accelerator,
    create_dataset,
    create_optimizer,
    fit_to_data,
    model_settings,
)
from gspn_dit.training.distillation import Distillation, Teacher, find_teacher
from gspn_dit.training.loop import Loop, run_training
from gspn_dit.training.results import check_tools, finish_run, open_decoder
from gspn_dit.training.resume import check_same_teacher
from gspn_dit.training.run_folder import check_run_dir
from gspn_dit.training.transfer import begin_from, check_start


class Trainer(Loop):
    """The training of a denoising network; see `Loop`."""

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.diffusion = build_diffusion(config)
        check_before_reading(config, self.diffusion.learn_sigma)
        self.dataset = create_dataset(config.data)
        self.config = fit_to_data(config, self.dataset, self.diffusion.learn_sigma)
        self.batches = self.create_batches()
        self.validator = build_validator(config, self.dataset, self.batches.micro_batch, accelerator)
        self.source = self.find_source()
        settings = resolve_settings(**model_settings(self.config, self.dataset, self.diffusion.learn_sigma))
        self.teacher = self.find_teacher(settings)
        if self.source and not self.step:
            check_start(self.source, settings)
        model = build_model(self.config, self.dataset, self.diffusion.learn_sigma)
        self.model_settings = model.config
        self.check_room(sum(parameter.numel() for parameter in model.parameters()))
        self.open_decoder(config)
        if self.source and not self.step:
            begin_from(self.source, model, self.dataset, self.report)
        self.prepare(model)
        self.resume()

    def open_decoder(self, config: Config) -> None:
        """Get what decodes the sample grids before hours of training, on the process that writes them."""
        if self.main:
            self.decoder = open_decoder(config, self.dataset, self.accelerator.device, self.report)
        else:
            self.decoder = NoDecoder()
        self.shows_samples = broadcast_object_list([self.decoder is not None])[0]

    def create_batches(self) -> Batches:
        """This process's share of the training set."""
        train = self.config.train
        return Batches(
            self.dataset,
            batch_size=train.batch_size,
            micro_batch=train.micro_batch,
            class_dropout=train.class_dropout,
            times=self.diffusion.times,
            contrast=self.diffusion.contrast,
            seed=train.seed,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            pin=self.accelerator.device.type == "cuda",
        )

    def find_source(self) -> Path | None:
        """The newest undamaged checkpoint, which must be of this very run, or else that of train.init_from."""
        init_from = self.config.train.init_from
        return super().find_source() or (find_checkpoint(init_from) if init_from else None)

    def find_teacher(self, settings: ModelSettings) -> Teacher | None:
        """Who teaches the steps that are left; `UserError` when the steps before had another teacher."""
        if self.step == self.config.train.steps:
            return None
        teacher = find_teacher(self.config, settings, self.dataset)
        if self.step:
            check_same_teacher(self.source, teacher.hash if teacher else None)
        return teacher

    def prepare(self, model: nn.Module) -> None:
        super().prepare(model)
        self.objective: Diffusion | Distillation = self.diffusion
        if self.teacher:
            compiled = self.config.train.compile
            self.objective = Distillation(self.diffusion, self.teacher, self.model, compile=compiled)

    def resume(self) -> None:
        """Take up the training from `source`; a new one has its first weights already."""
        if self.step:
            super().resume()

    def kept(self) -> dict[str, Any]:
        return {"teacher": self.teacher.hash} if self.teacher else {}

    def notes(self) -> list[str]:
        return [*super().notes(), *([str(self.teacher)] if self.teacher else [])]

    def load_config(self, path: Path) -> Config:
        return load_config(path)

    def create_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return create_optimizer(model, self.config.train, self.accelerator.device)

    def backward(self, batch: Batch) -> torch.Tensor:
        """Add a micro-batch to the gradient; its share of this process's mean of each loss term, (terms,)."""
        bf16 = self.config.train.precision == "bf16"
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16):
            contrast = {} if batch.contrast is None else {"contrast": batch.contrast}
            losses = self.objective.losses(self.wrapped, batch.x, batch.t, batch.y, batch.noise, **contrast)
        self.accelerator.backward(losses["loss"].sum() / self.batches.local)
        self.columns = (*losses, "grad_norm")
        return torch.stack([term.detach().sum() for term in losses.values()]) / self.batches.local

    def measure(self) -> dict[str, float] | None:
        """The loss on held-out images, as gspn_dit/evaluation/validation.py defines it."""
        return None if self.validator is None else self.validator(self.model, self.accelerator).means()

    def between(self, stop: int) -> None:
        """A sample grid, where one is due."""
        train = self.config.train
        if self.shows_samples and self.due(train.sample_every) and not stop and self.step < train.steps:
            self.sample()

    def sample(self) -> None:
        """A grid from the EMA weights; all processes draw it, as a sharded model needs, and one writes it."""
        with self.clock.paused(), self.ema.swapped():
            try:
                images, rows = draw_grid(self.model, self.config, self.decoder, self.accelerator.device)
            except NonFiniteError as error:  # of guidance or a decoder: the training itself may be sound
                self.report(f"step {self.step}: no sample grid: {error}")
                return
        if self.main:
            save_grid(images, rows, self.run_dir / "samples" / f"step_{self.step:08d}.png")

    def headline(self) -> str:
        return f"{self.config.diffusion.objective}, {len(self.dataset)} images of {self.config.data.kind}"

    def finish(self, fresh: bool) -> None:
        finish_run(self.config, self.decoder, self.accelerator.device, fresh, self.report)


def train(config: Config) -> int:
    """Train as `config` says, continuing the run in its folder if there is one; the exit status."""
    check_run_dir(config)
    check_tools(config)
    return run_training(Trainer, config, create_accelerator(config.train))
