"""The trainings of the study of distillation that are missing, and the KID of its teacher."""

from pathlib import Path

import torch
from accelerate import Accelerator

from experiments.distil_plan import NAME, Plan, describe
from experiments.mixers_run import check_same_images, no_images
from experiments.pool import is_done, run_all
from experiments.train_run import environment, is_measured, write_json
from gspn_dit.checkpoint import latest_checkpoint
from gspn_dit.errors import UserError
from gspn_dit.evaluation.runs import RunOptions, score_run
from gspn_dit.evaluation.scores import Options

SCORES = "teacher.json"


def run_distil(plan: Plan, data: Path, results: Path, work: Path, workers: int) -> list[str]:
    """Train what is missing, the teacher before those whom it teaches; the failed trainings.

    Raises `UserError` where images are missing, or are others than those of the results that are there.
    """
    waiting = [run for run in plan.runs if not is_done(run, results)]
    print(describe(plan, waiting, max(1, workers)), flush=True)
    if waiting and not data.is_dir():
        raise UserError(no_images(NAME, data))
    check_same_images(waiting, results)
    there = latest_checkpoint(work / plan.teacher.folder) is not None
    if any(run in waiting for run in plan.taught) and not there and is_done(plan.teacher, results):
        print("the teacher's run folder is gone: it is trained again")
        plan.teacher.result_path(results).unlink()
    failed = run_all([plan.teacher, *plan.scratch], results, work, workers)
    if plan.teacher.name in failed:
        return failed
    failed += run_all(list(plan.taught), results, work, workers)
    score_teacher(plan, data, results, work)
    return failed


def score_teacher(plan: Plan, data: Path, results: Path, work: Path) -> None:
    """Write the teacher's KID to the held-out images, while its run folder is there; say so where it cannot be had."""
    path = results / SCORES
    settings = {"run": plan.teacher.key, "samples": plan.samples}
    if is_measured(path, settings) or latest_checkpoint(work / plan.teacher.folder) is None:
        return
    try:
        scores = score_run(
            work / plan.teacher.folder,
            str(data / "test"),
            RunOptions(num=plan.samples, labels="balanced", batch_size=100),
            Options(features="efficientnet"),
            Accelerator(cpu=not torch.cuda.is_available()),
        )
    except UserError as error:
        print(f"left out: the teacher's KID: {error}")
        return
    write_json(path, {"settings": settings, "kid": scores["kid"], **environment()})
