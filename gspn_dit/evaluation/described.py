"""What decides scores besides the images: what is written beside samples, what is stated of them, the reference."""

from pathlib import Path

from gspn_dit.errors import UserError
from gspn_dit.evaluation.images import Images
from gspn_dit.evaluation.references import Reference
from gspn_dit.files import read_json, sha256

STATED = {
    "labels": (str,),
    "ema": (bool,),
    "objective": (str,),
    "sampler": (str,),
    "steps": (int,),
    "cfg_scale": (int, float),
    "cfg_interval": (list,),
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
