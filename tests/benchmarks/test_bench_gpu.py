"""The GPU benchmark from its first line to its last on a CPU, with small shapes, a stand-in clock and no compiler."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity

from benchmarks import bench_gpu, gpu_conv, gpu_models, gpu_scans, gpu_timing
from benchmarks.conv_cost import ConvShape
from benchmarks.scan_cost import Shape
from ops.library import BACKENDS
from tests.stand_ins import OnTheCPU

PARTS = (
    "scan",
    "launch-per-line baselines",
    "flash attention",
    "depthwise convolution",
    "gated merge",
    "mixers, eager",
    "mixers, compiled",
    "training step",
    "mixer stages",
    "mixer profile",
    "compiled reference",
)
SHAPES = [
    Shape("per channel", 2, 16, 16, 12, 12),
    Shape("grouped", 1, 10, 8, 1152, 72),
    Shape("local", 1, 8, 8, 1152, 72, 2),
]
SMALL = {
    "attention": ("DiT-S/2", None),
    "gspn": ("GSPN-DiT-S/2", 0),
    "gspn, segments of 2": ("GSPN-DiT-S/2", 2),
}


def time_once(run, repeats, sets):
    run(0)
    return [1e-3]


@pytest.fixture
def stand_ins(monkeypatch):
    device = SimpleNamespace(name="none", major=9, minor=0, total_memory=2**36, multi_processor_count=132)
    device.shared_memory_per_block_optin = 227 * 1024
    for name, value in (
        ("is_available", lambda: True),
        ("is_bf16_supported", lambda: True),
        ("synchronize", lambda: None),
        ("get_device_properties", lambda index: device),
        ("get_device_capability", lambda: (9, 0)),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)  # it asks the device for its stream
    monkeypatch.setattr(gpu_timing, "_timed", time_once)
    monkeypatch.setattr(gpu_timing, "copy_bandwidth", lambda: 4e12)
    monkeypatch.setattr(gpu_timing, "ROTATION_BYTES", 1)
    monkeypatch.setattr(gpu_conv, "conv_shapes", lambda: [ConvShape("small", 2, 8, 9, 12, 7)])
    monkeypatch.setattr(gpu_scans, "WIDE_MAP", Shape("wide", 1, 32, 32, 8, 8))
    monkeypatch.setattr(gpu_scans, "compile_baselines", lambda folder, architecture: None)
    monkeypatch.setattr(gpu_scans, "check_baselines", lambda library: None)
    monkeypatch.setattr(gpu_scans, "run_baseline", lambda *settings: None)
    for module in (gpu_scans, gpu_models):
        monkeypatch.setattr(module, "model_shapes", lambda: SHAPES)
        monkeypatch.setattr(module, "compile_afresh", lambda function: function)
    for name, value in (
        ("GRIDS", {8: 2, 16: 1}),
        ("STAGED", (8,)),
        ("PROFILED", (8,)),
        ("PROFILED_PASSES", 1),  # on the CPU it is thousands of events
        ("WIDTH", 384),
        ("MIXERS", SMALL),
        ("STEP_MODELS", {"attention": "DiT-S/2", "gspn": "GSPN-DiT-S/2"}),
        ("profile", lambda activities: torch.profiler.profile(activities=[ProfilerActivity.CPU])),
    ):
        monkeypatch.setattr(gpu_models, name, value)


@pytest.mark.skipif("cuda" not in BACKENDS, reason="plans come from the library with its CUDA part")
def test_every_part_runs_to_its_end(stand_ins, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    with OnTheCPU():
        status = bench_gpu.main(["--json", str(path), "--minutes", "10"])
    results = json.loads(path.read_text())
    assert results["errors"] == {} and status == 0, "\n".join(results["errors"].values())
    assert all(results[part] for part in PARTS), {part: len(results[part]) for part in PARTS}
    shares = [row["share_of_copy"] for row in results["scan"]]
    assert len(shares) == 2 * (len(SHAPES) + 3) and all(share > 0 for share in shares)
    # Every time is that of the stand-in clock: nothing is faster than attention.
    assert {found["faster_from_pixels"] for found in results["against attention"].values()} == {None}
    assert "FAILED" not in capsys.readouterr().out


def test_a_part_that_fails_is_recorded_and_the_rest_goes_on(tmp_path, capsys):
    report = bench_gpu.Report(tmp_path / "gpu.json", minutes=1)

    def fails():
        yield {"pixels": 1}
        raise RuntimeError("no such kernel")

    assert report.collect("broken", fails, str) == [{"pixels": 1}]
    assert report.collect("whole", lambda: [{"pixels": 2}], str) == [{"pixels": 2}]
    saved = json.loads((tmp_path / "gpu.json").read_text())
    assert "no such kernel" in saved["errors"]["broken"] and saved["whole"] == [{"pixels": 2}]
    assert "failed: RuntimeError: no such kernel" in capsys.readouterr().out
