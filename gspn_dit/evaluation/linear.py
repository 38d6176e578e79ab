"""A linear classifier on a network's features: does a sample show the class that was asked for?

Multinomial logistic regression on standardised features of labelled photographs (class folders), at most 10,000 of
them, fitted once and cached under the hash of the images, the network and this file.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import save

from gspn_dit.data.images import list_images
from gspn_dit.errors import UserError
from gspn_dit.evaluation.digits import one_thread, read_cached
from gspn_dit.evaluation.extractors import Network
from gspn_dit.evaluation.features import extract
from gspn_dit.evaluation.image_sets import FolderImages
from gspn_dit.evaluation.references import kept_numbers
from gspn_dit.files import cache_folder, content_key, replacing

PENALTY = 1e-2
"""Factor of half the squared norm of the weights, beside the mean cross-entropy."""
ITERATIONS = 100


@dataclass(frozen=True)
class LinearClassifier:
    """Logits of features (n, d): standardised features times weight (classes, d), plus bias (classes,)."""

    mean: torch.Tensor
    deviation: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def assign(self, features: np.ndarray) -> np.ndarray:
        """The class of each row of features (n, d): (n,) int64."""
        standard = (torch.from_numpy(features) - self.mean) / self.deviation
        return (standard @ self.weight.T + self.bias).argmax(dim=1).numpy()

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """The share of features (n, d) assigned to their labels (n,)."""
        return float((self.assign(features) == labels).mean())


def training_folder(reference: str) -> Path | None:
    """The class folders to learn from: train/ beside a reference test/, or the reference itself; None if neither."""
    path = Path(reference)
    if not path.is_dir():
        return None
    beside = path.resolve().with_name("train")
    folder = beside if path.resolve().name == "test" and beside.is_dir() else path
    names = class_names(folder)
    return folder if names and len(names) > 1 else None


def class_names(folder: Path) -> list[str] | None:
    """The classes of a folder of class folders; None where it is none."""
    try:
        return list_images(folder).class_names
    except UserError:
        return None


def folder_labels(folder: Path, names: list[str]) -> np.ndarray | None:
    """Each image's number in `names`, (n,) int64 in the order of `FolderImages`; None where a class is another."""
    found = class_names(folder)
    if found is None or not set(found) <= set(names):
        return None
    numbers = np.array([names.index(name) for name in found])
    return numbers[list_images(folder).labels]


def load_linear(
    folder: Path, network: Network, accelerator: Accelerator, batch_size: int, crop: int | None = None
) -> LinearClassifier | None:
    """The classifier of a folder's classes, from the first process's cache, or fitted; None but on that process.

    Every process must call this. `crop`: see `image_sets.open_images`.
    """
    images = FolderImages(folder, crop)
    labels = folder_labels(folder, class_names(folder))
    path = cache_path(images, labels, network) if accelerator.is_main_process else None
    tensors = read_cached(path) if path else None
    (found,) = broadcast_object_list([tensors is not None])
    if not found:
        numbers = kept_numbers(len(images))
        label = "features to classify by"
        statistics = extract(images.subset(numbers), network, accelerator, batch_size=batch_size, label=label)
        if statistics is not None:
            tensors = vars(fit(statistics.features, labels[numbers]))
            with replacing(path) as file:
                file.write(save(tensors))
    return LinearClassifier(**tensors) if tensors is not None else None


def cache_path(images: FolderImages, labels: np.ndarray, network: Network) -> Path:
    """Named by what decides the classifier: images, classes, network and this file."""
    parts = [images.key().encode(), labels.tobytes(), network.identity.encode(), Path(__file__).read_bytes()]
    return cache_folder() / f"linear-{content_key(parts)[:24]}.safetensors"


@one_thread()
@torch.enable_grad()
def fit(features: np.ndarray, labels: np.ndarray) -> LinearClassifier:
    """Fit to features (n, d) and labels (n,) by L-BFGS from zero: convex, so that nothing is drawn."""
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    mean, deviation = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    x = (x - mean) / deviation
    classes = int(y.max()) + 1
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, y) + PENALTY / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return LinearClassifier(mean, deviation, weight.detach(), bias.detach())
