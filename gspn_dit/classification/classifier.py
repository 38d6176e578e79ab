"""The training of a classifier: its parts, from a config to a run folder, and a classifier out of one."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedType
from torch import nn

from gspn_dit.checkpoint import load_network
from gspn_dit.classification.backbone import create_backbone
from gspn_dit.classification.drawing import PictureBatch, PictureBatches
from gspn_dit.classification.pictures import Pictures, split_pictures
from gspn_dit.classification.recipe import ClassifierConfig, load_recipe
from gspn_dit.classification.scoring import predict
from gspn_dit.errors import UserError, require_packages
from gspn_dit.files import check_output_folder
from gspn_dit.random import WEIGHTS, seed_of
from gspn_dit.training.build import create_accelerator, create_optimizer
from gspn_dit.training.log import import_wandb, plot_loss
from gspn_dit.training.loop import Loop, run_training
from gspn_dit.training.run_folder import check_folder


class ClassifierTraining(Loop):
    """The training of a backbone with its head; see `Loop`."""

    def __init__(self, config: ClassifierConfig, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        train, data = config.train, config.data
        images, held_out = split_pictures(data)
        self.held_out = Pictures(held_out, data, None) if held_out and train.validation_images != 0 else None
        if self.held_out is None and train.validate_every:
            raise UserError("train.validate_every: there are no held-out images; set it to 0")
        settings = {key: value for key, value in vars(config.model).items() if value is not None}
        torch.manual_seed(seed_of(WEIGHTS, train.seed))
        model = create_backbone(**settings, num_classes=len(images.class_names))
        self.model_settings = model.config
        self.dataset = Pictures(images, data, config.augment)
        self.batches = PictureBatches(
            self.dataset,
            augment=config.augment,
            branches=model.branches,
            workers=data.workers,
            batch_size=train.batch_size,
            micro_batch=train.micro_batch,
            seed=train.seed,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            pin=accelerator.device.type == "cuda",
        )
        self.batches.check_pairs()
        self.source = self.find_source()
        self.check_room(sum(parameter.numel() for parameter in model.parameters()))
        self.prepare(model)
        if self.step:
            self.resume()

    def load_config(self, path: Path) -> ClassifierConfig:
        return load_recipe(path)

    def create_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        train, matrices = self.config.train, []
        if train.muon:
            matrices = [layer.weight for layer in model.stages.modules() if isinstance(layer, nn.Linear)]
            if self.accelerator.distributed_type == DistributedType.FSDP:
                raise UserError(
                    "train.muon: expected null with sharded weights (FSDP): it needs whole matrices"
                )
        return create_optimizer(
            model, train, self.accelerator.device, decay_all=False, matrices=matrices, share=train.muon or 1.0
        )

    def backward(self, batch: PictureBatch) -> torch.Tensor:
        """Cross-entropy to the smoothed target: (loss,)."""
        train = self.config.train
        bf16 = train.precision == "bf16"
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16):
            logits = self.wrapped(batch.x, batch.paths)
        smoothing = train.label_smoothing
        loss = F.cross_entropy(logits.float(), batch.y, reduction="sum", label_smoothing=smoothing)
        loss = loss / self.batches.local
        self.accelerator.backward(loss)
        self.columns = ("loss", "grad_norm")
        return loss.detach().reshape(1)

    def measure(self) -> dict[str, float] | None:
        """Cross-entropy, top-1 and top-5 on held-out pictures, in float32."""
        if self.held_out is None:
            return None
        self.model.eval()
        found = predict(
            self.model,
            self.held_out,
            self.accelerator,
            batch_size=self.batches.micro_batch,
            workers=self.config.data.workers,
            count=self.config.train.validation_images,
            bar=True,
        )
        self.model.train()
        return found.measures()

    def headline(self) -> str:
        return f"{len(self.dataset)} images of {self.dataset.num_classes} classes"

    def finish(self, fresh: bool) -> None:
        """The curves of loss and accuracy; validation is in the last row of metrics.jsonl."""
        self.report(f"curves: {plot_loss(self.run_dir)}")


def train_classifier(config: ClassifierConfig) -> int:
    """Train as `config` says, continuing the run in its folder if there is one; the exit status."""
    inputs = [("data.path", config.data.path), ("data.validation", config.data.validation)]
    check_folder(Path(config.run_dir), inputs, load_recipe)
    check_output_folder("run_dir", config.run_dir)
    require_packages("matplotlib")
    if config.train.wandb:
        import_wandb()
    return run_training(ClassifierTraining, config, create_accelerator(config.train))


def load_classifier(
    path: str | Path, *, ema: bool = True, device: str | torch.device = "cpu"
) -> tuple[nn.Module, ClassifierConfig, dict[str, Any]]:
    """The trained classifier of a run or checkpoint folder, in eval mode; see `gspn_dit.checkpoint.load_model`."""
    return load_network(path, create_backbone, load_recipe, ema=ema, device=device)
