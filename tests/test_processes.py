"""What the launcher or its environment asks for beside processes changes no number; freed memory is kept."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from gspn_dit.errors import UserError
from gspn_dit.processes import check_launcher, not_taken
from tests.training.run_state import final_state

WISHES = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "eager",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_DOWNCAST_BF16": "true",
}


@pytest.fixture
def fresh_state():
    """accelerate keeps what it first read of the environment."""
    shared = [(state, dict(state._shared_state)) for state in (AcceleratorState, GradientState, PartialState)]
    for state, _ in shared:
        state._shared_state.clear()
    yield
    for state, kept in shared:
        state._shared_state.clear()
        state._shared_state.update(kept)


def test_wishes_of_the_launcher_are_told_and_change_nothing(train_run, monkeypatch, capsys, fresh_state):
    plain = final_state(train_run("plain"))
    for name, value in WISHES.items():
        monkeypatch.setenv(name, value)
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    capsys.readouterr()
    assert final_state(train_run("wished")) == plain
    told = [line for line in capsys.readouterr().out.splitlines() if "of the launcher" in line]
    assert told == [
        "ACCELERATE_MIXED_PRECISION=bf16 of the launcher has no effect: train.precision decides",
        "ACCELERATE_DYNAMO_BACKEND=eager of the launcher has no effect: train.compile decides",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 of the launcher has no effect: train.micro_batch decides",
    ]


def test_what_the_documented_configurations_set_is_taken(monkeypatch):
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "False",
        "FSDP_ACTIVATION_CHECKPOINTING": "false",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    }.items():
        monkeypatch.setenv(name, value)
    check_launcher()
    assert not_taken() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", r"asks for DeepSpeed \(ACCELERATE_USE_DEEPSPEED=true\), which is not"),
        ("ACCELERATE_USE_MEGATRON_LM", "asks for Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "asks for a parallelism of several axes"),
        ("FSDP_OFFLOAD_PARAMS", "asks for FSDP with offloading"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "model.checkpoint_activations has the same"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "asks for FSDP with loading on one process"),
    ],
)
def test_what_is_not_supported_is_refused(train_run, tmp_path, monkeypatch, name, message):
    monkeypatch.setenv(name, "true")
    if name.startswith("FSDP"):
        check_launcher()  # of a launcher that does not shard
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match=message) as caught:
        train_run("run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_another_fsdp_than_the_documented_one_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for version in (None, "1"):
        if version:
            monkeypatch.setenv("FSDP_VERSION", version)
        with pytest.raises(UserError, match=r"FSDP of another version than 2 .*fsdp2.yaml"):
            check_launcher()


RESIDENT = """
import os, sys
from pathlib import Path
from gspn_dit.processes import connect

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

if sys.argv[1] == "connected":
    connect()
before = resident()
block = b"1" * (64 << 20)
del block
print((resident() - before) / (64 << 20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="for work on the CPU")
@pytest.mark.parametrize(
    ("mode", "environment", "kept"),
    [
        ("alone", {}, False),
        ("connected", {}, True),
        ("connected", {"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
    ],
    ids=["by default", "kept", "the user's own setting"],
)
def test_freed_memory_is_kept_for_the_next_tensors(mode, environment, kept):
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", RESIDENT, mode]
    share = float(subprocess.check_output(command, env=others | environment, text=True))
    assert share > 0.9 if kept else share < 0.1, "of a freed block, still the process's"
