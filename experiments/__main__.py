"""The paper's claims, tested: python -m experiments [--scale cpu|gpu|mini] [--only NAME ...] [--report-only]"""

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from experiments import (
    classification,
    curves_plan,
    curves_study,
    kernel,
    mixers_plan,
    mixers_scores,
    propagation,
    reach,
    report,
    sizes,
    text_to_image,
    throughput,
    untrained,
)
from experiments.distil_plan import NAME as DISTIL
from experiments.distil_plan import distil_plan
from experiments.distil_run import run_distil
from experiments.mixers_plan import STUDIES, mixer_runs, study_folder
from experiments.mixers_run import check_same_images, no_images
from experiments.plan import CHECKS, EXPERIMENTS, SCALES, Scale, describe, rate_runs, training_runs
from experiments.pool import is_done, run_all, worker_count
from gspn_dit import errors
from gspn_dit.files import check_output_folder, claimed, home_folder
from gspn_dit.signals import noting

ROOT = Path(__file__).resolve().parents[1]
MIXERS = "mixers"
NAMES = ("kernel", *EXPERIMENTS, MIXERS)
RATES = "rates"
"""Not an experiment but a check of their common learning rate, done when it is asked for, like CHECKS."""
CURVES = curves_plan.NAME
WITH_IMAGES = (MIXERS, DISTIL, text_to_image.NAME, sizes.NAME, classification.NAME)
"""Those that learn from --data."""
EXTRAS = (DISTIL, text_to_image.NAME, sizes.NAME, CURVES, classification.NAME)
"""Done when they are asked for."""
APART = (MIXERS, *EXTRAS)
"""Those with folders of their own."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="python -m experiments",
        description="Run the experiments whose results are missing, then write docs/experiments.md from them.",
        epilog="example: python -m experiments --only kernel positions",
    )
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="size of the runs (default cpu)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*NAMES, *CHECKS, RATES, *EXTRAS),
        metavar="NAME",
        help=f"{', '.join(NAMES)}; or what is not among the default: {RATES}, of the learning rate; lines, of what the "
        f"scan adds on longer ones; {DISTIL}, a DiT that teaches a GSPN-DiT on photographs; {text_to_image.NAME}, a "
        f"distilled UNet; {CURVES}, which networks learn to follow a curve; {sizes.NAME}, samples of other "
        f"sizes than those trained on; {classification.NAME}, the paper's backbone on photographs",
    )
    parser.add_argument(
        "--data",
        type=home_folder,
        metavar="FOLDER",
        default=ROOT / mixers_plan.DATA,
        help=f"the images of {', '.join(WITH_IMAGES)}: CIFAR-10 as `python -m gspn_dit.data.cifar10 "
        f"{mixers_plan.DATA}` writes it (default: {mixers_plan.DATA} in this repository)",
    )
    parser.add_argument(
        "--out",
        type=home_folder,
        default=ROOT,
        help="folder of results/, runs/ and docs/ (default: this repository)",
    )
    parser.add_argument(
        "--workers", type=int, help="trainings at a time, 0 for in this process (default: cores)"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="write the report from the results at hand"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan, run what is missing, write the report; the exit status."""
    arguments = parse_arguments(argv)
    scale = SCALES[arguments.scale]
    results = arguments.out / "results" / "experiments" / scale.name
    if arguments.workers is not None and arguments.workers < 0:
        raise errors.UserError(f"--workers {arguments.workers}: expected at least 0")
    for folder in (results, arguments.out / "runs", arguments.out / "docs"):
        check_output_folder("--out", folder)
    failed = []
    if not arguments.report_only:
        choose_device(scale)
        workers = worker_count() if arguments.workers is None else arguments.workers
        work = arguments.out / "runs" / "experiments" / scale.name
        names = tuple(arguments.only or NAMES)
        if not set(names) <= set(APART):
            with keeping(work):
                failed = run_experiments(scale, names, results, work, workers)
        if MIXERS in names:
            with keeping(study_folder(work)):
                failed += run_mixers(arguments, scale, study_folder(results), study_folder(work), workers)
        if text_to_image.NAME in names:
            with keeping(work / text_to_image.NAME):
                text_to_image.run(scale.name, arguments.data, results, work / text_to_image.NAME)
        if DISTIL in names:
            if scale.name not in STUDIES:
                raise errors.UserError(no_scale(DISTIL, scale))
            plan, folders = (
                distil_plan(scale.name, arguments.data.resolve()),
                map(study_folder, (results, work)),
            )
            with keeping(study_folder(work)):
                failed += run_distil(plan, arguments.data, *folders, workers)
        if CURVES in names:
            if scale.name not in curves_plan.STUDIES:
                raise errors.UserError(no_scale(CURVES, scale))
            folders = map(curves_plan.curves_folder, (results, work))
            with keeping(curves_plan.curves_folder(work)):
                failed += curves_study.run(scale.name, *folders, workers)
        if classification.NAME in names:
            failed += run_classification(arguments, scale, results, work, workers)
        if sizes.NAME in names:
            failed += run_sizes(arguments, scale, results, work, workers)
    print(f"report: {report.write_report(scale, results, arguments.out / 'docs')}")
    return 1 if failed else 0


