"""Whether scores may stand beside published ones, and the settings that the published ones were made with."""

from dataclasses import dataclass

ADM_SAMPLES = 50_000
COMPARABLE = "ADM-comparable"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that published numbers were made with, and the number that they gave."""

    objective: str
    sampler: str
    steps: int
    cfg_scale: float
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
        num=ADM_SAMPLES,
        labels="random",
        vae="stabilityai/sd-vae-ft-mse",
        gives="GSPN-B/2 28.70, GSPN-L/2 17.25, GSPN-XL/2 15.26, DiT-XL/2 20.05 (FID, 400K steps)",
    )
}


def reasons_against(settings: dict) -> list[str]:
    """Why scores may not stand beside published ones; empty if they may.

    Args:
        settings: as `gspn_dit.evaluation.scores.score_files` makes them.
    """
    weights, reference = settings["inception_published"], settings["reference_virtual"]
    size, other = settings["sample_size"], settings["reference_size"]
    checks = [
        (settings["features"] == "inception", "features are of the digit classifier, not of Inception"),
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
    if pinned.vae not in (settings["decoder"] or ""):
        reasons.append(f"decoder is {settings['decoder'] or 'not stated'}, in --preset {preset} {pinned.vae}")
    return reasons


def shape(size: tuple[int, int] | None) -> str:
    return "of unknown size" if size is None else "x".join(map(str, size))
