"""eval_fid.py in process, with pixels in Inception's place."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import eval_fid
from gspn_dit.errors import UserError
from gspn_dit.evaluation import extractors, golden, references, verdict
from gspn_dit.sampling.sample_file import write_samples
from tests.evaluation.conftest import Pixels, random_images, score
from tests.evaluation.test_verdict import GOOD
from tests.sampling.conftest import make_run

ROOT = Path(eval_fid.__file__).parent
DEMO = {
    "parameters": 1,
    "training_images": 1,
    "samples": 1,
    "sampler": "heun",
    "steps": 1,
    "cfg_scale": 2.0,
    "asked_class": 1.0,
    "copies": 0.0,
    "kid": 0.0,
    "fid_real_halves": 1.0,
    "classifier_accuracy": 1.0,
}


def test_errors_and_infinity_are_options_and_few_images_leave_notes(pixels, tmp_path, capsys):
    np.savez(tmp_path / "s.npz", arr_0=random_images(200, 0))
    np.savez(tmp_path / "few.npz", arr_0=random_images(3, 1))
    options = ("--bootstrap", 5, "--fid-inf")
    result = score(tmp_path / "s.npz", "--reference", tmp_path / "few.npz", *options, tmp_path / "1")
    assert result["errors"]["fid"] > 0 and np.isfinite(result["fid_inf"])
    assert result["precision"] is None and result["recall"] is None
    printed = capsys.readouterr().out
    assert "no precision and recall: 200 samples and 3 references are too few" in printed
    assert "KID in subsets of 3, not 1,000" in printed and "FID at infinite samples" in printed


def test_samples_of_another_size_than_the_reference_are_scored_and_told(pixels, tmp_path):
    np.savez(tmp_path / "s.npz", arr_0=random_images(10, 0, size=16))
    np.savez(tmp_path / "r.npz", arr_0=random_images(10, 1))
    result = score(tmp_path / "s.npz", "--reference", tmp_path / "r.npz", tmp_path / "1")
    assert "samples are 16x16, the reference's images 32x32" in result["reasons"]


def test_a_run_is_sampled_first(digit_cache, tmp_path):
    run = make_run(tmp_path / "run")
    arguments = [
        run,
        "--reference",
        "mnist",
        "--features",
        "digits",
        "--num",
        20,
        "--labels",
        "balanced",
        "--steps",
        1,
    ]
    first = score(*arguments, tmp_path / "1")
    (made,) = (run / "evaluation").glob("*.npz")
    written = made.stat().st_mtime_ns
    assert score(*arguments, tmp_path / "2")["fid"] == pytest.approx(first["fid"], rel=1e-6)
    assert made.stat().st_mtime_ns == written
    assert first["settings"]["labels"] == "balanced" and first["settings"]["ema"] is True
    assert (
        first["settings"]["cfg_scale"] == 1.0 and first["settings"]["steps"] == 1
    )  # the run's own are 2 and 2
    assert first["sfid"] is None and first["is"] is None and first["fid"] > 0
    assert "features are of the digit classifier, not of Inception" in first["reasons"]


def test_a_run_is_scored_with_internal_guidance(digit_cache, tmp_path):
    run = make_run(tmp_path / "run", depth=2, auxiliary_head=0)
    arguments = [run, "--reference", "mnist", "--features", "digits", "--num", 20, "--steps", 1]
    plain = score(*arguments, tmp_path / "1")
    internal = score(*arguments, "--internal-guidance", 2.5, tmp_path / "2")
    assert internal["settings"]["internal_guidance"] == 2.5
    assert plain["settings"]["internal_guidance"] is None and plain["fid"] != internal["fid"]
    assert len(list((run / "evaluation").glob("*.npz"))) == 2


def test_scores_are_recorded_with_their_settings(pixels, tmp_path):
    results = tmp_path / "results"
    write_samples(
        tmp_path / "s.npz", random_images(10, 0), np.arange(10), {"checkpoint": "abc", "cfg_scale": 1.0}
    )
    np.savez(tmp_path / "r.npz", arr_0=random_images(10, 1))
    options = ("--record", "--results", results)
    result = score(tmp_path / "s.npz", "--reference", tmp_path / "r.npz", *options, tmp_path / "1")
    (entry,) = json.loads((results / "leaderboard.json").read_text())
    assert entry == result and entry["settings"]["checkpoint"] == "abc"


def test_demo_runs_side_by_side(tmp_path, capsys):
    for name, fid in (("a", 1.25), ("b", 7.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps({**DEMO, "model": name, "fid": fid}))
    assert eval_fid.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "FID to held-out" in line)
    assert line.split()[-2:] == ["1.25", "7.50"]
    with pytest.raises(UserError, match="train the run to its end first"):
        eval_fid.main(["--compare", str(tmp_path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "give SAMPLES and --reference REF"),
        ("s.npz", "give SAMPLES and --reference REF"),
        ("absent --reference r.npz", "no such samples: absent"),
        ("s.npz --reference absent.npz", "no such reference: absent.npz"),
        ("s.npz --reference r.npz --batch-size 0", "--batch-size 0: expected at least 1"),
        ("s.npz --reference r.npz --seed -1", "--seed -1: expected from 0 to 2**63 - 1"),
        ("s.npz --reference r.npz --bootstrap 1", "--bootstrap 1: expected 0, or at least 2"),
        ("s.npz --reference r.npz --json no/such/folder.json", "its folder does not exist"),
        ("s.npz --reference r.npz --save-reference r.zip", "expected a name that ends in .npz"),
        ("s.npz --reference r.npz --features digits --record", "the leaderboard is of Inception's scores"),
        ("s.npz --reference r.npz --steps 5", "--steps is for a run"),
        ("s.npz --reference r.npz --inception-weights absent", "--inception-weights absent: no such file"),
        (
            "s.npz --reference r.npz --inception-weights text",
            "cannot be read as weights: it is a text; expected",
        ),
        ("s.npz --reference r.npz --inception-weights other.pth", "are not weights of torch-fidelity's"),
        ("s.npz --reference r.npz --inception-weights nan.pth", "nan.pth: weight is not finite"),
        ("s.npz --reference r.npz --inception-weights list.pth", "list.pth holds no state dict"),
        ("s.npz --reference bad.npz", "mu is (3,) and sigma (2, 2); expected (d,) and (d, d)"),
        ("s.npz --reference nan.npz", "mu or sigma is not finite"),
        ("s.npz --reference r.npz --features vgg", "invalid choice: 'vgg'"),
        ("s.npz --reference r.npz --seed 5", "--seed is for a run"),
        ("s.npz --reference r.npz --json .", "--json . cannot be written"),
        ("s.npz --reference r.npz --record --results spoilt", "leaderboard.json is not JSON"),
        ("s.npz --leaderboard", "--leaderboard stands alone"),
        ("--golden . --leaderboard", "--leaderboard stands alone"),
        ("text --reference r.npz", "text is a text; expected an npz, whole"),
        ("s.npz --reference text", "text is a text; expected an npz, whole"),
        ("--compare lacking", "scores.json of a run is not as train.py writes it (KeyError('model'))"),
        ("s.npz --reference r.npz --features digits --inception-weights text", "has no effect"),
        ("--leaderboard --results text", "cannot read text/published.csv"),
        ("--golden .", ". lacks VIRTUAL_imagenet256_labeled.npz and admnet_guided_upsampled_imagenet256.npz"),
    ],
)
def test_bad_input_is_one_line(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("s.npz", arr_0=random_images(4, 0))
    np.savez("r.npz", arr_0=random_images(4, 1))
    np.savez("bad.npz", mu=np.zeros(3), sigma=np.eye(2))
    np.savez("nan.npz", mu=np.full(2, np.nan), sigma=np.eye(2))
    Path("text").write_text("no weights")
    for folder, name in (("spoilt", "leaderboard.json"), ("lacking", "scores.json")):
        Path(folder).mkdir()
        Path(folder, name).write_text("[" if folder == "spoilt" else "{}")
    torch.save({"weight": torch.zeros(2)}, "other.pth")
    torch.save({"weight": torch.full((2,), float("nan"))}, "nan.pth")
    torch.save([torch.zeros(2)], "list.pth")
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        eval_fid.main(options.split())
    assert message in str(caught.value)


def test_bad_input_for_a_run_is_one_line_before_anything_is_sampled(tmp_path):
    run = make_run(tmp_path / "run")
    for options, message in (
        ("--preset paper --steps 50", "--steps 50: --preset paper pins it to 250"),
        ("--preset paper --weights last", "pins it to ema"),
        ("--preset paper", "--preset paper is for ddpm models; .*/run is of a flow model"),
        ("--cfg-scale 0.9", "--cfg-scale 0.9: expected 1.0"),
        ("--internal-guidance 0.9", "--internal-guidance 0.9: expected 1.0"),
        ("--num 1", "--num 1: expected at least 2"),
        ("--num 4 --inception-weights absent", "--inception-weights absent: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            eval_fid.main([str(run), "--reference", "mnist", *options.split()])
    assert not (run / "evaluation").exists()


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        UserError, match=r"cannot be downloaded \(no route to host\): fetch https://.*--inception-weights"
    ):
        extractors.find_weights(None)


def test_the_golden_numbers_agree_or_differ():
    published = {"is": 215.8, "fid": 3.94, "sfid": 6.14, "precision": 0.826, "recall": 0.531}
    near = {name: value * 1.009 for name, value in published.items()}
    assert golden.compare(near)[1]
    for name, value in published.items():
        for wrong in (value * 1.011, value * 0.989, None):
            table, agreed = golden.compare({**near, name: wrong})
            (line,) = (line for line in table.splitlines() if "differs" in line)
            assert not agreed and line.startswith(name)


def test_scores_that_are_not_adms_fail_the_golden_command(pixels, tmp_path, capsys):
    np.savez(tmp_path / golden.SAMPLES, arr_0=random_images(10, 0))
    pool = Pixels()(random_images(60, 1)).pool.numpy()
    statistics = {"mu": pool.mean(axis=0), "sigma": np.cov(pool, rowvar=False)}
    np.savez(tmp_path / golden.REFERENCE, arr_0=random_images(10, 1), **statistics)
    (tmp_path / "weights").touch()
    assert eval_fid.main(["--golden", str(tmp_path), "--inception-weights", str(tmp_path / "weights")]) == 1
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert all(line.split()[0] in golden.PUBLISHED and line.endswith("differs") for line in lines)


def test_the_golden_files_that_are_missing_are_all_named_and_where_to_get_them(tmp_path):
    (tmp_path / golden.SAMPLES).touch()
    (tmp_path / "weights.pth").touch()
    with pytest.raises(UserError) as caught:
        golden.check_files(tmp_path, None)
    message = str(caught.value)
    assert golden.SAMPLES not in message and f"{golden.URL}/{golden.REFERENCE}" in message
    assert "weights-inception-2015-12-05-6726825d.pth" in message
    with pytest.raises(UserError) as caught:
        golden.check_files(tmp_path, "weights.pth")
    assert "weights-inception" not in str(caught.value)
    (tmp_path / golden.REFERENCE).touch()
    beside = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    beside.touch()
    assert golden.check_files(tmp_path, None) == beside


def test_samples_as_they_should_be_are_comparable_and_each_departure_is_told(
    pixels, tmp_path, monkeypatch, capsys
):
    """The whole path, with fewer samples for ADM's number and any statistics for ADM's."""
    monkeypatch.setattr(verdict, "ADM_SAMPLES", 10)
    monkeypatch.setattr(references, "is_virtual", lambda *_: True)
    monkeypatch.setattr(Pixels, "published", True)
    pool = Pixels()(random_images(60, 1)).pool.numpy()
    np.savez(
        tmp_path / "r.npz", arr_0=random_images(10, 1), mu=pool.mean(axis=0), sigma=np.cov(pool, rowvar=False)
    )
    settings = {
        key: GOOD[key] for key in ("labels", "ema", "objective", "sampler", "steps", "cfg_scale", "decoder")
    }
    settings |= {"model": "GSPN-B/2", "training_step": 400_000, "checkpoint": "0123456789"}

    def reasons(count=10, size=32, **changes):
        images = random_images(count, 0, size=size)
        write_samples(tmp_path / "s.npz", images, np.zeros(count), {**settings, **changes})
        paper = ("--preset", "paper")
        return score(tmp_path / "s.npz", "--reference", tmp_path / "r.npz", *paper, tmp_path / "1")["reasons"]

    assert reasons() == []
    printed = capsys.readouterr().out
    for line in (
        "ADM-comparable",
        "model: GSPN-B/2, step 400,000, checkpoint 01234567",
        "labels: random",
        "steps: 250 of ddpm",
        "guidance: none",
        "weights: EMA",
        f"published at --preset paper: {verdict.PRESETS['paper'].gives}",
    ):
        assert line in printed.splitlines(), line
    for changes, reason in (
        ({"count": 9}, "9 samples, not 10"),
        ({"size": 16}, "samples are 16x16"),
        ({"ema": False}, "the weights are not averaged (EMA)"),
        ({"ema": None}, "not stated whether the weights are averaged (EMA)"),
        ({"labels": "balanced"}, "labels is balanced, in --preset paper random"),
        ({"cfg_scale": 1.5}, "cfg_scale is 1.5, in --preset paper 1.0"),
    ):
        (found,) = reasons(**changes)
        assert reason in found
    assert reasons(labels=None)[0] == "the sampling of labels is not stated"
    monkeypatch.setattr(Pixels, "published", False)
    assert reasons() == ["Inception's weights are not the published ones (another hash)"]


def test_an_interrupt_says_what_is_kept(tmp_path, pixels, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    np.savez(tmp_path / "s.npz", random_images(3, 0))
    monkeypatch.setattr("gspn_dit.evaluation.scores.load_reference", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        eval_fid.main([str(tmp_path / "s.npz"), "--reference", "mnist"])
    assert caught.value.__notes__[0].startswith(
        "no scores yet; samples and statistics of references that were"
    )
