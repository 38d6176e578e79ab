"""`make gpu-check`: what it says without a GPU, and how its steps follow one another with one."""

import json
import re

import pytest
import torch

from benchmarks import gpu_check


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible")
def test_without_a_gpu_it_says_so_in_one_line(capsys):
    assert gpu_check.main([]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .*(GPU|CUDA).*\n", said)


@pytest.fixture
def results(tmp_path):
    return tmp_path / "gpu.json"


@pytest.fixture
def run(monkeypatch, capsys, results):
    """Runs the check with steps that give these exit statuses; returns its own and its summary."""

    def run(statuses, *arguments):
        done = []
        fakes = {name: lambda n=name: done.append(n) or statuses[n] for name in statuses}
        monkeypatch.setattr(gpu_check, "gpu_problem", lambda: None)
        monkeypatch.setattr(gpu_check, "steps", lambda minutes, results: fakes)
        status = gpu_check.main([*arguments, "--json", str(results)])
        return status, done, capsys.readouterr()

    return run


def test_every_step_is_reported(run):
    status, done, said = run({"build": 0, "tests": 1, "memcheck": gpu_check.NO_SANITIZER, "benchmark": 124})
    assert status == 1
    assert done == ["build", "tests", "memcheck", "benchmark"]
    summary = said.out.split("== summary")[1]
    for line in (
        "build  .*passed",
        "tests  .*FAILED: exit status 1",
        "memcheck .*skipped",
        "benchmark.*out of time",
    ):
        assert re.search(line, summary), summary


def test_nothing_follows_a_build_that_failed(run):
    assert run({"build": 1, "tests": 0})[:2] == (1, ["build"])


def test_all_passed(run):
    assert run({"build": 0, "tests": 0, "memcheck": gpu_check.NO_SANITIZER})[0] == 0


def test_outcomes_are_added_to_the_results(run, results, monkeypatch):
    results.write_text('{"scan": [1]}')
    said = {gpu_check.NO_SANITIZER: "skipped: compute-sanitizer", 0: "passed", 3: "FAILED: exit status 3"}
    monkeypatch.setattr(
        gpu_check, "first_line", lambda command: "580.1" if command[0] == "nvidia-smi" else None
    )
    run({"build": 0, "memcheck": 3, "racecheck": gpu_check.NO_SANITIZER})
    found = json.loads(results.read_text())
    assert found["scan"] == [1] and found["check"]["driver"] == "580.1" and "nvcc" in found["check"]
    for name, status in (("build", 0), ("memcheck", 3), ("racecheck", gpu_check.NO_SANITIZER)):
        assert found["check"]["outcomes"][name].startswith(said[status])


def test_without_pytest_the_tests_are_skipped_and_the_rest_goes_on(run, monkeypatch):
    monkeypatch.setattr(gpu_check, "has_pytest", lambda: False)
    steps = gpu_check.steps(1, gpu_check.ROOT / "unused.json")
    assert steps["tests of the operators"]() == gpu_check.NO_PYTEST
    status, done, said = run({"tests": gpu_check.NO_PYTEST, "benchmark": 0})
    assert status == 0 and done == ["tests", "benchmark"]
    assert re.search("tests .*skipped: pytest", said.out)
    assert re.search("without pytest: .* -m pip install pytest\n", said.out)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer_sees_every_allocation(tool, monkeypatch):
    calls = []
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name, path: "/sanitizer")
    monkeypatch.setattr(gpu_check, "call", lambda *args, **variables: calls.append((args, variables)) or 0)
    gpu_check.sanitize(tool)
    (command, _), variables = calls[0]
    assert command[:5] == ["/sanitizer", "--tool", tool, "--report-api-errors", "no"]
    assert variables == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def test_what_is_not_installed_has_no_first_line():
    assert gpu_check.first_line(["no-such-command"]) is None
    assert gpu_check.first_line(["echo", "580.1"]) == "580.1"


@pytest.mark.parametrize(
    "text, version", [('{"nvcc": "13.0"}', "13.0"), ('{"nvcc":', None), ("{}", None), (None, None)]
)
def test_a_broken_record_of_the_build_names_no_compiler(text, version, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    (tmp_path / "ops" / "lib").mkdir(parents=True)
    if text is not None:
        (tmp_path / "ops" / "lib" / "build.json").write_text(text)
    assert gpu_check.compiler_version() == version


def test_one_step_alone(run):
    assert run({"build": 0, "tests": 0}, "--only", "tests")[:2] == (0, ["tests"])
    status, done, said = run({"build": 0}, "--only", "tets")
    assert status == 2 and done == [] and "no step 'tets'" in said.err


@pytest.mark.parametrize("packages, tested", [(("no_such_package",), False), (("torch",), True)])
def test_a_python_without_the_models_packages_tests_the_operators(packages, tested, run, monkeypatch):
    calls = []
    monkeypatch.setattr(gpu_check, "MODEL_PACKAGES", packages)
    monkeypatch.setattr(gpu_check, "call", lambda command, seconds: calls.append(command) or 0)
    steps = gpu_check.steps(1, gpu_check.ROOT / "unused.json")
    assert steps["tests of the operators"]() == 0 and "tests/ops" in calls[0]
    assert steps["tests of the models"]() == (0 if tested else gpu_check.NO_MODELS)
    assert [{"tests/models", "tests/diffusion"} <= set(command) for command in calls[1:]] == [True] * tested
    assert ("for want of no_such_package" in run({"build": 0})[2].out) != tested


def test_no_step_takes_more_than_eight_minutes(monkeypatch):
    limits = []
    monkeypatch.setattr(gpu_check, "call", lambda command, seconds, **variables: limits.append(seconds) or 0)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name, path: "/sanitizer")
    monkeypatch.setattr(gpu_check, "gpu_problem", lambda: None)
    monkeypatch.setattr(gpu_check, "record", lambda outcomes, results: None)
    assert gpu_check.main([]) == 0
    assert len(limits) == 7 and max(limits) <= 480


def test_outcomes_of_steps_alone_are_kept_side_by_side(run, results):
    run({"build": 0, "benchmark": 3}, "--only", "build")
    run({"build": 0, "benchmark": 3}, "--only", "benchmark")
    outcomes = json.loads(results.read_text())["check"]["outcomes"]
    assert outcomes["build"].startswith("passed") and outcomes["benchmark"].startswith("FAILED")
