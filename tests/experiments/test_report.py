"""The report follows from the JSON alone: what differs, what does not, and what is missing."""

import dataclasses
import json

import pytest

from experiments import kernel
from experiments.plan import EXPERIMENTS, SCALES, VARIANTS, make_run, training_runs
from experiments.report import write_report
from experiments.sections import Data, show, survivors
from experiments.stability_section import mean_and_spread, reach_power, spread_free
from experiments.summary import Setting, Values, compare, differ, load_settings, quartiles, sentence
from experiments.train_run import is_measured, write_json

SCALE = dataclasses.replace(SCALES["mini"], seeds=(0, 1, 2))


def setting(*fids, **more):
    results = tuple({"diverged": None, "fid": fid, **more} for fid in fids)
    return Setting("some", results)


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        ((1.0, 2.0, 3.0), (7.0, 8.0, 9.0), True),
        ((7.0, 8.0, 9.0), (1.0, 2.0, 3.0), True),
        ((1.0, 2.0, 3.0), (2.5, 3.5, 4.5), False),  # ranges overlap
        ((1.0, 1.0, 2.9), (3.0, 3.0, 4.9), False),  # apart, but by less than two deviations
        ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), False),
        ((1.0, 2.0), (7.0, 8.0, 9.0), None),
    ],
)
def test_a_difference_is_one_beyond_the_spread(a, b, found):
    assert differ(Values(a), Values(b)) is found


def test_comparisons_in_words():
    low, high = setting(1.0, 1.1, 1.2), setting(5.0, 5.1, 5.2)
    assert sentence("A", "B", compare(low, high)) == "B has a higher FID than A by 4.00"
    assert sentence("A", "B", compare(high, low)) == "B has a lower FID than A by 4.00"
    assert "no difference" in sentence("A", "B", compare(low, low))
    assert "too few seeds" in sentence("A", "B", compare(low, setting(5.0)))
    assert "not measured" in sentence("A", "B", compare(low, None))
    assert "not measured" in sentence("A", "B", compare(low, Setting("diverged", ({"diverged": "x"},))))


def test_scores_are_found_under_dotted_keys_and_skip_runs_without():
    found = Setting("some", ({"diverged": "x"}, {"diverged": None, "probe": {"noise": {"linear": 0.5}}}))
    assert found.get("probe.noise.linear").values == (0.5,)
    assert found.get("fid") is None
    assert found.diverged == 1
    assert (Values((1.0, 2.0, 6.0)).mean, Values((1.0, 2.0, 6.0)).half_range) == (3.0, 2.5)


def written(folder, fids, accuracy=0.9):
    """Results of three seeds for each variant in `fids`."""
    for variant in VARIANTS:
        for seed in SCALE.seeds if variant.name in fids else ():
            run = make_run(variant, SCALE, seed)
            result = {
                "name": run.name,
                "variant": variant.name,
                "seed": seed,
                "key": run.key,
                "settings": run.settings,
                "images": 32,
                "diverged": None,
                "parameters": 100,
                "fid": fids[variant.name] + 0.1 * seed,
                "kid": 0.001,
                "accuracy": accuracy,
                "fid_real_halves": 1.5,
                "final_loss": 0.2,
                "loss_curve": [[8, 1.0], [32, 0.2]],
                "probe": {kind: {"linear": 0.1, "squares": 0.2} for kind in ("digits", "noise")},
                "seconds": 1.0,
                "device": "some CPU",
                "torch": "2",
                "python": "3",
                "date": "2026-01-01",
            }
            write_json(run.result_path(folder), result)


def report_of(tmp_path, fids, accuracy=0.9):
    written(tmp_path / "results", fids, accuracy)
    return write_report(SCALE, tmp_path / "results", tmp_path / "docs").read_text()


def section_of(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_report_turns_with_the_numbers(tmp_path):
    better = report_of(tmp_path / "a", {"gspn": 10.0, "dit": 20.0})
    worse = report_of(tmp_path / "b", {"gspn": 20.0, "dit": 10.0})
    same = report_of(tmp_path / "c", {"gspn": 10.0, "dit": 10.05})
    assert "GSPN-DiT has a lower FID than DiT (sin-cos) by 10.00 (flow)" in section_of(
        better, "GSPN against DiT"
    )
    assert "GSPN-DiT has a higher FID than DiT (sin-cos) by 10.00 (flow)" in section_of(
        worse, "GSPN against DiT"
    )
    assert "GSPN-DiT against DiT (sin-cos): no difference in FID" in section_of(same, "GSPN against DiT")
    assert "10.10 ± 0.10" in section_of(better, "GSPN against DiT")


def test_every_table_of_trainings_states_seeds_images_and_parameters(tmp_path):
    text = report_of(tmp_path, {variant.name: 10.0 for variant in VARIANTS})
    lines = text.split("\n## What the scan is worth\n")[0].splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("| ") and lines[i + 1].startswith("| ---")]
    tables = [
        i for i in heads if "| seeds | images | parameters |" in lines[i] and "untrained" not in lines[i]
    ]
    assert len(tables) == 8  # the scores of five experiments and a check, the probe, the learning rates
    for head in tables:
        row = lines[head + 2]
        assert row.startswith(("| GSPN-DiT |", "| GSPN-DiT (16 lines) |"))
        assert row.split(" | ")[2:4] == ["32", "100"], row


