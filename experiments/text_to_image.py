"""A tiny text-to-image UNet distilled: what the scan in self-attention's place learns of a teacher on CIFAR-10.

The teacher is a UNet2DConditionModel of diffusers on pixels in place of latents, with the names of classes as
captions and a random vector for each word. It is trained here for a few minutes, then distilled.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from experiments.sections import MISSING, Section, table
from experiments.train_run import environment, is_measured, write_json
from gspn_dit.data.images import list_images
from gspn_dit.errors import UserError
from gspn_dit.files import content_key, replacing
from gspn_dit.processes import progress_bar
from gspn_dit.random import SAMPLE, VALIDATION, WEIGHTS, seed_of
from gspn_dit.sampling.grids import save_grid
from gspn_dit.signals import Stopped
from gspn_dit.text_to_image.captioned import CaptionedBatch, CaptionedBatches, CaptionedImages
from gspn_dit.text_to_image.distil_config import DistilConfig, parse_distil_config
from gspn_dit.text_to_image.distiller import Losses, distil
from gspn_dit.text_to_image.replacement import scan_modules
from gspn_dit.text_to_image.student import load_distilled, make_student
from gspn_dit.text_to_image.system import System, load_system
from gspn_dit.text_to_image.texts import RandomWords
from gspn_dit.text_to_image.upscaling import Request, denoise, timesteps_of

NAME = "text_to_image"
TARGET = 0.1
"""The student's loss to the teacher, over that of the teacher with every self-attention's output set to zero."""
UNET = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 32, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
CPU = {
    "unet": UNET,
    "words": 4,
    "seed": 0,
    "batch_size": 8,
    "teacher": {"steps": 400, "learning_rate": 3e-3},
    "student": {"steps": 500, "learning_rate": 3e-3},
    "images": 128,
    "classes": 8,
    "sampling_steps": 12,
    "guidance": 2.0,
}
SETTINGS = {
    "cpu": CPU,
    "mini": CPU
    | {"teacher": {"steps": 2, "learning_rate": 1e-3}, "student": {"steps": 2, "learning_rate": 1e-3}}
    | {"images": 8, "classes": 2, "sampling_steps": 2},
}


def run(scale: str, data: Path, results: Path, work: Path) -> None:
    """Train the teacher, distil it and measure both, where that was not done; writes text_to_image.json and .png."""
    if scale not in SETTINGS:
        raise UserError(f"{NAME} has no scale {scale}: expected one of {', '.join(SETTINGS)}")
    settings, path = SETTINGS[scale], results / f"{NAME}.json"
    if is_measured(path, settings):
        return
    if not (data / "train").is_dir() or not (data / "test").is_dir():
        raise UserError(
            f"{NAME}: no images in {data}: `python -m gspn_dit.data.cifar10 {data}` writes them, or name their folder "
            "with --data"
        )
    torch.set_num_threads(1)
    folder = work / f"{content_key([json.dumps(settings, sort_keys=True).encode()])[:12]}"
    teacher = folder / "teacher"
    if not (teacher / "unet").is_dir():
        train_teacher(settings, data, teacher)
    config = distillation(settings, data, teacher, folder / "student")
    if status := distil(config):
        raise Stopped(status - 128)
    systems = all_systems(config)
    losses = measure(systems, settings, data)
    names = list_images(data / "test").class_names[: settings["classes"]]
    draw(systems, settings, names, path.with_suffix(".png"))
    write_json(
        path,
        {
            "settings": settings,
            "classes": names,
            "losses": losses,
            "parameters": parameters(systems),
            "of_zeroed": losses["distilled"]["teacher"] / losses["zeroed"]["teacher"],
            **environment(),
        },
    )


def train_teacher(settings: dict[str, Any], data: Path, folder: Path) -> None:
    """Train the UNet on noise alone, and write it as a pipeline's folder; its UNet comes last, when all is there."""
    seed, steps = settings["seed"], settings["teacher"]["steps"]
    torch.manual_seed(seed_of(WEIGHTS, seed))
    unet = UNet2DConditionModel(**settings["unet"]).train()
    scheduler = DDPMScheduler()
    texts = RandomWords(dim=settings["unet"]["cross_attention_dim"], length=settings["words"])
    batches = batches_of(data / "train", settings, seed, dropout=0.1)
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=settings["teacher"]["learning_rate"], weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for (batch,) in progress_bar(iterable=batches(0, steps), total=steps, desc="teacher", unit="step"):
        x = scheduler.add_noise(batch.pixels, batch.noise, batch.t)
        predicted = unet(x, batch.t, **texts(batch.captions, (32, 32)), return_dict=False)[0]
        loss = (predicted - batch.noise).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    scheduler.save_pretrained(folder / "scheduler")
    texts.save(folder / "text_encoder")
    unet.save_pretrained(folder / ".unet")
    (folder / ".unet").rename(folder / "unet")


