"""Numbers that a benchmark cannot work with are refused before it begins."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.paired import parse

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", ["--threads", "--repeats"])
def test_less_than_one_is_refused(name, capsys):
    for number, said in (
        ("0", f"argument {name}: expected at least 1, got 0"),
        ("two", "invalid whole_number"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse("what it measures", "x.json", [name, number])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "script, argument",
    [
        ("bench_cpu.py", "--repeats=2"),
        ("bench_mixer.py", "--repeats=2"),
        ("bench_mixer.py", "--threads=0"),
        ("bench_training.py", "--rounds=0"),
        ("bench_training.py", "--threads=0"),
        ("bench_loader.py", "--processes=0"),
        ("bench_loader.py", "--images=0"),
        ("bench_loader.py", "--repeats=0"),
    ],
)
def test_every_script_refuses_it(script, argument):
    command = [sys.executable, str(FOLDER / script), argument]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2 and "expected at least" in result.stderr