def test_a_check_counts_apart_from_the_plan(tmp_path):
    plan = {name: 10.0 for names in EXPERIMENTS.values() for name in names}
    without = report_of(tmp_path / "a", plan)
    text = report_of(tmp_path / "b", {**plan, "identity-16-lines": 20.0})
    assert "60\ntraining runs of the plan are in (1 minutes" in without
    assert "60\ntraining runs of the plan and 3 of checks beyond it are in (1 minutes" in text
    assert (
        "lines twice as long (`python -m experiments --only lines`): GSPN-DiT (16 lines) against" in without
    )
    found = "GSPN-DiT (16 lines) has a lower FID than GSPN-DiT (16 lines, scan left out) by 10.00"
    assert found not in without and found in section_of(text, "The answers")


def test_samples_that_are_not_digits_yet_are_named(tmp_path):
    legible = report_of(tmp_path / "a", {"gspn": 10.0, "dit": 20.0}, accuracy=0.31)
    not_yet = report_of(tmp_path / "b", {"gspn": 10.0, "dit": 20.0}, accuracy=0.29)
    assert "hardly digits" not in legible
    assert "Samples of GSPN-DiT, DiT (sin-cos) are read" in section_of(not_yet, "GSPN against DiT")


def test_a_report_without_results_says_so(tmp_path):
    text = report_of(tmp_path, {})
    answers = section_of(text, "The answers").strip().splitlines()
    assert len(answers) == 7
    assert all("not measured" in line for line in answers), answers


def test_runs_of_another_plan_do_not_count(tmp_path):
    written(tmp_path, {"gspn": 10.0})
    keys = {run.name: run.key for run in training_runs(SCALE, tuple(EXPERIMENTS))}
    assert len(load_settings(tmp_path, keys)["gspn"].results) == 3
    path = tmp_path / "runs" / "gspn-seed1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "another"}))
    assert len(load_settings(tmp_path, keys)["gspn"].results) == 2


def test_scores_of_fewer_seeds_are_shown_as_such():
    assert show(Values((2.0,))) == "2.00 (one seed)"
    assert show(Values((2.0, 4.0))) == "3.00 ± 1.00"
    assert survivors(setting(1.0, 2.0)) == ""
    lost = Setting("some", ({"diverged": "step 3", "fid": None}, {"diverged": None, "fid": 1.0}))
    assert survivors(lost) == " (1 of 2)"


def test_speeds_differ_when_the_quartiles_are_on_one_side():
    row = lambda ratio, low, high: {"ratio": ratio, "low": low, "high": high}  # noqa: E731
    rows = [
        {"variant": name, "training": row(*values)}
        for name, values in {
            "dit": (1.5, 1.4, 1.6),
            "gspn-local-2": (0.9, 0.8, 1.0),
            "identity": (0.8, 0.7, 0.9),
        }.items()
    ]
    data = Data(scale=SCALE, settings={}, rates=[], throughput={"rows": rows})
    assert data.speed_in_words("dit") == "DiT (sin-cos) 1.50 times"
    assert data.speed_in_words("gspn-local-2").endswith("no difference")
    assert data.speed_in_words("identity").endswith("0.80 times")
    assert data.speed_in_words("gspn-groups-1").endswith("not measured")


def test_norms_are_shown_with_their_spread_over_the_seeds():
    assert mean_and_spread([1.0, 1.0 + 1e-12]) == "1"
    assert mean_and_spread([1.0, 2.0, 6.0]) == "3 ± 2"
    assert mean_and_spread([1e90, 3e90]) == "2e+90 ± 1e+90"


def test_quartiles_are_values_that_were_seen():
    assert quartiles([4.0, 1.0, 3.0, 2.0]) == (2.0, 3.0)
    assert quartiles([9.0, 1.0, 5.0]) == (1.0, 9.0)
    assert quartiles([7.0]) == (7.0, 7.0)


def test_reach_is_the_slope_of_what_was_measured():
    rows = [
        {"lines": t, "impulse_std": 2 * t**0.75, "normalization": "row_stochastic", "logit_std": 0.0}
        for t in (8, 16, 32, 4096)
    ]
    record = {"settings": {"lines": [8, 16, 32, 4096], "positions": 64}, "rows": rows}
    assert spread_free(record) == 32
    assert reach_power(record) == pytest.approx(0.75)


def test_measurements_are_made_again_when_their_settings_change(tmp_path):
    path = tmp_path / "some.json"
    assert not is_measured(path, {"a": [1]})
    write_json(path, {"settings": {"a": [1]}})
    assert is_measured(path, {"a": [1]})
    assert not is_measured(path, {"a": [2]})


def rows(seconds, tokens=(256, 1024, 4096)):
    return [{"tokens": n, "seconds": s} for n, s in zip(tokens, seconds, strict=True)]


def test_exponents_are_slopes_on_logarithmic_axes():
    assert kernel.exponent(rows([256.0**2, 1024.0**2, 4096.0**2]), "seconds") == pytest.approx(2)
    assert kernel.exponent(rows([16.0, 32.0, None]), "seconds") == pytest.approx(0.5)
    assert kernel.exponent(rows([16.0, None, None]), "seconds") is None


def test_the_crossover_is_where_the_curves_meet():
    quadratic = rows([n * n for n in (256, 1024, 4096)])
    linear = rows([2000.0 * n for n in (256, 1024, 4096)])
    assert kernel.crossover(linear, quadratic) == pytest.approx(2000)
    assert kernel.crossover(quadratic, linear) is None
    assert kernel.crossover(rows([1.0, 1.0, 1.0]), quadratic) == 0.0


def test_attention_is_extrapolated_by_its_two_terms():
    exact = [3.0 * n + 0.5 * n * n for n in (256, 1024)]
    assert kernel.extrapolated(rows([*exact, None]), 4096) == pytest.approx(3.0 * 4096 + 0.5 * 4096**2)