def batches_of(folder: Path, settings: dict[str, Any], seed: int, dropout: float = 0.0) -> CaptionedBatches:
    """The draws of a training on a folder of classes, with their names as captions."""
    size = settings["unet"]["sample_size"]
    return CaptionedBatches(
        CaptionedImages(folder, size, "folders", "text", flip=False, draws=0),
        (3, size, size),
        batch_size=settings["batch_size"],
        micro_batch=None,
        class_dropout=dropout,
        times=lambda uniform: (uniform * DDPMScheduler().config.num_train_timesteps).long(),
        seed=seed,
    )


def distillation(settings: dict[str, Any], data: Path, teacher: Path, run_dir: Path) -> DistilConfig:
    """The config of the student's training."""
    steps = settings["student"]["steps"]
    return parse_distil_config(
        {
            "run_dir": str(run_dir),
            "teacher": str(teacher),
            "data": {
                "path": str(data / "train"),
                "size": settings["unet"]["sample_size"],
                "captions": "folders",
            },
            "train": {
                **settings["student"],
                "batch_size": settings["batch_size"],
                "schedule": "cosine",
                "warmup_steps": steps // 20,
                "seed": settings["seed"],
                "checkpoint_every": 50,
                "tensorboard": False,
            },
        }
    )


def all_systems(config: DistilConfig) -> dict[str, System]:
    """The teacher, it with every self-attention's output set to zero, and the student before and after."""
    teacher = load_system(config.teacher)
    before = replace(teacher, unet=make_student(teacher.unet, config).eval())
    names = list(scan_modules(before.unet))
    zeroed = replace(teacher, unet=copy.deepcopy(teacher.unet))
    for name in names:
        zeroed.unet.get_submodule(name).register_forward_hook(
            lambda module, args, output: torch.zeros_like(output)
        )
    return {
        "teacher": teacher,
        "zeroed": zeroed,
        "at the start": before,
        "distilled": load_distilled(config.run_dir),
    }


