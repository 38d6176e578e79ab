"""What scores of photographs say besides: how far real ones are from real ones, and whether classes are as asked."""

from pathlib import Path

import numpy as np
from accelerate import Accelerator

from gspn_dit.errors import UserError
from gspn_dit.evaluation.extractors import Network
from gspn_dit.evaluation.features import Statistics
from gspn_dit.evaluation.image_sets import NpzFile
from gspn_dit.evaluation.linear import class_names, folder_labels, load_linear, training_folder
from gspn_dit.evaluation.metrics import frechet_distance, kernel_distance, moments
from gspn_dit.evaluation.references import Reference, kept_numbers

SCORES = ("kid_real_halves", "fid_real_halves", "accuracy", "accuracy_real")


def photograph_scores(
    samples: Path,
    reference: str,
    statistics: Statistics | None,
    real: Reference | None,
    network: Network,
    accelerator: Accelerator,
    batch_size: int,
    crop: int | None = None,
) -> dict:
    """`SCORES`, None for what there is not; "classifier", which folder it learned from; "notes", why not.

    Every process must call this; the first one's result is of use. `crop`: see `image_sets.open_images`.
    """
    scores: dict = {**dict.fromkeys(SCORES), "classifier": None, "notes": []}
    folder = training_folder(reference)
    if folder is None:
        scores["notes"].append("no class accuracy: the reference is no folder of class folders")
    elif (labels := sample_labels(samples, class_names(folder))) is None:
        scores["notes"].append(
            f"no class accuracy: the samples have no labels, or not the classes of {folder}"
        )
    else:
        classifier = load_linear(folder, network, accelerator, batch_size, crop)
        if classifier is not None:
            scores["classifier"] = f"logistic regression on the features of {folder}"
            scores["accuracy"] = classifier.accuracy(statistics.features, labels)
            if folder.resolve() != Path(reference).resolve():  # else it would be asked what it learned
                real_labels = folder_labels(Path(reference), class_names(folder))
                scores |= real_accuracy(classifier, real, real_labels)
    return scores if real is None else scores | real_halves(real, scores["notes"])


def real_accuracy(classifier, real: Reference, labels: np.ndarray | None) -> dict[str, float]:
    """What the classifier makes of real images that it did not learn from."""
    if labels is None:
        return {}
    return {"accuracy_real": classifier.accuracy(real.features, labels[kept_numbers(len(labels))])}


def real_halves(real: Reference, notes: list[str]) -> dict[str, float]:
    """KID and FID between two halves of the reference's images, every second one: of each class as many."""
    if real.features is None or len(real.features) < 4:
        notes.append("no scores of real images among themselves: the reference holds too few")
        return {}
    a, b = real.features[::2], real.features[1::2]
    notes.append(
        f"real halves: every second of {len(a) + len(b):,} images of the reference against the others"
    )
    return {
        "kid_real_halves": kernel_distance(a, b)[0],
        "fid_real_halves": frechet_distance(moments(a), moments(b)),
    }


def sample_labels(samples: Path, names: list[str]) -> np.ndarray | None:
    """The class of each sample (n,) int64, by `labels` of an npz or by class folders; None where nobody says."""
    if samples.is_dir():
        return folder_labels(samples, names)
    file = NpzFile(samples)
    if "labels" not in file.names:
        return None
    labels, (shape, _) = file.read("labels"), file.header("arr_0")
    if labels.shape != shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(f"{samples}: labels is {labels.dtype} {labels.shape}; expected {shape[0]} integers")
    inside = labels.min(initial=0) >= 0 and labels.max(initial=0) < len(names)
    return labels.astype(np.int64) if inside else None
