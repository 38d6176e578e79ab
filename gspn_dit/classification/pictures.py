"""Pictures of class folders as a classifier sees them: augmented by their number in training, or for evaluation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from gspn_dit.classification.recipe import AugmentConfig, PicturesConfig
from gspn_dit.data.images import ImageFolder, list_images
from gspn_dit.data.pixels import PixelDataset, fits, is_flat, listing, read_pixels, split_folder, with_test
from gspn_dit.errors import UserError
from gspn_dit.files import content_key
from gspn_dit.random import AUGMENT, seeded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1]: the usual normalisation."""
MAGNITUDES, DEVIATION = 101, 0.5
"""Steps of RandAugment's magnitude from 0 to 10, and its deviation, of 10."""


class NoisyRandAugment(v2.RandAugment):
    """One operation of RandAugment (arXiv 1909.13719) whose magnitude, of 10, is normal around a mean."""

    def __init__(self, mean: float) -> None:
        super().__init__(num_ops=1, num_magnitude_bins=MAGNITUDES, interpolation=InterpolationMode.BILINEAR)
        self.mean = mean

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        level = (self.mean + DEVIATION * torch.randn(()).item()) / 10
        self.magnitude = round(min(max(level, 0.0), 1.0) * (MAGNITUDES - 1))
        return super().forward(*inputs)


class Pictures:
    """Class folders of pictures: a data set as `gspn_dit.data.Dataset` describes it.

    Padded pictures are kept in memory as uint8 where they fit, all others read from the disk at every draw. `draw`
    is a pure function of its arguments.
    """

    channels = 3
    autoencoder = None

    def __init__(self, images: ImageFolder, config: PicturesConfig, augment: AugmentConfig | None) -> None:
        """`augment` None: for evaluation. Raises `UserError` naming pictures that cannot be read, when all are read."""
        self.images, self.config, self.augment = images, config, augment
        self.size = config.size
        self.class_names = images.class_names
        self.num_classes = len(images.class_names)
        self.labels = torch.tensor(images.labels)
        self.pixels: PixelDataset | None = None
        if config.crop == "padded":
            keep = fits(len(images.paths), config.size)
            self.pixels = PixelDataset(images, config.size, flip=False, keep=keep)
            self.hashes = self.pixels.hashes
            self.notes = self.pixels.notes
        else:
            files = [images.root / path for path in images.paths]
            self.hashes = {"listing_hash": content_key(listing(images.paths, files))}
            self.notes = images.notes
        self.transform = for_evaluation(config) if augment is None else for_training(config, augment)

    def __len__(self) -> int:
        return len(self.labels)

    def draw(
        self, indices: np.ndarray, image_numbers: np.ndarray, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x (n, 3, size, size) float32, normalised, and y (n,) int64; the augmentation is keyed by (seed, number).

        Raises `UserError` naming a picture that cannot be read.
        """
        x = torch.empty(len(indices), 3, self.size, self.size)
        for place, (index, number) in enumerate(zip(indices.tolist(), image_numbers.tolist(), strict=True)):
            with seeded(AUGMENT, seed, number):
                x[place] = self.transform(self.read(index))
        return x, self.labels[torch.from_numpy(indices)]

    def read(self, index: int) -> torch.Tensor:
        """One picture, (3, H, W) uint8: whole, or of `size` where it is padded."""
        if self.pixels is not None and self.pixels.pixels is not None:
            return self.pixels.pixels[index]
        file = self.images.root / self.images.paths[index]
        return read_pixels(file, None if self.config.crop == "resized" else self.size)


def for_training(config: PicturesConfig, augment: AugmentConfig) -> nn.Module:
    """(3, H, W) uint8 to (3, size, size) float32: crop, mirror, RandAugment, jitter, normalisation, erasing."""
    size, steps = config.size, []
    if config.crop == "resized":
        steps.append(v2.RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC, antialias=True))
    elif augment.shift:
        steps.append(v2.RandomCrop(size, padding=max(1, round(size * augment.shift))))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    if augment.rand_augment is not None:
        steps += [v2.RandomApply([NoisyRandAugment(augment.rand_augment)], p=0.5) for _ in range(2)]
    if augment.jitter:
        steps.append(v2.ColorJitter(augment.jitter, augment.jitter, augment.jitter))
    steps += normalisation()
    if augment.erasing:
        steps.append(v2.RandomErasing(augment.erasing, value="random"))
    return v2.Compose(steps)


def for_evaluation(config: PicturesConfig) -> nn.Module:
    """(3, H, W) uint8 to (3, size, size) float32, without chance."""
    steps = []
    if config.crop == "resized":
        steps = [
            v2.Resize(config.resize, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(config.size),
        ]
    return v2.Compose([*steps, *normalisation()])


def normalisation() -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def split_pictures(config: PicturesConfig) -> tuple[ImageFolder, ImageFolder | None]:
    """The pictures to train on and those held out, None when there are none; both number the classes alike.

    Raises `UserError` for a folder without classes, or with one alone.
    """
    if config.validation is None:
        train, held_out = split_folder(Path(config.path), config.held_out)
    else:
        parts = (list_images(config.path), list_images(config.validation))
        train, held_out = with_test(Path(config.path), *parts)
    check_classes(train)
    return train, held_out


def check_classes(images: ImageFolder) -> None:
    """Raise `UserError` for a folder without classes, or with one alone."""
    if is_flat(images):
        raise UserError(
            f"image folder {images.root} has no classes: expected a folder for each of them in it"
        )
    if len(images.class_names) < 2:
        raise UserError(
            f"image folder {images.root} has one class, {images.class_names[0]}: expected two or more"
        )


def pictures_of_run(folder: Path, class_names: list[str]) -> ImageFolder:
    """The pictures of `folder`, of its test/ where it has train/ too, numbered as the classes of a run.

    Raises `UserError` unless the folder has the very classes of the run.
    """
    if {"train", "test"} <= {path.name for path in folder.glob("[!.]*") if path.is_dir()}:
        folder = folder / "test"
    images = list_images(folder)
    check_classes(images)
    if len(images.class_names) != len(class_names):
        raise UserError(
            f"image folder {folder} has {len(images.class_names)} classes, the run {len(class_names)}: expected the "
            "classes of the run"
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    for name in images.class_names:
        if name not in numbers:
            raise UserError(f"image folder {folder} has the class {name}, which the run has not")
    labels = [numbers[images.class_names[label]] for label in images.labels]
    return replace(images, labels=labels, class_names=class_names)