@contextlib.contextmanager
def keeping(work: Path) -> Iterator[None]:
    """Hold the folder of run folders; an interrupt says that what is done is kept."""
    with claimed(work), noting(lambda: "what is done is kept: the same command does the rest"):
        yield


def choose_device(scale: Scale) -> None:
    """Keep the CPU's experiments on the CPU; `UserError` when the GPU's find none."""
    if scale.name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the processes of the trainings see it too
    if scale.name == "gpu" and not torch.cuda.is_available():
        raise errors.UserError("the scale gpu needs a GPU that torch can use; SCALE=cpu runs on this machine")


def run_experiments(
    scale: Scale, names: tuple[str, ...], results: Path, work: Path, workers: int
) -> list[str]:
    """Everything that is missing: what measures time runs alone, before the trainings; the failed runs."""
    trainings = training_runs(scale, names)
    rates = rate_runs(scale) if RATES in names else []
    done = sum(is_done(run, results) for run in (*trainings, *rates))
    print(describe(scale, trainings, rates, done, max(1, workers)), flush=True)
    if "kernel" in names:
        kernel.run(scale.name, results / "kernel.json")
    if "stability" in names:
        propagation.run(scale.name, results / "propagation.json")
    if "positions" in names:
        untrained.run(scale.name, results / "untrained.json")
    if set(names) & {"local", "merge", "attention"}:
        throughput.run(scale, results / "throughput.json")
    return run_all([*rates, *trainings], results, work, workers)


def run_sizes(
    arguments: argparse.Namespace, scale: Scale, results: Path, work: Path, workers: int
) -> list[str]:
    """Samples at other sizes, of the mixer study's networks; the failed trainings of those that are gone."""
    if scale.name not in STUDIES:
        raise errors.UserError(no_scale(sizes.NAME, scale))
    plan = sizes.sizes_plan(scale.name, arguments.data.resolve())
    folders = sizes.sizes_folder(results), sizes.sizes_folder(work), study_folder(work)
    with keeping(folders[1]):
        return sizes.run_sizes(plan, arguments.data, *folders, workers)


def run_classification(
    arguments: argparse.Namespace, scale: Scale, results: Path, work: Path, workers: int
) -> list[str]:
    """The trainings of classifiers that are missing; the failed ones."""
    if scale.name not in classification.SCALES:
        raise errors.UserError(no_scale(classification.NAME, scale))
    folders = map(classification.classification_folder, (results, work))
    with keeping(classification.classification_folder(work)):
        return classification.run(scale.name, arguments.data, *folders, workers)


def no_scale(study: str, scale: Scale) -> str:
    return f"{study} has no scale {scale.name}: expected one of {', '.join(STUDIES)}"


def run_mixers(
    arguments: argparse.Namespace, scale: Scale, results: Path, work: Path, workers: int
) -> list[str]:
    """The trainings of the study of the mixer that are missing; the failed ones.

    Without its images, or a study of this scale, a `UserError` when it was asked for by name, else a word.
    """
    problem = None
    if scale.name not in STUDIES:
        problem = no_scale(MIXERS, scale)
    else:
        study = STUDIES[scale.name]
        runs = mixer_runs(study, arguments.data.resolve())
        waiting = [run for run in runs if not is_done(run, results)]
        print(mixers_plan.describe(study, runs, waiting, max(1, workers)), flush=True)
        if waiting and not arguments.data.is_dir():
            problem = no_images(MIXERS, arguments.data)
    if problem is None:
        check_same_images(waiting, results)
        failed = run_all(runs, results, work, workers)
        reach.measure(study, runs, results, work)
        mixers_scores.measure(study, runs, results, work)
        return failed
    if arguments.only:
        raise errors.UserError(problem)
    print(f"left out: {problem}")
    return []


if __name__ == "__main__":
    errors.run(main)
