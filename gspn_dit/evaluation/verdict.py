"""What decides scores besides the images, and whether they may stand beside published ones."""

from dataclasses import dataclass
from pathlib import Path

from gspn_dit.errors import UserError
from gspn_dit.evaluation.image_sets import Images
from gspn_dit.evaluation.references import Reference
from gspn_dit.files import read_json, sha256

ADM_SAMPLES = 50_000
COMPARABLE = "ADM-comparable"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that published numbers were made with, and the number that they gave."""

    objective: str
    sampler: str
    steps: int
    cfg_scale: float
    internal_guidance: float
    num: int
    labels: str
    vae: str
    gives: str


PRESETS = {
    "paper": Preset(
        objective="ddpm",
        sampler="ddpm",
        steps=250,
        cfg_scale=1.0,
        internal_guidance=1.0,
        num=ADM_SAMPLES,
        labels="random",
        vae="stabilityai/sd-vae-ft-mse",
        gives="GSPN-B/2 28.70, GSPN-L/2 17.25, GSPN-XL/2 15.26, DiT-XL/2 20.05 (FID, 400K steps)",
    )
}


STATED = {
    "labels": (str,),
    "ema": (bool,),
    "objective": (str,),
    "sampler": (str,),
    "steps": (int,),
    "cfg_scale": (int, float),
    "cfg_interval": (list,),
    "internal_guidance": (int, float),
    "guide": (str,),
    "guide_scale": (int, float),
    "decoder": (str,),
    "seed": (int,),
}
"""How samples were drawn, with the types of JSON that each may have besides null."""
TRACED = {
    "checkpoint": (str,),
    "model": (str,),
    "parameters": (int,),
    "training_step": (int,),
    "training_images": (int,),
}
"""What drew them."""


OTHERS = {"digits": "the digit classifier", "efficientnet": "EfficientNet-Lite0"}
"""What features are of, where they are not Inception's."""


def reasons_against(settings: dict) -> list[str]:
    """Why scores may not stand beside published ones; empty if they may.

    Args:
        settings: as `gspn_dit.evaluation.scores.score_files` makes them.
    """
    weights, reference = settings["inception_published"], settings["reference_virtual"]
    size, other = settings["sample_size"], settings["reference_size"]
    checks = [
        (
            settings["features"] == "inception",
            f"features are of {OTHERS.get(settings['features'])}, not of Inception",
        ),
        (
            settings["features"] != "inception" or weights,
            "Inception's weights are not the published ones (another hash)",
        ),
        (settings["samples"] == ADM_SAMPLES, f"{settings['samples']:,} samples, not {ADM_SAMPLES:,}"),
        (reference, "the reference is not ADM's VIRTUAL_imagenet statistics"),
        (
            other is None or tuple(size) == tuple(other),
            f"samples are {shape(size)}, the reference's images {shape(other)}",
        ),
        (not settings["lossy"], "samples come from lossy image files, not from uint8 as sampled"),
        (settings["labels"] in ("random", "balanced"), "the sampling of labels is not stated"),
        (settings["ema"] is not None, "not stated whether the weights are averaged (EMA)"),
        (settings["ema"] is not False, "the weights are not averaged (EMA)"),
    ]
    return [reason for good, reason in checks if not good]


def departures(settings: dict, preset: str | None) -> list[str]:
    """Where samples were made, or may have been made, with other settings than a preset's."""
    if preset is None:
        return []
    pinned = PRESETS[preset]
    reasons = []
    for key in ("objective", "sampler", "steps", "cfg_scale", "labels"):
        found, expected = settings[key], getattr(pinned, key)
        if found != expected:
            reasons.append(
                f"{key} is {'not stated' if found is None else found}, in --preset {preset} {expected}"
            )
    internal = settings.get("internal_guidance") or 1.0  # not stated where there is none
    if internal != pinned.internal_guidance:
        expected = pinned.internal_guidance
        reasons.append(f"internal_guidance is {internal}, in --preset {preset} {expected}")
    if settings.get("guide"):
        reasons.append(f"guide is {settings['guide'][:8]}, in --preset {preset} none")
    if pinned.vae not in (settings["decoder"] or ""):
        reasons.append(f"decoder is {settings['decoder'] or 'not stated'}, in --preset {preset} {pinned.vae}")
    return reasons


def shape(size: tuple[int, int] | None) -> str:
    return "of unknown size" if size is None else "x".join(map(str, size))


def describe_samples(path: Path, images: Images, stated: dict) -> dict:
    """What the samples are and, as far as it is written beside them or stated, what made them."""
    written = written_settings(path, len(images))
    for key, value in stated.items():
        if written.get(key) not in (None, value):
            beside = settings_path(path)
            raise UserError(f"{key} is stated to be {value!r}; {beside} says {written[key]!r}: leave out one")
    known = {**written, **stated}
    return {
        "path": str(path),
        "samples": len(images),
        "sample_size": list(images.size),
        "lossy": images.lossy,
        **{key: known.get(key) for key in (*STATED, *TRACED)},
    }


def settings_path(samples: Path) -> Path:
    """samples.json beside samples.npz or beside the folder samples."""
    return samples.with_name(samples.name + ".json") if samples.is_dir() else samples.with_suffix(".json")


def written_settings(samples: Path, count: int) -> dict:
    """The settings beside samples, empty where there are none; `UserError` for those of no or other samples."""
    path = settings_path(samples)
    if not path.is_file():
        return {}
    written = read_json(path)
    if not isinstance(written, dict):
        raise UserError(f"{path} is not a JSON object: mend it, or remove it")
    for key, kinds in {**STATED, **TRACED, "count": (int,)}.items():
        if written.get(key) is not None and type(written[key]) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{path}: {key} is {written[key]!r}; expected {expected}, or null")
    if written.get("count") not in (None, count):
        raise UserError(
            f"{path} is of {written['count']} images, {samples} holds {count}: remove the wrong one"
        )
    return {key: value for key, value in written.items() if value is not None}


def describe_reference(path: str, reference: Reference) -> dict:
    """What the samples were compared with; the hash is the start of a file's SHA-256."""
    return {
        "reference": reference.name,
        "reference_kind": reference.kind,
        "reference_hash": sha256(Path(path))[:16] if Path(path).is_file() else None,
        "reference_size": list(reference.size) if reference.size else None,
        "reference_images": reference.count,
        "reference_virtual": reference.virtual,
    }
