"""Training: steps, logs, sample grids and checkpoints, on any number of processes through accelerate."""

import contextlib
import errno
import math
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from gspn_dit import signals
from gspn_dit.checkpoint import (
    find_checkpoint,
    latest_checkpoint,
    newest_undamaged,
    read_state,
    rotate,
    weights_file,
)
from gspn_dit.config import Config, load_config, save_config
from gspn_dit.data import describe_dataset
from gspn_dit.data.batches import Batch, Batches
from gspn_dit.errors import NonFiniteError, UserError
from gspn_dit.files import claimed
from gspn_dit.models.weights import load_weights
from gspn_dit.processes import held_for_all, not_taken, on_main_process, progress_bar
from gspn_dit.sampling.grids import NoDecoder, draw_grid, save_grid
from gspn_dit.training.build import (
    block_classes,
    build_diffusion,
    build_model,
    build_validator,
    create_accelerator,
    create_dataset,
    create_optimizer,
    fit_to_data,
)
from gspn_dit.training.clock import Clock
from gspn_dit.training.ema import EMA
from gspn_dit.training.log import MetricsLog
from gspn_dit.training.results import check_tools, finish_run, open_decoder
from gspn_dit.training.resume import check_same_data, check_same_run, check_start
from gspn_dit.training.run_folder import check_room, check_run_dir
from gspn_dit.training.schedule import learning_rate, rate_change
from gspn_dit.training.state import load_training_state, save_checkpoint
from gspn_dit.training.stops import Agreement


