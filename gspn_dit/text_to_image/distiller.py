"""Distillation: the new modules of a student learn to do what the teacher's self-attention does (arXiv 2501.12381)."""

import contextlib
import errno
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from gspn_dit import signals
from gspn_dit.checkpoint import RECORDS, checkpoints, latest_checkpoint, newest_undamaged, read_state, rotate
from gspn_dit.config import save_config
from gspn_dit.errors import UserError, require_packages
from gspn_dit.files import check_output_folder, claimed, refuse_inputs
from gspn_dit.latents.autoencoder import hash_weights
from gspn_dit.processes import progress_bar
from gspn_dit.text_to_image.captioned import CaptionedBatch, CaptionedBatches, CaptionedImages
from gspn_dit.text_to_image.distil_config import DistilConfig, load_distil_config
from gspn_dit.text_to_image.replacement import scan_modules
from gspn_dit.text_to_image.student import (
    check_teacher,
    load_student,
    make_student,
    save_student,
    trained_parameters,
)
from gspn_dit.text_to_image.system import System, find_system, load_system
from gspn_dit.training.clock import Clock
from gspn_dit.training.log import MetricsLog, import_wandb, plot_loss
from gspn_dit.training.resume import check_same_run
from gspn_dit.training.schedule import learning_rate
from gspn_dit.training.stops import guarded, keeping

TERMS = ("noise", "teacher", "modules")


