"""From samples and a reference to scores, what decides these, and whether published ones compare."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator

from gspn_dit.errors import UserError
from gspn_dit.evaluation import metrics, uncertainty
from gspn_dit.evaluation.extractors import (
    Digits,
    EfficientNet,
    Inception,
    Network,
    check_weights,
    digits_identity,
    efficientnet_identity,
    find_efficientnet,
    find_weights,
    inception_identity,
)
from gspn_dit.evaluation.features import Statistics, extract
from gspn_dit.evaluation.image_sets import Images, open_images
from gspn_dit.evaluation.photographs import photograph_scores
from gspn_dit.evaluation.references import (
    Reference,
    check_reference,
    check_statistics_of,
    load_reference,
    save_reference,
)
from gspn_dit.evaluation.verdict import (
    COMPARABLE,
    PRESETS,
    departures,
    describe_reference,
    describe_samples,
    reasons_against,
)
from gspn_dit.files import cache_folder, check_output, sha256
from gspn_dit.names import printable

METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How scores are computed."""

    features: str = "inception"
    """inception, efficientnet or digits."""
    inception_weights: str | None = None
    """File of the weights; None for torch-fidelity's download."""
    batch_size: int = 32
    """Images through the network at once and process: decides memory and speed, not scores."""
    bootstrap: int = 0
    """Resamplings for the standard error of FID; 0 for none."""
    fid_inf: bool = False
    """Also extrapolate FID to infinitely many samples."""
    crop: bool = False
    """Cut the pictures of a reference folder to the size of the samples, as for training."""
    save_reference: str | None = None
    """Where to write the reference's statistics."""
    stated: dict = field(default_factory=dict)
    """What is known of the samples and not written beside them, under the keys of `verdict.STATED`."""
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
    if images.note:
        accelerator.print(images.note)
    description = describe_samples(samples, images, options.stated)
    if options.features == "digits":
        check_digits(images.name, images.size)
    check_inputs(reference, options, accelerator)
    crop = side(images, "--crop") if options.crop else None
    with accelerator.main_process_first():  # the first may have to train it
        network = create_network(options, accelerator.device)
    stages = Stages(accelerator.print)
    with stages("reference"):
        real = load_reference(reference, network, accelerator, options.batch_size, crop)
    with stages("features of the samples"):
        statistics = extract(
            images, network, accelerator, batch_size=options.batch_size, label="features of the samples"
        )
    of_photographs = {}
    if options.features == "efficientnet":
        with stages("real halves and class accuracy"):
            of_photographs = photograph_scores(
                samples, reference, statistics, real, network, accelerator, options.batch_size, crop
            )
    if statistics is None or real is None:
        return None
    if options.save_reference:
        save_reference(real, Path(options.save_reference))
    scores = compute(statistics, real, options, accelerator.device, stages)
    notes = [*scores["notes"], *of_photographs.pop("notes", [])]
    scores |= {**of_photographs, "notes": notes}
    settings = {
        **description,
        **describe_reference(reference, real),
        "features": options.features,
        "network": network.identity,
        "inception_published": network.published,
        "preset": options.preset,
        "kid_subsets": metrics.KID_SUBSETS,
        "processes": accelerator.num_processes,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("torch", "torch-fidelity")},
        "seconds": stages.seconds,
    }
    reasons = [*reasons_against(settings), *departures(settings, options.preset)]
    return {**scores, "comparable": not reasons, "reasons": reasons, "settings": settings}


def check_inputs(reference: str, options: Options, accelerator: Accelerator) -> None:
    """Raise `UserError` for a reference or weights that cannot be used; every process must call this."""
    size = check_reference(reference, options.crop)
    if options.features == "digits" and size is not None:
        check_digits(reference, size)
    with accelerator.main_process_first():  # the first may have to download the weights
        network = check_network(options)
    if network is not None:
        check_statistics_of(reference, *network)
    check_output("the cache", cache_folder() / "reference.npz")


def side(images: Images, option: str) -> int:
    """The side of square images; `UserError` where they are not: no crop of training leads to others."""
    height, width = images.size
    if height != width:
        raise UserError(
            f"{option}: {images.name} holds images of {height}x{width}; expected squares, as training cuts"
        )
    return height


def check_network(options: Options) -> tuple[str, int]:
    """The identity and the width of the network that is asked for; `UserError` for weights that are not to be had."""
    if options.features == "digits":
        return digits_identity(), Digits.width
    if options.features == "efficientnet":
        return efficientnet_identity(find_efficientnet()[1]), EfficientNet.width
    weights = find_weights(options.inception_weights)
    check_weights(weights)
    return inception_identity(sha256(weights)), Inception.width


