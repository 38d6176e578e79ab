"""The record of a run: metrics.jsonl, and from it tensorboard, Weights & Biases and loss.png."""

import contextlib
import itertools
import json
import os
import uuid
from pathlib import Path
from typing import Any

from gspn_dit.config import Config, to_mapping
from gspn_dit.errors import UserError
from gspn_dit.files import replacing
from gspn_dit.names import printable, utf8_path


class MetricsLog:
    """Appends rows, JSON objects with their step, to metrics.jsonl.

    Rows later than `step`, which a run that continues from there makes again, are dropped first; where it begins
    anew, which may be with other settings, the old file is kept under another name.
    """

    def __init__(self, config: Config, step: int) -> None:
        self.path = Path(config.run_dir) / "metrics.jsonl"
        rows = rows_until(self.path, step)
        if step == 0 and self.path.exists() and self.path.stat().st_size:
            os.rename(self.path, free_name(self.path))
        with replacing(self.path) as file:
            file.writelines(encode(row) for row in rows)
        self.file = open(self.path, "ab")  # noqa: SIM115 (open as long as the run)
        self.names = contextlib.ExitStack()
        self.tensorboard = self.open_tensorboard(config, step) if config.train.tensorboard else None
        self.wandb = open_wandb(config) if config.train.wandb else None

    def open_tensorboard(self, config: Config, step: int) -> Any:
        try:
            # Speed: tensorboard takes a second, and a run may do without it.
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "train.tensorboard needs tensorboard: pip install tensorboard, or set it to false"
            ) from error
        folder = self.names.enter_context(utf8_path(config.run_dir))
        return SummaryWriter(Path(folder) / "tensorboard", purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it survives a kill from here on."""
        self.file.write(encode(row))
        self.file.flush()
        values = {key: value for key, value in row.items() if key != "step"}
        if self.tensorboard:
            for key, value in values.items():
                tag = f"train/{key}".replace("train/validation_", "validation/")
                self.tensorboard.add_scalar(tag, value, row["step"])
        if self.wandb:
            self.wandb.log(values, step=row["step"])

    def sync(self) -> None:
        """Make the rows so far survive a power cut too: a checkpoint counts on those before it."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        if self.tensorboard:
            self.tensorboard.close()
        self.names.close()
        if self.wandb:
            self.wandb.finish()


def encode(row: dict[str, Any]) -> bytes:
    return (json.dumps(row) + "\n").encode()


def parse_row(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for what is no row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def read_lines(path: Path) -> list[dict[str, Any] | None]:
    """The rows of a metrics.jsonl, None for a line that is none; a last line that a kill cut is left out."""
    return [parse_row(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl that can be read."""
    return [row for row in read_lines(path) if row is not None]


def rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows up to `step`; `UserError` when a line among them is none, which no kill and no power cut explains."""
    rows = read_lines(path)
    kept = max((number for number, row in enumerate(rows, 1) if row and row["step"] <= step), default=0)
    for number, row in enumerate(rows[:kept], 1):
        if row is None:
            raise UserError(
                f"{path}, line {number}, is no row that train.py wrote: mend it, or move the file away"
            )
    return [row for row in rows[:kept] if row["step"] <= step]


def free_name(path: Path) -> Path:
    """The first of metrics_old_1.jsonl, metrics_old_2.jsonl, ... that is not there."""
    names = (f"{path.stem}_old_{number}{path.suffix}" for number in itertools.count(1))
    return next(new for name in names if not os.path.lexists(new := path.with_name(name)))


def wandb_id(run_dir: Path) -> str:
    """The run's own id, kept in its folder: the folder's name may be that of other runs too."""
    path = run_dir / "wandb_id"
    known = path.read_text().strip() if path.exists() else ""
    if not known:
        known = uuid.uuid4().hex
        with replacing(path) as file:
            file.write(known.encode())
    return known


def import_wandb() -> Any:
    """The package, which is optional; `UserError` where it is not installed."""
    try:
        # Optional: installed by those who use it.
        import wandb
    except ImportError as error:
        raise UserError("train.wandb needs wandb: pip install wandb, or leave it null") from error
    return wandb


def open_wandb(config: Config) -> Any:
    wandb = import_wandb()
    return wandb.init(
        project=config.train.wandb,
        name=printable(Path(config.run_dir).name),
        id=wandb_id(Path(config.run_dir)),
        resume="allow",
        dir=config.run_dir,
        config=to_mapping(config),
    )


def plot_loss(run_dir: str | Path) -> Path:
    """Draw loss.png from metrics.jsonl: each row, a running mean over a twentieth of the run, and validation.

    Of a classifier, whose rows have it, also the share of held-out images that it is right about.
    """
    # Speed: matplotlib takes a second, and is used once, at the end.
    from matplotlib.figure import Figure

    run_dir = Path(run_dir)
    rows = read_metrics(run_dir / "metrics.jsonl")
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    right = [(row["step"], row["validation_top1"]) for row in rows if "validation_top1" in row]
    figure = Figure(figsize=(12 if right else 7, 4), layout="constrained")
    axes, *others = figure.subplots(1, 2 if right else 1, squeeze=False)[0]
    axes.plot(steps, losses, color="0.75", linewidth=1, label="logged")
    axes.plot(steps, running_mean(losses, max(1, len(losses) // 20)), color="C0", label="running mean")
    measured = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    if measured:
        axes.plot(
            *zip(*measured, strict=True),
            color="C1",
            marker=".",
            label=f"validation ({'cross-entropy' if right else 'squared error'})",
        )
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.set_title(printable(run_dir.name), parse_math=False)  # a $ in a name is one
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    for beside in others:
        beside.plot(*zip(*right, strict=True), color="C1", marker=".")
        beside.set(xlabel="step", ylabel="top-1 on held-out images", title=f"at the end {right[-1][1]:.2%}")
        beside.grid(alpha=0.3)
    with replacing(run_dir / "loss.png") as file:
        figure.savefig(file, format="png", dpi=120)
    return run_dir / "loss.png"


def running_mean(values: list[float], window: int) -> list[float]:
    """Mean over the last `window` values at each place, fewer at the start."""
    means = []
    for end in range(1, len(values) + 1):
        recent = values[max(0, end - window) : end]
        means.append(sum(recent) / len(recent))
    return means