class Trainer:
    """One run, from its newest checkpoint to `train.steps`."""

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        self.run_dir = Path(config.run_dir)
        self.diffusion = build_diffusion(config)
        self.dataset = create_dataset(config.data)
        self.config = fit_to_data(config, self.dataset, self.diffusion.learn_sigma)
        self.batches = self.create_batches()
        self.validator = build_validator(config, self.dataset, self.batches.micro_batch, accelerator)
        self.step = 0
        self.source = self.find_source()
        model = build_model(self.config, self.dataset, self.diffusion.learn_sigma)
        self.model_settings = model.config
        if self.source and not self.step:
            check_start(self.source, model.config)
        self.check_room(sum(parameter.numel() for parameter in model.parameters()))
        self.open_decoder(config)
        self.prepare(model)
        self.pending: list[torch.Tensor] = []
        """Measurements of the newest steps, (loss terms and gradient norm), still on the device."""
        self.window: list[dict[str, float]] = []
        """Measurements since the last row of the log, read back and averaged over the processes."""
        self.columns: tuple[str, ...] = ()
        self.log: MetricsLog | None = None
        self.resume()

    def open_decoder(self, config: Config) -> None:
        """Get what decodes the sample grids before hours of training, on the process that writes them."""
        if self.main:
            self.decoder = open_decoder(config, self.dataset, self.accelerator.device, self.report)
        else:
            self.decoder = NoDecoder()
        self.shows_samples = broadcast_object_list([self.decoder is not None])[0]

    def check_room(self, parameters: int) -> None:
        """Say where checkpoints will fill the disk; `UserError` where none fits."""
        train = self.config.train
        check = partial(check_room, self.run_dir, parameters, train, self.step)
        if warning := on_main_process(self.main, check):
            self.report(warning)

    def prepare(self, model: nn.Module) -> None:
        """Move to the device, compile, and wrap for several processes."""
        train, accelerator = self.config.train, self.accelerator
        if train.compile:
            model.compile()
        model.to(accelerator.device)
        model._no_split_modules = block_classes(model)  # what FSDP2 shards, and gathers, one at a time
        optimizer = create_optimizer(model, train, accelerator.device)
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.model = accelerator.unwrap_model(self.wrapped)
        self.ema = EMA(self.model, train.ema_decay)

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
        folder = on_main_process(self.main, lambda: newest_undamaged(self.run_dir, self.report))
        train = self.config.train
        if folder is None:
            return find_checkpoint(train.init_from) if train.init_from else None
        before, state = load_config(folder / "config.yaml"), read_state(folder)
        check_same_run(folder, before, self.config)
        check_same_data(folder, state["dataset"], self.dataset)
        if state["step"] > train.steps:
            raise UserError(f"train.steps is {train.steps}, but {folder} is further: raise it")
        self.step = state["step"]
        return folder

    def resume(self) -> None:
        """Take up the training, or begin it, from `source`."""
        folder = self.source
        if not self.step:
            self.initialise()
            return
        optimizer = self.optimizer.optimizer
        state = load_training_state(folder, model=self.model, optimizer=optimizer, ema=self.ema)
        self.window = state["window"]
        self.report(f"continuing from {folder}")
        if change := rate_change(load_config(folder / "config.yaml").train, self.config.train, self.step):
            self.report(change)

    def initialise(self) -> None:
        """Begin a new run, from the weights of `train.init_from` when it is set."""
        if folder := self.source:
            load_weights(self.model, weights_file(folder, read_state(folder), ema=True))
            self.ema.copy_from_model()
            self.report(f"starting from the EMA weights of {folder}")

    def run(self) -> int:
        """Train to the last step, then make the run's results; the exit status."""
        if self.main:
            save_config(self.config, self.run_dir / "config.yaml")
        self.describe()
        fresh = self.step < self.config.train.steps
        stopped = self.train() if fresh else 0
        if stopped:
            signals.say(
                f"stopped by {signals.name_of(stopped)} at step {self.step}; the same command continues"
            )
        else:
            device = self.accelerator.device
            on_main_process(
                self.main, lambda: finish_run(self.config, self.decoder, device, fresh, self.report)
            )
        self.accelerator.wait_for_everyone()
        return signals.exit_status(stopped) if stopped else 0

    def train(self) -> int:
        """All steps that are left; the signal that stopped them, once there is a checkpoint, or 0."""
        train = self.config.train
        on_main_process(self.main, self.open_log)
        self.clock = Clock(self.step)
        agreement = Agreement(self.accelerator, self.step)
        with contextlib.ExitStack() as stack:
            request = stack.enter_context(signals.handling(self.announce_stop, self.lost))
            self.bar = stack.enter_context(self.progress_bar())
            if self.log:
                stack.callback(self.log.close)
            for batches in self.batches(self.step, train.steps):
                self.train_step(batches)
                stop = agreement(request.number, self.step)
                validation = self.validate()
                if self.due(train.log_every) or self.step == train.steps or validation:
                    self.log_row(validation)
                samples = self.shows_samples and self.due(train.sample_every) and not stop
                if samples and self.step < train.steps:
                    self.sample()
                if self.due(train.checkpoint_every) or self.step == train.steps or stop:
                    self.save()
                if stop:
                    self.bar.disable = True  # there may be no terminal any more
                    return stop
                self.bar.update()
        return 0

    def open_log(self) -> None:
        self.log = MetricsLog(self.config, self.step)

    def announce_stop(self, number: int) -> None:
        """Say what the first stop signal does."""
        signals.say(f"{signals.name_of(number)}: a checkpoint after this step; once more leaves at once")

    def lost(self) -> str:
        """What leaving at once loses, for the message."""
        kept = latest_checkpoint(self.run_dir)
        step = read_state(kept)["step"] if kept else 0
        return f"steps {step + 1} to {self.step} are lost; the same command continues from step {step}"

    def train_step(self, batches: list[Batch]) -> None:
        """One optimiser step: the gradient is that of the mean loss over the global batch."""
        rate = learning_rate(self.step, self.config.train)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        measured = 0
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                measured = measured + self.backward(batch.to(self.accelerator.device))
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.train.clip or math.inf)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.step)
        self.pending.append(torch.cat([measured, norm.reshape(1)]))
        self.step += 1

    def backward(self, batch: Batch) -> torch.Tensor:
        """Add a micro-batch to the gradient; its share of this process's mean of each loss term, (terms,)."""
        bf16 = self.config.train.precision == "bf16"
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16):
            contrast = {} if batch.contrast is None else {"contrast": batch.contrast}
            losses = self.diffusion.losses(self.wrapped, batch.x, batch.t, batch.y, batch.noise, **contrast)
        self.accelerator.backward(losses["loss"].sum() / self.batches.local)
        self.columns = (*losses, "grad_norm")
        return torch.stack([term.detach().sum() for term in losses.values()]) / self.batches.local

    def collect(self) -> None:
        """Read the pending measurements back; `UserError` at the first that is not finite."""
        if not self.pending:
            return
        rows = self.accelerator.reduce(torch.stack(self.pending), "mean").tolist()
        first = self.step - len(rows) + 1
        self.pending.clear()
        for step, values in enumerate(rows, first):
            row = dict(zip(self.columns, values, strict=True))
            for name in ("loss", "grad_norm"):
                if not math.isfinite(row[name]):
                    raise UserError(f"step {step}: {name} is {row[name]}; stopped, {self.last_good()}")
            self.window.append(row)

    def validate(self) -> dict[str, float]:
        """The EMA weights' loss on held-out images, where it is due; all processes compute it together."""
        last = self.step == self.config.train.steps
        if self.validator is None or not (last or self.due(self.config.train.validate_every)):
            return {}
        with self.clock.paused(), self.ema.swapped():
            means = self.validator(self.model, self.accelerator).means()
        self.report(f"step {self.step}: validation " + ", ".join(f"{k} {v:.5f}" for k, v in means.items()))
        return {f"validation_{name}": value for name, value in means.items()}

    def log_row(self, validation: dict[str, float]) -> None:
        """Write the means since the last row, and the validation of this step."""
        self.collect()
        count = len(self.window)
        means = {name: sum(row[name] for row in self.window) / count for name in self.window[0]}
        self.window.clear()
        speed = self.clock.lap(self.step) * self.batches.batch_size
        if self.log:
            self.log.write(
                {
                    "step": self.step,
                    "images": self.step * self.batches.batch_size,
                    **means,
                    "learning_rate": learning_rate(self.step - 1, self.config.train),
                    "images_per_second": round(speed, 2),
                    **validation,
                }
            )
        self.bar.set_postfix({"loss": f"{means['loss']:.4f}", "images/s": f"{speed:.1f}"}, refresh=False)

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

    def save(self) -> None:
        """Write a checkpoint and drop the oldest; `UserError` when it cannot be written."""
        self.collect()
        if self.log:
            self.log.sync()
        state = {
            "step": self.step,
            "images_seen": self.step * self.batches.batch_size,
            "model": self.model_settings,
            "dataset": describe_dataset(self.dataset),
            "window": self.window,
        }
        with self.clock.paused():
            problem = save_checkpoint(
                self.run_dir,
                config=self.config,
                model=self.model,
                optimizer=self.optimizer.optimizer,
                ema=self.ema,
                state=state,
                main=self.main,
            )
            problem = broadcast_object_list([problem])[0]
            if problem:
                raise UserError(f"step {self.step}: no checkpoint written ({problem}); {self.last_good()}")
            if self.main:
                rotate(self.run_dir, self.config.train.keep_last, self.step)

    def last_good(self) -> str:
        """Where a run that stops can go on from, for the message."""
        folder = latest_checkpoint(self.run_dir)
        return f"the last good checkpoint is {folder}" if folder else "there is no checkpoint yet"

    def due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def describe(self) -> None:
        """Say what is about to run."""
        for line in not_taken():
            self.report(line)
        train, accelerator = self.config.train, self.accelerator
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        objective, kind = self.config.diffusion.objective, self.config.data.kind
        self.report(
            f"{self.config.model.name}, {millions:.2f}M parameters, {objective}, "
            f"{len(self.dataset)} images of {kind}"
        )
        for note in getattr(self.dataset, "notes", ()):
            self.report(note)
        self.report(
            f"{accelerator.num_processes} x {accelerator.device.type}, precision {train.precision}, batch "
            f"{train.batch_size} in micro-batches of {self.batches.micro_batch}, "
            f"steps {self.step} to {train.steps}, in {self.run_dir}"
        )

    def progress_bar(self) -> tqdm:
        return progress_bar(
            total=self.config.train.steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=not self.main,
        )

    def report(self, message: str) -> None:
        if self.main:
            tqdm.write(message)


def what_is_kept(run_dir: Path) -> str:
    """What an interrupt before or after the steps leaves, for the message."""
    folder = latest_checkpoint(run_dir)
    return f"{folder} is kept: the same command goes on" if folder else "no step was trained yet"


def train(config: Config) -> int:
    """Train as `config` says, continuing the run in its folder if there is one; the exit status."""
    check_run_dir(config)
    check_tools(config)
    run_dir = Path(config.run_dir)
    with contextlib.ExitStack() as stack:
        accelerator = create_accelerator(config.train)
        stack.callback(accelerator.end_training)
        stack.enter_context(held_for_all(accelerator.is_main_process, claimed(run_dir)))
        stack.enter_context(signals.noting(lambda: what_is_kept(run_dir)))
        try:
            return Trainer(config, accelerator).run()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            what = f"cannot write {error.filename or config.run_dir}: {error.strerror}"
            raise UserError(f"{what}; free some space, and the same command continues") from error
