"""Training runs that are still to do, several at a time, each in a process of its own with one thread."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.plan import Run
from experiments.train_run import run_one
from gspn_dit.evaluation.digits import load_classifier
from gspn_dit.signals import exit_status

POLL = 0.5
"""Seconds between looks at the processes."""


def is_done(run: Run, results: Path) -> bool:
    """Whether the result of a run, with these very settings, is there."""
    path = run.result_path(results)
    return path.exists() and json.loads(path.read_text())["key"] == run.key


def worker_count() -> int:
    """One run for each core; one in all where a GPU does the work."""
    return 1 if torch.cuda.is_available() else max(1, len(os.sched_getaffinity(0)))


def run_all(runs: list[Run], results: Path, work: Path, workers: int) -> list[str]:
    """Do the runs whose results are missing; the names of those that failed (`workers` of 0: in this process)."""
    waiting = [run for run in runs if not is_done(run, results)]
    if not waiting:
        return []
    if any(run.data is None for run in waiting):
        load_classifier()  # of digits: trained once here, not by every worker
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="training runs", unit="run") as bar:
        if workers == 0:
            for run in waiting:
                (importlib.import_module(run.program).run_one if run.program else run_one)(run, results, work)
                bar.update()
            return []
        return in_processes(waiting, results, work, workers, bar)


def in_processes(waiting: list[Run], results: Path, work: Path, workers: int, bar: tqdm) -> list[str]:
    """Keep `workers` processes busy; on an interrupt let each save a checkpoint first."""
    waiting, running, failed = list(waiting), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                run = waiting.pop(0)
                running[run.name] = start(run, results, work)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                bar.update()
                if process.returncode:
                    failed.append(name)
                    bar.write(f"{name} failed with status {process.returncode}: see {log_path(work, name)}")
            bar.set_postfix_str(", ".join(running), refresh=False)
            time.sleep(POLL)
    except BaseException:
        stop(list(running.values()))
        raise
    return failed


def start(run: Run, results: Path, work: Path) -> subprocess.Popen:
    """Begin a run in a process; what it prints goes to a file beside its run folder."""
    work.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parents[1]
    fields = json.dumps(dataclasses.asdict(run))
    command = [
        sys.executable,
        "-m",
        run.program or "experiments.train_run",
        fields,
        str(results.resolve()),
        str(work.resolve()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log_path(work, run.name), "wb") as log:
        return subprocess.Popen(
            command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def log_path(work: Path, name: str) -> Path:
    return work / f"{name}.log"


def stop(processes: list[subprocess.Popen]) -> None:
    """SIGTERM, at which a training writes a checkpoint and ends."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        if process.wait() not in (0, exit_status(signal.SIGTERM)):
            tqdm.write(f"process {process.pid} ended with status {process.returncode}")