@torch.no_grad()
def measure(systems: dict[str, System], settings: dict[str, Any], data: Path) -> dict[str, dict[str, float]]:
    """Each system's three squared errors on held-out images, with fixed times and noise."""
    batches = batches_of(data / "test", settings, seed_of(VALIDATION, settings["seed"]))
    steps = max(1, settings["images"] // settings["batch_size"])
    held_out: list[CaptionedBatch] = [batch for step in range(steps) for batch in batches.step(step)]
    names = list(scan_modules(systems["distilled"].unet))
    losses = {}
    for name, system in systems.items():
        # The teacher against itself: its own copy, as a network's outputs are recorded once.
        other = system.unet if name != "teacher" else copy.deepcopy(system.unet)
        compare = Losses(
            replace(systems["teacher"], unet=copy.deepcopy(systems["teacher"].unet)), other, names
        )
        rows = [compare(batch) for batch in held_out]
        losses[name] = {term: float(torch.stack([row[term] for row in rows]).mean()) for term in rows[0]}
    return losses


def draw(systems: dict[str, System], settings: dict[str, Any], names: list[str], path: Path) -> None:
    """Pictures from the same noise: a row each for teacher, distilled student and zeroed, a column for each class."""
    request = Request(
        prompts=names,
        negative="",
        sizes=[[settings["unet"]["sample_size"]] * 2],
        strengths=[],
        steps=settings["sampling_steps"],
        guidance=settings["guidance"],
        seed=settings["seed"],
        weights="",
    )
    size = tuple(request.sizes[0])
    images = []
    precision = torch.autocast("cpu", torch.bfloat16, enabled=False)
    for row in ("teacher", "distilled", "zeroed"):
        system = systems[row]
        for number, prompt in enumerate(names):
            key = torch.Generator().manual_seed(seed_of(SAMPLE, settings["seed"], number))
            x = torch.randn(1, 3, *size, generator=key)
            times = timesteps_of(system, request, 0)
            x = denoise(system, request, x, prompt, times, size, precision, lambda: None)
            images.append(system.autoencoder.decode(x))
    save_grid(torch.cat(images), 3, path)


def parameters(systems: dict[str, System]) -> dict[str, int]:
    """Of the UNets, and of self-attention or what stands there."""
    student, teacher = systems["distilled"].unet, systems["teacher"].unet
    names = list(scan_modules(student))
    count = lambda modules: sum(p.numel() for module in modules for p in module.parameters())  # noqa: E731
    return {
        "teacher": count([teacher]),
        "student": count([student]),
        "self_attention": count(map(teacher.get_submodule, names)),
        "scan": count(map(student.get_submodule, names)),
    }


def text_to_image_section(found: dict[str, Any], picture: Path, charts: Path) -> Section:
    """The report's section; copies the picture beside its charts."""
    settings, losses, counts = found["settings"], found["losses"], found["parameters"]
    pictures = []
    if picture.exists():
        with replacing(charts / "text-to-image.png") as file:
            file.write(picture.read_bytes())
        pictures = ["text-to-image.png"]
    labels = {
        "teacher": "teacher, with attention",
        "zeroed": "teacher, outputs of self-attention zero",
        "at the start": "student before",
        "distilled": "student distilled",
    }
    rows = [
        [labels[name], *(f"{row[term]:.5f}" for term in ("teacher", "modules", "noise"))]
        for name, row in losses.items()
    ]
    share = found["of_zeroed"]
    trained = {name: settings[name]["steps"] * settings["batch_size"] for name in ("teacher", "student")}
    reached = "reached" if share <= TARGET else "missed"
    return Section(
        name=NAME,
        title="Text-to-image: self-attention distilled into the scan",
        question="Does the scan, in the place of a UNet's self-attention, learn to do what that does?",
        setup=(
            f"A UNet2DConditionModel of diffusers, {counts['teacher'] / 1e6:.2f} M parameters, on 32x32 pixels of "
            f"CIFAR-10 in place of latents; captions are names of classes, a random vector for each word. It saw "
            f"{trained['teacher']:,} images, the student {trained['student']:,}, with the paper's three-part loss; "
            f"only what stands in self-attention's place trained, {counts['scan']:,} parameters for "
            f"{counts['self_attention']:,}. Squared errors on {settings['images']} held-out images, one seed "
            f"({found['device']}, torch {found['torch']}, {found['date']})"
        ),
        answers=[
            f"distilled, the loss to the teacher is {share:.3f} of what it is with every self-attention's output set "
            f"to zero: the aim of {TARGET:g} is {reached}",
            "in the picture, from the same noise, by class: teacher, student, and the teacher with self-attention's "
            "outputs zero",
        ],
        tables=[table(["", "to the teacher", "of modules", "to the noise"], rows)] if rows else [MISSING],
        pictures=pictures,
    )
