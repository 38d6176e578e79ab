"""The score table of a run on the digits: are samples of the class asked for, new, and like real ones?"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gspn_dit.config import Config
from gspn_dit.data.mnist import CLASSES, load_digits
from gspn_dit.diffusion import default_sampler
from gspn_dit.errors import UserError
from gspn_dit.evaluation.digits import DigitClassifier, held_out_accuracy, load_classifier, to_digits
from gspn_dit.evaluation.metrics import frechet_distance, kernel_distance, moments
from gspn_dit.latents.autoencoder import Autoencoder
from gspn_dit.sampling.generation import generate, keyed_labels
from gspn_dit.sampling.sample_file import write_samples


def score_demo(
    model: nn.Module,
    config: Config,
    autoencoder: Autoencoder,
    device: torch.device | str,
    out_dir: str | Path,
) -> dict:
    """Score a model of the digits by `config.eval.samples` guided and as many unguided samples.

    Both are written to `out_dir` as npz. The result is plain JSON types; `format_table` shows it.
    """
    start = time.monotonic()
    count = config.eval.samples
    scales = (config.sample.cfg_scale, config.sample.internal_guidance)
    guided, labels = draw(model, config, autoencoder, count, scales[0], device, scales[1])
    unguided, unguided_labels = draw(model, config, autoencoder, count, 1.0, device)
    write_samples(Path(out_dir) / "guided.npz", guided, labels, sample_settings(config, *scales))
    write_samples(Path(out_dir) / "unguided.npz", unguided, unguided_labels, sample_settings(config, 1.0))
    classifier = load_classifier()
    _, assigned = classifier.describe(to_digits(guided))
    tuning = config.data.tuning
    return {
        "model": config.model.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_images": config.train.steps * config.train.batch_size,
        **({"tuning": True} if tuning else {}),
        "samples": count,
        **{key: value for key, value in sample_settings(config, *scales).items() if key != "labels"},
        "asked_class": float((assigned == labels).mean()),
        "copies": share_of_copies(to_digits(guided), tuning),
        **distances(classifier, to_digits(unguided), tuning),
        "classifier_accuracy": held_out_accuracy(classifier),
        "seconds": round(time.monotonic() - start, 1),
    }


def sample_settings(config: Config, cfg_scale: float, internal_guidance: float = 1.0) -> dict:
    """What decides the samples beside the weights; internal guidance is named where it is in use."""
    return {
        "sampler": config.sample.sampler or default_sampler(config.diffusion.objective),
        "steps": config.sample.steps,
        "cfg_scale": cfg_scale,
        "cfg_interval": config.sample.cfg_interval,
        **({"internal_guidance": internal_guidance} if internal_guidance != 1 else {}),
        "seed": config.train.seed,
        "labels": "balanced",
    }


def draw(
    model: nn.Module,
    config: Config,
    autoencoder: Autoencoder,
    count: int,
    cfg_scale: float,
    device: torch.device | str,
    internal_guidance: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` samples (n, H, W, 3) uint8, their labels going round the classes."""
    settings = sample_settings(config, cfg_scale, internal_guidance)
    del settings["labels"]
    indices = torch.arange(count)
    labels = keyed_labels(indices, model.num_classes, seed=config.train.seed, balanced=True)
    batches = generate(
        model,
        config,
        autoencoder,
        labels,
        indices,
        **settings,
        batch_size=config.sample.batch_size,
        device=device,
    )
    return torch.cat([images for _, images in batches]).numpy(), labels.numpy()


def distances(classifier: DigitClassifier, digits: np.ndarray, tuning: bool = False) -> dict[str, float]:
    """FID and KID to the held-out digits, and the FID that two halves of these have to each other."""
    real, labels = load_digits("heldout", tuning)
    features, _ = classifier.describe(digits)
    real_features, _ = classifier.describe(real)
    first = np.zeros(len(real), dtype=bool)
    for digit in range(CLASSES):
        members = np.flatnonzero(labels == digit)
        first[members[: len(members) // 2]] = True
    return {
        "fid": frechet_distance(moments(features), moments(real_features)),
        "kid": kernel_distance(features, real_features)[0],
        "fid_real_halves": frechet_distance(moments(real_features[first]), moments(real_features[~first])),
    }


def share_of_copies(digits: np.ndarray, tuning: bool = False) -> float:
    """The share of digits nearer to a training digit, in pixels, than 99 % of the held-out digits are."""
    train, _ = load_digits("train", tuning)
    held_out, _ = load_digits("heldout", tuning)
    limit = np.percentile(nearest_distance(held_out, train), 1)
    return float((nearest_distance(digits, train) < limit).mean())


def nearest_distance(digits: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Euclidean distance of each digit's pixels to the nearest of the others, (n,)."""
    a, b = (torch.from_numpy(images).flatten(1).double() for images in (digits, others))
    return torch.cdist(a, b).amin(dim=1).numpy()  # pixels are whole numbers: exact in float64


def format_table(*scores: dict) -> str:
    """Scores as a table, a column for each run."""
    rows = [("", [f"{score['model']}" for score in scores])]
    rows += [(text, [show(score) for score in scores]) for text, show in LINES]
    label_width = max(len(text) for text, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(scores))]
    lines = [
        text.ljust(label_width)
        + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for text, cells in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*lines, NOTE, *([TUNING] if any("tuning" in score for score in scores) else [])])


def internal_scale(score: dict) -> str:
    return f", internal {score['internal_guidance']:g}" if "internal_guidance" in score else ""


def compare(runs: Sequence[str]) -> str:
    """The score tables that train.py left in runs on the digits, as one; `UserError` for a run without."""
    scores = []
    for run in runs:
        path = Path(run) / "scores.json"
        try:
            scores.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"no scores in {path}: train the run to its end first") from error
    try:
        return format_table(*scores)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"scores.json of a run is not as train.py writes it ({error!r})") from error


LINES = (
    ("parameters", lambda s: f"{s['parameters'] / 1e6:.2f} M"),
    ("training images", lambda s: f"{s['training_images']:,}"),
    ("samples of each score", lambda s: f"{s['samples']:,}"),
    ("sampler, steps", lambda s: f"{s['sampler']}, {s['steps']}"),
    ("guided: scale", lambda s: f"{s['cfg_scale']:g}" + internal_scale(s)),
    ("guided: shown as the class asked for", lambda s: f"{s['asked_class']:.1%}"),
    ("guided: nearer to a training digit than 99 % of held-out ones", lambda s: f"{s['copies']:.1%}"),
    ("unguided: FID to held-out digits", lambda s: f"{s['fid']:.2f}"),
    ("unguided: KID to held-out digits", lambda s: f"{s['kid']:.4f}"),
    ("FID between two halves of held-out digits", lambda s: f"{s['fid_real_halves']:.2f}"),
    ("classifier: right on held-out digits", lambda s: f"{s['classifier_accuracy']:.1%}"),
)
NOTE = (
    "EMA weights, balanced labels. FID and KID are in the 64 features of a digit classifier trained on the\n"
    "training split: comparable between the runs of this table, not with Inception scores."
)
TUNING = "With data.tuning 1,000 of the training digits are held out in place of the others, which nothing has seen."
