"""The steps of a training, whatever is learned: logs, validation, checkpoints and stops, on any number of processes."""

import contextlib
import errno
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from gspn_dit import signals
from gspn_dit.checkpoint import kept_steps, latest_checkpoint, newest_undamaged, read_state, rotate
from gspn_dit.config import save_config
from gspn_dit.data import Dataset, describe_dataset
from gspn_dit.data.batches import Shares, Tensors
from gspn_dit.errors import UserError
from gspn_dit.files import claimed
from gspn_dit.processes import held_for_all, not_taken, on_main_process, progress_bar
from gspn_dit.training.build import block_classes
from gspn_dit.training.clock import Clock
from gspn_dit.training.ema import EMA
from gspn_dit.training.log import MetricsLog
from gspn_dit.training.resume import check_same_data, check_same_run
from gspn_dit.training.run_folder import check_room
from gspn_dit.training.schedule import learning_rate, rate_change
from gspn_dit.training.state import load_training_state, save_checkpoint
from gspn_dit.training.stops import Agreement, guarded, keeping


class Loop:
    """One run, from its newest checkpoint to `train.steps`.

    A kind of training is a subclass. Its `__init__` sets `dataset`, `batches` and `model_settings` (what builds the
    model again), and calls `find_source`, `check_room`, `prepare` and `resume` in this order; its methods say what is
    learned and shown.
    """

    dataset: Dataset
    batches: Shares
    model_settings: dict[str, Any]

    def __init__(self, config: Any, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        self.config = config
        self.run_dir = Path(config.run_dir)
        self.step = 0
        self.source: Path | None = None
        self.pending: list[torch.Tensor] = []
        """Measurements of the newest steps, (loss terms and gradient norm), still on the device."""
        self.window: list[dict[str, float]] = []
        """Measurements since the last row of the log, read back and averaged over the processes."""
        self.columns: tuple[str, ...] = ()
        self.log: MetricsLog | None = None

    def load_config(self, path: Path) -> Any:
        """A config of the run's kind."""
        raise NotImplementedError  # abstract: the config's class is that of what is trained

    def create_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        raise NotImplementedError  # abstract: which parameters decay differs between diffusion and classification

    def backward(self, batch: Tensors) -> torch.Tensor:
        """Add a micro-batch to the gradient; its share of this process's mean of each loss term, (terms,).

        Sets `columns`, the terms' names and grad_norm; the first is the loss.
        """
        raise NotImplementedError  # abstract: the loss is that of the task

    def measure(self) -> dict[str, float] | None:
        """What the model, which holds the EMA weights, is worth on held-out images; None where there are none."""
        raise NotImplementedError  # abstract: held-out loss or accuracy, by the task

    def headline(self) -> str:
        """What is trained on what, without the number of parameters."""
        raise NotImplementedError  # abstract: it names the task's network and data

    def finish(self, fresh: bool) -> None:
        """Make the results of a run that is at its end, on the main process; `fresh`: it was trained just now."""
        raise NotImplementedError  # abstract: samples and scores, or an evaluation, by the task

    def between(self, stop: int) -> None:
        """What else is due after a step; `stop` is the signal that ends the run after it, 0 for none."""

    def kept(self) -> dict[str, Any]:
        """What else a checkpoint's state remembers."""
        return {}

    def notes(self) -> list[str]:
        """What to say before the first step."""
        return list(getattr(self.dataset, "notes", ()))

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
        optimizer = self.create_optimizer(model)
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.model = accelerator.unwrap_model(self.wrapped)
        self.ema = EMA(self.model, train.ema_decay)

    def find_source(self) -> Path | None:
        """The newest undamaged checkpoint, which must be of this very run; None for a new one."""
        folder = on_main_process(self.main, lambda: newest_undamaged(self.run_dir, self.report))
        if folder is None:
            return None
        before, state = self.load_config(folder / "config.yaml"), read_state(folder)
        check_same_run(folder, before, self.config)
        check_same_data(folder, state["dataset"], self.dataset)
        if state["step"] > self.config.train.steps:
            raise UserError(f"train.steps is {self.config.train.steps}, but {folder} is further: raise it")
        self.step = state["step"]
        return folder

    def resume(self) -> None:
        """Take up the training from `source`, the newest checkpoint of a run that has any."""
        folder = self.source
        optimizer = self.optimizer.optimizer
        state = load_training_state(folder, model=self.model, optimizer=optimizer, ema=self.ema)
        self.window = state["window"]
        self.report(f"continuing from {folder}")
        before = self.load_config(folder / "config.yaml").train
        if change := rate_change(before, self.config.train, self.step):
            self.report(change)

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
            on_main_process(self.main, lambda: self.finish(fresh))
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
            for batches in guarded(self.batches(self.step, train.steps), self.keeping()):
                self.train_step(batches)
                stop = agreement(request.number, self.step)
                validation = self.validate()
                if self.due(train.log_every) or self.step == train.steps or validation:
                    self.log_row(validation)
                self.between(stop)
                if self.due(train.checkpoint_every) or self.step == train.steps or stop:
                    self.save()
                if stop:
                    self.bar.disable = True  # there may be no terminal any more
                    return stop
                self.bar.update()
        return 0

    def keeping(self) -> contextlib.AbstractContextManager[None]:
        """See `keeping`; of several processes the others wait for this one in the middle of a step."""
        return keeping(self, self.save if self.accelerator.num_processes == 1 else None)

    def open_log(self) -> None:
        self.log = MetricsLog(self.config, self.step)

    def announce_stop(self, number: int) -> None:
        """Say what the first stop signal does."""
        signals.say(f"{signals.name_of(number)}: a checkpoint after this step; once more leaves at once")

    def lost(self) -> str:
        """What leaving at once loses, for the message."""
        step = kept_steps(self.run_dir)
        return f"steps {step + 1} to {self.step} are lost; the same command continues from step {step}"

    def train_step(self, batches: list[Tensors]) -> None:
        """One optimiser step: the gradient is that of the mean loss over the global batch."""
        rate = learning_rate(self.step, self.config.train)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
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
        """Measure the EMA weights on held-out images, where it is due; all processes compute it together."""
        last = self.step == self.config.train.steps
        if not (last or self.due(self.config.train.validate_every)):
            return {}
        with self.keeping(), self.clock.paused(), self.ema.swapped():
            means = self.measure()
        if means is None:
            return {}
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
            **self.kept(),
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
        self.report(f"{self.config.model.name}, {millions:.2f}M parameters, {self.headline()}")
        for note in self.notes():
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


def run_training(kind: type[Loop], config: Any, accelerator: Accelerator) -> int:
    """Train as `config` says, continuing the run in its folder if there is one; the exit status."""
    run_dir = Path(config.run_dir)
    with contextlib.ExitStack() as stack:
        stack.callback(accelerator.end_training)
        stack.enter_context(held_for_all(accelerator.is_main_process, claimed(run_dir)))
        stack.enter_context(signals.noting(lambda: what_is_kept(run_dir)))
        try:
            return kind(config, accelerator).run()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            what = f"cannot write {error.filename or config.run_dir}: {error.strerror}"
            raise UserError(f"{what}; free some space, and the same command continues") from error
