"""From samples and a reference to scores, what decides these, and whether published ones compare."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator

from gspn_dit.evaluation import metrics, uncertainty
from gspn_dit.evaluation.extraction import Statistics, extract
from gspn_dit.evaluation.images import Images, open_images
from gspn_dit.evaluation.networks import Digits, Inception, Network, find_weights
from gspn_dit.evaluation.references import (
    Reference,
    check_reference,
    load_reference,
    reference_hash,
    save_reference,
)
from gspn_dit.evaluation.verdict import COMPARABLE, departures, reasons_against
from gspn_dit.sample_file import read_settings

METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
STATED = ("labels", "ema", "sampler", "steps", "cfg_scale", "cfg_interval", "decoder", "seed", "objective")
TRACED = ("checkpoint", "model", "parameters", "training_step", "training_images")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How scores are computed."""

    features: str = "inception"
    """inception or digits."""
    inception_weights: str | None = None
    """File of the weights; None for torch-fidelity's download."""
    batch_size: int = 32
    """Images through the network at once and process: decides memory and speed, not scores."""
    bootstrap: int = 0
    """Resamplings for the standard error of FID; 0 for none."""
    fid_inf: bool = False
    """Also extrapolate FID to infinitely many samples."""
    save_reference: str | None = None
    """Where to write the reference's statistics."""
    stated: dict = field(default_factory=dict)
    """What is known of the samples and not written beside them, under the keys of STATED."""
    preset: str | None = None
    """A preset that the samples must have been made with."""


class Stages:
    """Times the stages of the work and says how long each took."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 2)
        self.report(f"{name}: {self.seconds[name]:.1f} s")


def score_files(samples: Path, reference: str, options: Options, accelerator: Accelerator) -> dict | None:
    """Score the images in a file or folder; plain JSON types.

    Every process must call this; the first gets the result, the others None.

    Raises `UserError` for whatever is wrong with an input, where possible before a network is loaded.
    """
    images = open_images(samples)
    check_reference(reference)
    network = create_network(options, accelerator.device)
    stages = Stages(accelerator.print)
    with stages("reference"):
        real = load_reference(reference, network, accelerator, options.batch_size)
    with stages("features of the samples"):
        statistics = extract(
            images, network, accelerator, batch_size=options.batch_size, label="features of the samples"
        )
    if statistics is None or real is None:
        return None
    if options.save_reference:
        save_reference(real, Path(options.save_reference))
    scores = compute(statistics, real, options, accelerator.device, stages)
    settings = {
        **describe_samples(samples, images, options),
        **describe_reference(reference, real),
        "features": options.features,
        "network": network.identity,
        "inception_published": network.published,
        "kid_subsets": metrics.KID_SUBSETS,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("torch", "torch-fidelity")},
        "seconds": stages.seconds,
    }
    reasons = [*reasons_against(settings), *departures(settings, options.preset)]
    return {**scores, "comparable": not reasons, "reasons": reasons, "settings": settings}


def create_network(options: Options, device: torch.device) -> Network:
    if options.features == "digits":
        return Digits()
    return Inception(find_weights(options.inception_weights), device)


def describe_samples(path: Path, images: Images, options: Options) -> dict:
    """What the samples are and, as far as it is written beside them or stated, what made them."""
    written = {**(read_settings(path) or {}), **options.stated}
    return {
        "path": str(path),
        "samples": len(images),
        "sample_size": list(images.size),
        "lossy": images.lossy,
        **{key: written.get(key) for key in (*STATED, *TRACED)},
    }


def describe_reference(path: str, reference: Reference) -> dict:
    return {
        "reference": reference.name,
        "reference_kind": reference.kind,
        "reference_hash": reference_hash(path),
        "reference_size": list(reference.size) if reference.size else None,
        "reference_images": reference.count,
        "reference_virtual": reference.virtual,
    }


def compute(
    samples: Statistics, reference: Reference, options: Options, device: torch.device | str, stages: Stages
) -> dict:
    """Every metric that the statistics allow, None for the others, with `errors` and `notes` beside."""
    scores: dict = dict.fromkeys(METRICS)
    errors: dict = {}
    notes: list[str] = []

    @contextlib.contextmanager
    def attempt(name: str) -> Iterator[None]:
        try:
            with stages(name):
                yield
        except ValueError as error:
            notes.append(f"no {name}: {error}")

    with attempt("FID"):
        scores["fid"] = metrics.frechet_distance(samples.pool, reference.pool)
    if options.bootstrap:
        with attempt("standard error of FID"):
            errors["fid"] = uncertainty.frechet_error(samples.features, reference.pool, options.bootstrap)
    if options.fid_inf:
        with attempt("FID_inf"):
            scores["fid_inf"] = uncertainty.frechet_at_infinity(samples.features, reference.pool)
    with attempt("sFID"):
        scores["sfid"] = metrics.frechet_distance(
            present(samples.spatial, "the network has no spatial features"),
            present(reference.spatial, "the reference has no spatial statistics"),
        )
    with attempt("inception score"):
        logits = present(samples.logits, "the network is not Inception")
        scores["is"], _ = metrics.inception_score(logits)
        errors["is"] = uncertainty.inception_score_error(logits)
    with attempt("precision and recall"):
        real = present(reference.features, "the reference holds no images")
        scores["precision"], scores["recall"] = metrics.precision_recall(samples.features, real, device)
        errors["precision"] = uncertainty.share_error(scores["precision"], len(samples.features))
        errors["recall"] = uncertainty.share_error(scores["recall"], len(real))
    with attempt("KID"):
        real = present(reference.features, "the reference holds no images")
        scores["kid"], scores["kid_std"] = metrics.kernel_distance(samples.features, real)
    return {**scores, "errors": errors, "notes": notes}


def present(value, otherwise: str):
    """The value, or a ValueError that says why there is none."""
    if value is None:
        raise ValueError(otherwise)
    return value


def format_scores(result: dict) -> str:
    """Scores with what decides them, and the verdict."""
    names = {
        "fid": "FID",
        "sfid": "sFID",
        "is": "IS",
        "precision": "precision",
        "recall": "recall",
        "kid": "KID",
    }
    digits = {"fid": 2, "sfid": 2, "is": 2, "precision": 3, "recall": 3, "kid": 5, "fid_inf": 2}
    lines = []
    for key, name in {**names, "fid_inf": "FID at infinite samples"}.items():
        if key == "fid_inf" and key not in result:
            continue
        value, error = result[key], result["errors"].get(key)
        text = "-" if value is None else f"{value:.{digits[key]}f}"
        lines.append(f"{name:<24}{text:>10}" + (f"  ± {error:.{digits[key]}f}" if error is not None else ""))
    lines += result["notes"]
    settings = result["settings"]
    guidance = settings["cfg_scale"]
    known = {
        "samples": f"{settings['samples']:,} of {settings['path']}",
        "reference": f"{settings['reference']} ({settings['reference_kind']})",
        "labels": settings["labels"],
        "steps": settings["steps"] and f"{settings['steps']} of {settings['sampler']}",
        "guidance": guidance and ("none" if guidance == 1 else f"{guidance:g}"),
        "decoder": settings["decoder"],
        "weights": {True: "EMA", False: "last", None: None}[settings["ema"]],
        "features": settings["network"],
    }
    lines += [f"{key}: {value or 'not stated'}" for key, value in known.items()]
    lines.append(COMPARABLE if result["comparable"] else "not comparable with published scores:")
    lines += [f"  - {reason}" for reason in result["reasons"]]
    return "\n".join(lines)