class Recorder:
    """The outputs of some modules of a network in its last forward, in their order."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        self.outputs: dict[str, torch.Tensor] = {}
        for name in names:
            network.get_submodule(name).register_forward_hook(self.hook(name))

    def hook(self, name: str):
        def keep(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            self.outputs[name] = output

        return keep


class Losses:
    """The three squared errors between a student, the noise, and its teacher."""

    def __init__(self, system: System, student: nn.Module, names: list[str]) -> None:
        """`system` is the teacher's, `names` those of the modules that are compared."""
        self.system, self.student, self.names = system, student, names
        self.of_teacher = Recorder(system.unet, self.names)
        self.of_student = Recorder(student, self.names)

    def __call__(self, batch: CaptionedBatch) -> dict[str, torch.Tensor]:
        """Mean over the batch of each term, by the names of the config's `loss`."""
        system = self.system
        x, t, target = self.noised(batch)
        size = tuple(batch.pixels.shape[2:])
        with torch.no_grad():
            texts = system.texts(batch.captions, size)
            expected = system.unet(x, t, **texts, return_dict=False)[0]
        predicted = self.student(x, t, **texts, return_dict=False)[0]
        # Read before the backward, in which recomputation would fill the recorder anew.
        pairs = [(self.of_student.outputs[name], self.of_teacher.outputs[name]) for name in self.names]
        modules = torch.stack([squared_error(*pair) for pair in pairs]).mean()
        self.of_student.outputs, self.of_teacher.outputs = {}, {}
        return {
            "noise": squared_error(predicted, target),
            "teacher": squared_error(predicted, expected),
            "modules": modules,
        }

    def noised(self, batch: CaptionedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the UNets see, their timesteps and what they are to predict.

        In float32 whatever the precision of the networks: the scheduler takes its schedule in the dtype of the
        latents, and in bfloat16 a step's noise would be another than t says.
        """
        scheduler = self.system.scheduler
        with torch.autocast(self.system.unet.device.type, enabled=False):
            x0 = self.system.latents_of(batch.pixels, batch.posterior)
            noise, t = batch.noise.to(x0.device), batch.t.to(x0.device)
            velocity = scheduler.config.prediction_type == "v_prediction"
            target = scheduler.get_velocity(x0, noise, t) if velocity else noise
            return scheduler.add_noise(x0, noise, t), t, target


def squared_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The mean squared difference, in float32."""
    return F.mse_loss(a.float(), b.float())


class Distiller:
    """One run, from its newest checkpoint to `train.steps`; on one device."""

    def __init__(self, config: DistilConfig, device: torch.device) -> None:
        self.config, self.device, train = config, device, config.train
        self.run_dir = Path(config.run_dir)
        source = newest_undamaged(self.run_dir, tqdm.write)
        state = read_state(source) if source else {"step": 0, "window": []}
        if source:
            check_same_run(source, load_distil_config(source / "config.yaml"), config)
            if state["step"] > train.steps:
                raise UserError(f"train.steps is {train.steps}, but {source} is further: raise it")
        self.step, self.window = state["step"], state["window"]
        self.system = load_system(config.teacher, device)
        self.teacher_hash = hash_weights(self.system.unet)
        data = config.data
        if data.size % self.system.divisor:
            expected = f"a multiple of {self.system.divisor} for this teacher"
            raise UserError(f"data.size: expected {expected}, got {data.size}")
        self.student = make_student(self.system.unet, config).train()
        if train.checkpoint_activations:
            self.student.enable_gradient_checkpointing()
        self.dataset = CaptionedImages(
            data.path,
            data.size,
            data.captions,
            data.caption_column,
            flip=data.flip,
            draws=train.steps * train.batch_size,
        )
        if source:
            check_teacher(source, state, self.teacher_hash, config.teacher)
            if state["data"] != self.dataset.describe():
                raise UserError(
                    f"data.path {data.path} holds other images or captions than {source} was trained with"
                )
        self.parameters = list(trained_parameters(self.student).values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay
        )
        if source:
            load_student(source, self.student, self.optimizer)
            tqdm.write(f"continuing from {source}")
        self.losses = Losses(self.system, self.student, list(scan_modules(self.student)))
        side = data.size // self.system.factor
        steps = self.system.scheduler.config.num_train_timesteps
        self.batches = CaptionedBatches(
            self.dataset,
            (self.system.unet.config.in_channels, side, side),
            batch_size=train.batch_size,
            micro_batch=train.micro_batch,
            class_dropout=data.caption_dropout,
            times=lambda uniform: (uniform * steps).long(),
            seed=train.seed,
        )
        precision = train.precision or ("bf16" if device.type == "cuda" else "fp32")
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        self.describe(precision)

    def describe(self, precision: str) -> None:
        """Say what is about to run."""
        trained, all_of = (
            sum(p.numel() for p in group) for group in (self.parameters, self.student.parameters())
        )
        train = self.config.train
        tqdm.write(
            f"{self.config.teacher}: {len(self.losses.names)} modules, {trained:,} of {all_of:,} parameters "
            f"train; {len(self.dataset)} images with captions\n"
            f"{self.device.type}, precision {precision}, batch {train.batch_size} in micro-batches of "
            f"{self.batches.micro_batch}, steps {self.step} to {train.steps}, in {self.run_dir}"
        )
        for note in self.dataset.notes:
            tqdm.write(note)

    def run(self) -> int:
        """Train to the last step; the exit status."""
        save_config(self.config, self.run_dir / "config.yaml")
        stopped = self.train() if self.step < self.config.train.steps else 0
        if stopped:
            signals.say(
                f"stopped by {signals.name_of(stopped)} at step {self.step}; the same command continues"
            )
            return signals.exit_status(stopped)
        tqdm.write(f"loss curve: {plot_loss(self.run_dir)}")
        return 0

    def train(self) -> int:
        """All steps that are left; the signal that stopped them, once there is a checkpoint, or 0."""
        train = self.config.train
        self.clock = Clock(self.step)
        announce = "a checkpoint after this step; once more leaves at once"
        with (
            contextlib.closing(MetricsLog(self.config, self.step)) as log,
            signals.handling(
                lambda number: signals.say(f"{signals.name_of(number)}: {announce}"), self.lost
            ) as request,
            self.progress_bar() as bar,
        ):
            guard = keeping(self, lambda: self.save(log))
            for batches in guarded(self.batches(self.step, train.steps), guard):
                self.train_step(batches)
                last = self.step == train.steps
                if last or self.step % train.log_every == 0:
                    self.log_row(log, bar)
                stop = request.number
                if last or stop or (train.checkpoint_every and self.step % train.checkpoint_every == 0):
                    self.save(log)
                if stop:
                    bar.disable = True  # there may be no terminal any more
                    return stop
                bar.update()
        return 0

    def train_step(self, batches: list[CaptionedBatch]) -> None:
        """One optimiser step: the gradient is that of the mean loss over the batch."""
        train, weights = self.config.train, vars(self.config.loss)
        rate = learning_rate(self.step, train)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        row = dict.fromkeys(("loss", *TERMS), 0.0)
        for batch in batches:
            share = len(batch.captions) / train.batch_size
            with self.autocast:
                terms = self.losses(batch)
            loss = sum(weights[name] * terms[name] for name in TERMS)
            (share * loss).backward()
            for name, value in (("loss", loss), *terms.items()):
                row[name] += share * float(value.detach())
        row["grad_norm"] = float(nn.utils.clip_grad_norm_(self.parameters, train.clip or math.inf))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        for name in ("loss", "grad_norm"):
            if not math.isfinite(row[name]):
                raise UserError(f"step {self.step}: {name} is {row[name]}; stopped, {self.last_good()}")
        self.window.append(row)

    def log_row(self, log: MetricsLog, bar: tqdm) -> None:
        """Write the means since the last row."""
        means = {name: sum(row[name] for row in self.window) / len(self.window) for name in self.window[0]}
        self.window.clear()
        batch_size = self.config.train.batch_size
        speed = self.clock.lap(self.step) * batch_size
        rate = learning_rate(self.step - 1, self.config.train)
        about = {"learning_rate": rate, "images_per_second": round(speed, 2)}
        log.write({"step": self.step, "images": self.step * batch_size, **means, **about})
        bar.set_postfix({"loss": f"{means['loss']:.4f}", "images/s": f"{speed:.1f}"}, refresh=False)

    def save(self, log: MetricsLog) -> None:
        """Write a checkpoint and drop the oldest; `UserError` when it cannot be written."""
        log.sync()
        state = {
            "step": self.step,
            "images_seen": self.step * self.config.train.batch_size,
            "teacher_hash": self.teacher_hash,
            "data": self.dataset.describe(),
            "window": self.window,
        }
        with self.clock.paused():
            problem = save_student(self.config, self.student, self.optimizer, state)
            if problem:
                raise UserError(f"step {self.step}: no checkpoint written ({problem}); {self.last_good()}")
            rotate(self.run_dir, self.config.train.keep_last, self.step)

    def last_good(self) -> str:
        folder = latest_checkpoint(self.run_dir)
        return f"the last good checkpoint is {folder}" if folder else "there is no checkpoint yet"

    def lost(self) -> str:
        """What leaving at once loses, for the message."""
        return f"what was trained since then is lost; {self.last_good()}, and the same command continues"

    def progress_bar(self) -> tqdm:
        return progress_bar(total=self.config.train.steps, initial=self.step, desc="distilling", unit="step")


def check_before(config: DistilConfig) -> None:
    """Raise `UserError` for what would end a distillation later: its folder, its teacher, its packages."""
    run_dir = Path(config.run_dir)
    refuse_inputs("run_dir", run_dir, [("data.path", config.data.path), ("teacher", config.teacher)])
    check_output_folder("run_dir", run_dir)
    require_packages("matplotlib")
    if config.train.wandb:
        import_wandb()
    if not checkpoints(run_dir):
        for name in RECORDS:
            if (run_dir / name).exists() and not own_config(run_dir):
                raise UserError(f"run_dir {run_dir} holds {name} and no distillation: choose another folder")
    find_system(config.teacher)


def own_config(run_dir: Path) -> bool:
    """Whether a folder's config.yaml is that of a distillation, which was killed before its first checkpoint."""
    try:
        load_distil_config(run_dir / "config.yaml")
    except UserError:
        return False
    return True


@contextlib.contextmanager
def reporting_full_disks(run_dir: str) -> Iterator[None]:
    """Make a full disk a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = f"cannot write {error.filename or run_dir}: {error.strerror}"
        raise UserError(f"{what}; free some space, and the same command continues") from error


def distil(config: DistilConfig) -> int:
    """Distil as `config` says, continuing the run in its folder if there is one; the exit status."""
    check_before(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with claimed(Path(config.run_dir)), reporting_full_disks(config.run_dir):
        return Distiller(config, device).run()
