"""Score samples: python eval_fid.py SAMPLES --reference REF [options]"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from gspn_dit import errors
from gspn_dit.errors import UserError
from gspn_dit.evaluation.arguments import check, parse_arguments
from gspn_dit.files import check_output
from gspn_dit.signals import noting

RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, then score; the exit status."""
    arguments = parse_arguments(argv, RESULTS)
    check(arguments)
    if arguments.leaderboard:
        return leaderboard(Path(arguments.results))
    if arguments.compare:
        return compare(arguments.compare)
    # Speed: `--help`, a rejected argument and the leaderboard answer without waiting for torch.
    from gspn_dit.processes import connect

    accelerator = connect()
    if arguments.golden:
        return golden(arguments, accelerator)
    kept = "no scores yet; samples and statistics of references that were finished are kept: the same command goes on"
    with noting(lambda: kept):
        result = score(arguments, accelerator)
    if result is not None:
        report(result, arguments)
    accelerator.end_training()
    return 0


def score(arguments: argparse.Namespace, accelerator) -> dict | None:
    """Score samples, or a run, of which what is missing is sampled first."""
    # Speed: see `main`.
    from gspn_dit.evaluation.runs import RunOptions, is_run, score_run
    from gspn_dit.evaluation.scores import score_files

    samples = Path(arguments.samples)
    if not is_run(samples):
        refuse_run_options(arguments)
        stated = stated_settings(arguments)
        return score_files(samples, arguments.reference, options(arguments, stated), accelerator)
    sampling = RunOptions(
        num=arguments.num,
        sampler=arguments.sampler,
        steps=arguments.steps,
        cfg_scale=arguments.cfg_scale,
        internal_guidance=arguments.internal_guidance,
        labels=arguments.labels,
        seed=arguments.seed or 0,
        vae=arguments.vae,
        ema=arguments.weights != "last",
        batch_size=arguments.batch_size,
        preset=arguments.preset,
    )
    return score_run(samples, arguments.reference, sampling, options(arguments, {}), accelerator)


def options(arguments: argparse.Namespace, stated: dict):
    # Speed: see `main`.
    from gspn_dit.evaluation.scores import Options

    return Options(
        features=arguments.features,
        inception_weights=arguments.inception_weights,
        batch_size=arguments.batch_size,
        bootstrap=arguments.bootstrap,
        fid_inf=arguments.fid_inf,
        crop=arguments.crop,
        save_reference=arguments.save_reference,
        stated=stated,
        preset=arguments.preset,
    )


def stated_settings(arguments: argparse.Namespace) -> dict:
    """What the options say of a file of samples."""
    stated = {"labels": arguments.labels, "ema": {"ema": True, "last": False}.get(arguments.weights)}
    return {key: value for key, value in stated.items() if value is not None}


def refuse_run_options(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for an option that would have no effect on samples that are there already."""
    for name in ("num", "sampler", "steps", "cfg_scale", "internal_guidance", "seed", "vae"):
        if getattr(arguments, name) is not None:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is for a run; {arguments.samples} holds samples already")


def report(result: dict, arguments: argparse.Namespace) -> None:
    """Print the scores; write and record them where asked."""
    # Speed: see `main`.
    from gspn_dit.evaluation.leaderboard import record
    from gspn_dit.evaluation.scores import format_scores
    from gspn_dit.files import replacing

    print(format_scores(result))
    try:
        if arguments.json:
            with replacing(arguments.json) as file:
                file.write((json.dumps(result, indent=1) + "\n").encode())
        if arguments.record:
            record(Path(arguments.results), result)
    except OSError as error:
        raise UserError(f"the scores above could not be written: {error}") from error


def golden(arguments: argparse.Namespace, accelerator) -> int:
    """Exit status 1 where the numbers are not ADM's."""
    # Speed: see `main`.
    from gspn_dit.evaluation.golden import check_files, golden

    folder = Path(arguments.golden)
    arguments.inception_weights = str(check_files(folder, arguments.inception_weights))
    stated = {"labels": "random", "ema": True}
    outcome = golden(folder, options(arguments, stated), accelerator)
    accelerator.end_training()
    if outcome is None:
        return 0
    table, agreed = outcome
    print(table)
    return 0 if agreed else 1


def compare(runs: Sequence[str]) -> int:
    """Print the demo scores of runs as one table."""
    # Speed: see `main`.
    from gspn_dit.evaluation import demo

    print(demo.compare(runs))
    return 0


def leaderboard(results: Path) -> int:
    """Print the table and draw the chart."""
    # Speed: see `main`.
    from gspn_dit.evaluation.chart import draw
    from gspn_dit.evaluation.leaderboard import markdown, measured_rows, published_rows

    rows = [*published_rows(results), *measured_rows(results)]
    check_output("--results", results / "leaderboard.png", in_place=True)
    print(markdown(rows))
    draw(rows, results / "leaderboard.png")
    return 0


if __name__ == "__main__":
    errors.run(main)
