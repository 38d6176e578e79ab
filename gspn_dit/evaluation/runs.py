"""A run as the samples to score: what is missing of its sample file is sampled first."""

from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from gspn_dit.checkpoint import find_checkpoint, parts_of_run, run_of
from gspn_dit.errors import UserError
from gspn_dit.evaluation.scores import Options, check_digits, check_inputs, score_files
from gspn_dit.evaluation.verdict import PRESETS
from gspn_dit.files import check_output, content_key
from gspn_dit.sampling.request import Request, Resolved, sample_file


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to sample; None leaves a choice to the preset, or else to the run."""

    num: int | None = None
    """None for 50,000."""
    sampler: str | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    internal_guidance: float | None = None
    labels: str | None = None
    seed: int = 0
    vae: str | None = None
    ema: bool = True
    batch_size: int = 16
    preset: str | None = None


def is_run(path: Path) -> bool:
    """Whether a path is a run folder or a checkpoint folder, not a folder of images."""
    return (path / "checkpoints").is_dir() or (path / "state.json").is_file()


def inputs_of(samples: Path) -> list[tuple[str, Path]]:
    """What scoring these samples reads, by name and path: no output may replace it."""
    if not is_run(samples):
        return [("SAMPLES", samples), ("the settings of SAMPLES", samples.with_suffix(".json"))]
    return parts_of_run(find_checkpoint(samples))


def with_preset(options: RunOptions) -> RunOptions:
    """The options with those of the preset; `UserError` where both say something and not the same."""
    if options.preset is None:
        return options
    preset = PRESETS[options.preset]
    keys = ("num", "sampler", "steps", "cfg_scale", "internal_guidance", "labels", "vae")
    pinned = {key: getattr(preset, key) for key in keys}
    for key, value in pinned.items():
        if getattr(options, key) not in (None, value):
            option = key.replace("_", "-")
            raise UserError(
                f"--{option} {getattr(options, key)}: --preset {options.preset} pins it to {value}"
            )
    if not options.ema:
        raise UserError(f"--weights last: --preset {options.preset} pins it to ema")
    return replace(options, **pinned)


def resolve(run: Path, options: RunOptions) -> tuple[Resolved, RunOptions]:
    """Every choice made and checked, without loading a weight."""
    options = with_preset(options)
    check_objective(run, options.preset)
    resolved = Request(
        run=str(run),
        ema=options.ema,
        sampler=options.sampler,
        steps=options.steps,
        cfg_scale=1.0 if options.cfg_scale is None else options.cfg_scale,
        internal_guidance=1.0 if options.internal_guidance is None else options.internal_guidance,
        seed=options.seed,
        vae=options.vae,
        batch_size=options.batch_size,
    ).resolve()
    return resolved, options


def check_objective(run: Path, preset: str | None) -> None:
    """Raise `UserError` for a model that was not trained with the preset's objective."""
    if preset is None:
        return
    objective, expected = (
        Request(run=str(run)).resolve().config.diffusion.objective,
        PRESETS[preset].objective,
    )
    if objective != expected:
        raise UserError(f"--preset {preset} is for {expected} models; {run} is of a {objective} model")


def sample_run(resolved: Resolved, options: RunOptions, accelerator: Accelerator) -> Path:
    """The sample file of a run, in its folder `evaluation`, filled up; every process must call this.

    Takes what `resolve` gives.
    """
    checkpoint = Path(resolved.request.run)
    labels, num = options.labels or "random", options.num or 50_000
    request = repr(replace(resolved.request, run="", batch_size=0))
    more = [f"{name}={value}".encode() for name, value in resolved.guidance().items()]
    key = content_key([request.encode(), labels.encode(), str(num).encode(), *more])[:12]
    path = run_of(checkpoint) / "evaluation" / f"{checkpoint.name}-{key}.npz"
    check_output("samples", path)
    accelerator.print(f"samples: {path}")
    sample_file(resolved, num, labels, path, accelerator)
    return path


def score_run(
    run: Path, reference: str, sampling: RunOptions, options: Options, accelerator: Accelerator
) -> dict | None:
    """Sample what is missing of a run's samples, then score them; see `score_files`.

    Whatever can be refused is refused before a weight is loaded.
    """
    resolved, sampling = resolve(run, sampling)
    if options.features == "digits" and resolved.request.vae is None:
        size = resolved.state["model"]["input_size"]
        check_digits(str(run), (size, size))
    check_inputs(reference, options, accelerator)
    return score_files(sample_run(resolved, sampling, accelerator), reference, options, accelerator)
