"""A digit classifier for the demo: what class a sample shows, and features for its Fréchet distance.

It takes the place of Inception, whose weights may not be at hand and which knows nothing of digits anyway.
Trained once on the training split (some 20 s), then cached under the hash of its data and of this file.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

from gspn_dit.data.mnist import CLASSES, load_digits
from gspn_dit.files import cache_folder, claimed_file, content_key, replacing
from gspn_dit.models.weights import read_tensors
from gspn_dit.processes import progress_bar
from gspn_dit.random import WEIGHTS, generator, seed_of

FEATURES = 64
"""Few enough that 1,000 digits estimate the covariance of the features well."""
EPOCHS = 8
BATCH = 64
LEARNING_RATE = 4e-3
LABEL_SMOOTHING = 0.05
KEY = 1
"""Fixed: the demo's scores are in the same features whatever the seed of a run."""
ROTATION, ZOOM, SHEAR, SHIFT = 0.26, 0.12, 0.2, 3 / 16
"""Half ranges of the augmentation, in radians and shares; the shift of 3/16 of half an image is 3 pixels."""


class DigitClassifier(nn.Module):
    """Convolutions down to 4x4, then a layer of 64 features, then ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolution(1, 16),
            nn.MaxPool2d(2),
            *convolution(16, 32),
            nn.MaxPool2d(2),
            *convolution(32, 64),
            *convolution(64, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(64 * 4 * 4, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Digits (n, 1, 32, 32) in [-1, 1]: features (n, 64) and logits (n, 10)."""
        features = self.body(x)  # (n, 64)
        return features, self.head(features)  # (n, 64), (n, 10)

    @torch.inference_mode()
    def describe(self, images: np.ndarray, batch_size: int = 250) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, 64) float32 and assigned classes (n,) int64 of uint8 images (n, 32, 32)."""
        outputs = [self(to_input(part)) for part in torch.from_numpy(images).split(batch_size)]
        features = torch.cat([features for features, _ in outputs])
        classes = torch.cat([logits.argmax(dim=1) for _, logits in outputs])
        return features.numpy(), classes.numpy()


def convolution(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def to_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 32, 32) to the classifier's input (n, 1, 32, 32) in [-1, 1]."""
    return images.unsqueeze(1).float() / 127.5 - 1


def to_digits(images: np.ndarray) -> np.ndarray:
    """RGB images (n, 32, 32, 3) uint8 to the grey digits (n, 32, 32) that they repeat three times."""
    if images.ndim != 4 or images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8:
        raise ValueError(f"images: expected (n, 32, 32, 3) uint8, got {images.shape} {images.dtype}")
    return np.ascontiguousarray(images[..., 0])


def load_classifier() -> DigitClassifier:
    """The trained classifier, in eval mode, from the cache; trained first where the cache has none that is whole."""
    classifier = DigitClassifier()
    path = cached_path()
    tensors = read_cached(path)
    if tensors is None:
        with claimed_file(path, wait=True):
            make_classifier(path)
        tensors = read_tensors(path)
    classifier.load_state_dict(tensors)
    return classifier.eval()


def read_cached(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors in a file of the cache; None where it is absent or damaged, and to be made anew."""
    try:
        return read_tensors(path) if path.exists() else None
    except (OSError, SafetensorError):
        return None


def make_classifier(path: Path) -> None:
    """Train the classifier and write its weights, unless another process has done so meanwhile."""
    if read_cached(path) is None:
        trained = train_classifier()
        with replacing(path) as file:
            file.write(save(trained.state_dict()))


def cached_path() -> Path:
    return cache_folder() / f"digits-{classifier_key()[:16]}.safetensors"


def classifier_key() -> str:
    """Hash of what decides the classifier: its training data and this file."""
    images, labels = load_digits("train")
    return content_key([images.tobytes(), labels.tobytes(), Path(__file__).read_bytes()])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: the order of sums is the same on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
@torch.enable_grad()
def train_classifier() -> DigitClassifier:
    """Train on the training split alone; the same weights on every call on one machine."""
    images, labels = (torch.from_numpy(array) for array in load_digits("train"))
    inputs = to_input(images)  # (4000, 1, 32, 32)
    with torch.random.fork_rng(devices=[]):  # dropout and the initial weights draw from the global generator
        torch.manual_seed(seed_of(WEIGHTS, KEY))
        classifier = DigitClassifier().train()
        steps = EPOCHS * len(inputs) // BATCH
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-2)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for step in progress_bar(iterable=range(steps), desc="training the digit classifier", unit=" steps"):
            rng = generator(WEIGHTS, KEY, step)
            chosen = torch.randint(len(inputs), (BATCH,), generator=rng)
            _, logits = classifier(distort(inputs[chosen], rng))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return classifier.eval()


def distort(digits: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Turn, zoom, shear and shift each digit of (n, 1, 32, 32) a little; what enters is black."""
    half_ranges = torch.tensor([ROTATION, ZOOM, SHEAR, SHIFT, SHIFT])
    draws = (2 * torch.rand(len(digits), 5, generator=rng) - 1) * half_ranges
    angle, zoom, shear, right, down = draws.unbind(dim=1)
    cosine, sine = (1 + zoom) * angle.cos(), (1 + zoom) * angle.sin()
    rows = [torch.stack([cosine, shear - sine, right], dim=1), torch.stack([sine, cosine, down], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), digits.shape, align_corners=False)  # (n, 32, 32, 2)
    return F.grid_sample(digits + 1, grid, align_corners=False) - 1


def held_out_accuracy(classifier: DigitClassifier) -> float:
    """The share of the 1,000 held-out digits that the classifier reads rightly."""
    images, labels = load_digits("heldout")
    _, classes = classifier.describe(images)
    return float((classes == labels).mean())
