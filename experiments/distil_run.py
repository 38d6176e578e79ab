"""The trainings of the study of distillation that are missing, and the KID of its teacher."""

from pathlib import Path

from experiments import mixers_scores
from experiments.distil_plan import NAME, Plan, describe
from experiments.mixers_run import check_same_images, no_images
from experiments.pool import is_done, run_all
from gspn_dit.checkpoint import latest_checkpoint
from gspn_dit.errors import UserError


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
    mixers_scores.measure(plan.study, [plan.teacher], results, work)
    return failed