def check_digits(name: str, size: tuple[int, int]) -> None:
    """Raise `UserError` for images that the digit classifier does not read."""
    if tuple(size) != (32, 32):
        raise UserError(
            f"--features digits: {name} holds images of {size[0]}x{size[1]}; expected digits of 32x32"
        )


def create_network(options: Options, device: torch.device) -> Network:
    if options.features == "digits":
        return Digits()
    if options.features == "efficientnet":
        return EfficientNet(device)
    return Inception(find_weights(options.inception_weights), device)


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
        subset = min(metrics.KID_SUBSET_SIZE, len(samples.features), len(real))
        if subset < metrics.KID_SUBSET_SIZE:
            notes.append(
                f"KID in subsets of {subset}, not {metrics.KID_SUBSET_SIZE:,}: there are too few images"
            )
    for values in (scores, errors):
        for key, value in values.items():
            if value is not None and not math.isfinite(value):
                values[key] = None
                notes.append(f"no {'error of ' if values is errors else ''}{key}: it is {value}, not finite")
    return {**scores, "errors": errors, "notes": notes}


def present(value, otherwise: str):
    """The value, or a ValueError that says why there is none."""
    if value is None:
        raise ValueError(otherwise)
    return value


SHOWN = {
    "fid": ("FID", 2),
    "sfid": ("sFID", 2),
    "is": ("IS", 2),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "kid": ("KID", 5),
    "fid_inf": ("FID at infinite samples", 2),
    "kid_real_halves": ("KID of real halves", 5),
    "fid_real_halves": ("FID of real halves", 2),
    "accuracy": ("class as asked", 3),
    "accuracy_real": ("class of real ones", 3),
}
"""Name and decimals of each score where people read it."""
FIRST = {"efficientnet": ("kid", "kid_real_halves", "fid", "fid_real_halves")}
"""Scores that stand first, by the features: beside those of samples, those of real images."""


def format_scores(result: dict) -> str:
    """Scores with what decides them, and the verdict."""
    settings = result["settings"]
    known = deciding(settings)
    lines = [*score_lines(result), *result["notes"]]
    lines += [f"{key}: {printable(value or 'not stated')}" for key, value in known.items()]
    lines.append(COMPARABLE if result["comparable"] else "not comparable with published scores:")
    lines += [f"  - {reason}" for reason in result["reasons"]]
    if settings["preset"]:
        lines.append(f"published at --preset {settings['preset']}: {PRESETS[settings['preset']].gives}")
    return "\n".join(lines)


def score_lines(result: dict) -> list[str]:
    """A line for each score, with its standard error where there is one."""
    lines = []
    first = FIRST.get(result["settings"]["features"], ())
    for key in dict.fromkeys((*first, *SHOWN)):
        if key not in result:  # what was not asked for
            continue
        name, decimals = SHOWN[key]
        value, error = result[key], result["errors"].get(key)
        text = "-" if value is None else f"{value:.{decimals}f}"
        lines.append(f"{name:<24}{text:>10}" + (f"  ± {error:.{decimals}f}" if error is not None else ""))
    return lines


def deciding(settings: dict) -> dict[str, str | None]:
    """What decides the scores, for people; None for what nobody says."""
    model, step, checkpoint = settings["model"], settings["training_step"], settings["checkpoint"]
    reference = [settings["reference_kind"]]
    reference += [f"sha256 {settings['reference_hash']}"] if settings["reference_hash"] else []
    return {
        "samples": f"{settings['samples']:,} of {settings['path']}",
        "reference": f"{settings['reference']} ({', '.join(reference)})",
        "model": model
        and model
        + (f", step {step:,}" if step is not None else "")
        + (f", checkpoint {checkpoint[:8]}" if checkpoint else ""),
        "labels": settings["labels"],
        "steps": settings["steps"]
        and f"{settings['steps']} of {settings['sampler'] or 'an unstated sampler'}",
        "guidance": guidance(settings),
        "decoder": settings["decoder"],
        "weights": {True: "EMA", False: "last", None: None}[settings["ema"]],
        "features": settings["network"],
    }


def guidance(settings: dict) -> str | None:
    """What guided the samples; None where nobody says."""
    scale, interval = settings["cfg_scale"], settings["cfg_interval"]
    internal, guide = settings.get("internal_guidance"), settings.get("guide")
    parts = []
    if scale and scale != 1:
        parts.append(f"{scale:g}" + (f" for t in {interval}" if interval else ""))
    if internal and internal != 1:
        parts.append(f"internal {internal:g}")
    if guide:
        scale = settings["guide_scale"]
        parts.append(f"{'' if scale is None else f'{scale:g} '}by {guide[:8]}")
    return ", ".join(parts) or (scale and "none")
