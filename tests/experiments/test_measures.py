"""What the experiments measure without training, against values known beforehand."""

import pytest
import torch

from experiments import kernel, propagation, throughput
from experiments.probe import fit_position, middle_tokens, noised, probe_model, probe_untrained
from gspn_dit.models import create_model

SETTINGS = {"positions": 41, "lines": [4, 16], "seeds": [0]}


def last_row(normalization, spread=0.0, row_sum=1.0):
    weights = propagation.line_weights(normalization, spread, row_sum, 0, SETTINGS)
    return propagation.follow(weights, SETTINGS["lines"])[-1]


def test_even_weights_spread_as_the_theory_says():
    row = last_row("row_stochastic")
    assert row["impulse_std"] == pytest.approx((2 * 16 / 3) ** 0.5, rel=1e-6)
    assert row["max_norm"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("row_sum", [0.8, 1.2])
def test_row_sums_are_the_growth(row_sum):
    row = last_row("none", 1.0, row_sum)
    assert row["max_norm"] == pytest.approx(row_sum**16)
    assert row["gradient"] == pytest.approx(row_sum**16)


def test_row_stochastic_bounds_hold_and_the_spectral_norm_passes_one():
    row = last_row("row_stochastic", 4.0)
    assert row["max_norm"] <= 1 + 1e-12
    assert row["gradient"] <= 1 + 1e-12
    assert row["spectral_norm"] > 1.01


def test_the_product_is_that_of_the_matrices():
    weights = propagation.line_weights("row_stochastic", 2.0, 1.0, 0, SETTINGS)
    product = torch.eye(41, dtype=torch.float64)
    for line in weights[:4]:
        matrix = torch.zeros(41, 41, dtype=torch.float64)
        for n in range(41):
            for d in (-1, 0, 1):
                if 0 <= n + d < 41:
                    matrix[n, n + d] = line[n, d + 1]
        product = matrix @ product
    row = propagation.follow(weights, [4])[0]
    assert row["max_norm"] == pytest.approx(float(product.sum(1).max()))
    assert row["one_norm"] == pytest.approx(float(product.sum(0).max()))
    assert row["spectral_norm"] == pytest.approx(float(torch.linalg.svdvals(product)[0]))


def test_a_probe_finds_a_place_that_is_there_and_none_that_is_not():
    noise = torch.randn(80, 6, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    told = noise.clone()
    told[..., 0] = rows
    told[..., 1] = columns
    assert fit_position(told) > 0.99
    assert abs(fit_position(noise)) < 0.02
    told[..., 1] = 0  # the row alone
    assert fit_position(told) == pytest.approx(0.5, abs=0.02)


def test_attention_without_positions_knows_no_place():
    scores = {row["part"]: row for row in probe_untrained(200, width=32, draws=1)}
    assert abs(scores["attention alone"]["squares"]) < 0.005
    assert scores["module, scan left out"]["squares"] > 0.015


def test_the_probe_reads_the_middle_block():
    model = create_model(
        "DiT-S/8", width=32, depth=4, in_channels=1, num_classes=10, learn_sigma=False, position="learned"
    )
    with torch.no_grad():
        model.embed_position.table.normal_(std=10.0)
    x, y = torch.randn(3, 1, 32, 32), torch.zeros(3, dtype=torch.int64)
    tokens = middle_tokens(model, x, 0.5, y, torch.device("cpu"))
    kept = []
    model.blocks[2].register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0].double()))
    with torch.no_grad():
        model(x, torch.full((3,), 0.5), y)
    assert torch.equal(tokens, kept[0])
    assert probe_model(model, "flow", 20)["noise"]["linear"] > 0.9


def test_noise_is_added_as_the_objective_does():
    x0, noise = torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), -1.0)
    assert torch.equal(noised("flow", x0, noise, 1.0)[0], noise)
    assert torch.equal(noised("flow", x0, noise, 0.5)[0], (x0 + noise) / 2)
    x, t = noised("ddpm", x0, noise, 1.0)
    assert t == 999
    torch.testing.assert_close(x, noise, rtol=0, atol=0.05)


def test_memory_counts_the_tensors_of_a_step():
    make = lambda: kernel.scan_step(2, 8)  # noqa: E731
    x, lam, logits = 64 * 2 * 4, 64 * 8 * 4, 64 * 12 * 4
    assert kernel.peak_bytes(make, "forward") == x + lam + logits + lam
    assert kernel.peak_bytes(make, "both") >= 2 * (x + lam + logits + lam)


def test_a_time_is_a_median_with_quartiles_of_three_rounds_at_least():
    calls = []
    slow = {"first": lambda: calls.append("first"), "second": lambda: calls.append("second")}
    times = kernel.take_turns(slow, {"seconds": 0.0, "rounds": 15})
    assert calls == ["first", "second"] * 4  # one round is not counted
    assert [len(values) for values in times.values()] == [3, 3]
    assert len(kernel.take_turns(slow, {"seconds": 1e9, "rounds": 5})["first"]) == 5
    row = kernel.row_of("scan", 32, "forward", [3.0, 1.0, 9.0, 2.0])
    assert (row["tokens"], row["seconds"], row["low"], row["high"], row["rounds"]) == (4, 2.5, 2.0, 3.0, 4)


def test_ratios_are_medians_of_rounds():
    row = throughput.summary([2.0, 4.0, 2.0], [1.0, 1.0, 4.0], images=8)
    assert row["ratio"] == 0.5
    assert row["images_per_second"] == 4.0
