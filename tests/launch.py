"""Starting the command lines on two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def accelerate_launch(program: str | Path, *arguments: object) -> str:
    """Run a program on two processes by the command of the README; what it printed to stdout."""
    options = ["--config_file", "configs/accelerate/ddp.yaml", "--num_processes", "2"]
    options += ["--main_process_port", str(free_port())]
    result = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, str(program), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
