"""The order of training and each image's draws: keyed by its number, however the work is split."""

import threading

import numpy as np
import pytest
import torch

from gspn_dit.data.batches import Batches, normal, other_numbers, uniform
from gspn_dit.data.order import EpochOrder


class Numbers:
    """A data set whose image i is the number i."""

    num_classes, channels, size, autoencoder = 5, 1, 2, None

    def __len__(self) -> int:
        return 12

    def draw(self, indices, image_numbers, seed):
        x = torch.from_numpy(indices).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
        return x, torch.from_numpy(indices % 5)


def batches(**changes) -> Batches:
    settings = {
        "batch_size": 8,
        "micro_batch": None,
        "class_dropout": 0.5,
        "times": torch.Tensor.float,
        "seed": 3,
    }
    return Batches(Numbers(), **{**settings, **changes})


def step_of(batches: Batches, step: int) -> list[torch.Tensor]:
    """Everything that a process draws in a step, its micro-batches joined."""
    return [
        torch.cat(parts)
        for parts in zip(*(part.tensors().values() for part in batches.step(step)), strict=True)
    ]


def difference(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return noise - x


def test_each_epoch_is_a_permutation():
    order = EpochOrder(12, seed=1)
    epochs = [order.indices(np.arange(12 * epoch, 12 * (epoch + 1))) for epoch in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[0].tolist() != EpochOrder(12, seed=2).indices(np.arange(12)).tolist()


def test_order_does_not_depend_on_what_was_asked_before():
    numbers = np.arange(5, 40)
    at_once = EpochOrder(12, seed=1).indices(numbers)
    order = EpochOrder(12, seed=1)
    order.indices(np.arange(60, 70))
    assert [int(order.indices(np.array([number]))[0]) for number in numbers] == at_once.tolist()


def test_an_epoch_before_two_that_are_kept_can_be_asked_for():
    order = EpochOrder(12, seed=1)
    order.indices(np.arange(60, 84))
    assert order.indices(np.arange(12)).tolist() == EpochOrder(12, seed=1).indices(np.arange(12)).tolist()
    assert len(order.permutations) == 2


@pytest.mark.parametrize("contrast", [None, difference])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one(processes, contrast):
    whole = step_of(batches(contrast=contrast), 5)
    parts = [
        step_of(batches(rank=rank, processes=processes, contrast=contrast), 5) for rank in range(processes)
    ]
    assert len(whole) == (4 if contrast is None else 5)
    for expected, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), expected)


@pytest.mark.parametrize("micro_batch", [1, 2, 8, 100])
def test_micro_batches_draw_the_same(micro_batch):
    cut = batches(micro_batch=micro_batch, contrast=difference)
    assert len(cut.step(2)) == max(1, 8 // micro_batch)
    for expected, found in zip(step_of(batches(contrast=difference), 2), step_of(cut, 2), strict=True):
        assert torch.equal(found, expected)


def test_the_contrast_is_of_another_image_of_the_step():
    drawn = batches(contrast=difference)
    found = [[0] * 8 for _ in range(8)]
    for step in range(50):
        x, _, _, noise, contrast = step_of(drawn, step)
        pairs = difference(x, noise).unsqueeze(0) == contrast.unsqueeze(1)  # (8, 8, 1, 2, 2)
        for place, row in enumerate(pairs.all(dim=4).all(dim=3).all(dim=2).tolist()):
            assert sum(row) == 1 and not row[place]
            found[place][row.index(True)] += 1
    assert min(count for i, row in enumerate(found) for j, count in enumerate(row) if i != j) >= 1


def test_other_images_are_drawn_evenly_and_by_the_seed():
    numbers = np.arange(8 * 2000)
    others = other_numbers(numbers, 8, seed=3)
    assert np.array_equal(others // 8, numbers // 8) and (others != numbers).all()
    counts = np.bincount((others - numbers) % 8, minlength=8)[1:]
    assert abs(counts - 16_000 / 7).max() < 4 * (16_000 * 6 / 49) ** 0.5  # four standard deviations
    assert not np.array_equal(others, other_numbers(numbers, 8, seed=4))
    assert other_numbers(np.array([0, 1, 2, 3]), 2, seed=0).tolist() == [1, 0, 3, 2]


def test_a_copy_of_a_batch_holds_its_contrast():
    for contrast in (None, difference):
        (batch,) = batches(contrast=contrast).step(0)
        copy = batch.to(torch.device("cpu"))
        assert (copy.contrast is None) == (contrast is None)
        assert all(torch.equal(copy.tensors()[name], value) for name, value in batch.tensors().items())


def test_an_image_draws_by_its_number_in_training():
    of_eight = [value[4:] for value in step_of(batches(), 1)]
    of_four = step_of(batches(batch_size=4), 3)
    for expected, found in zip(of_eight, of_four, strict=True):
        assert torch.equal(found, expected)
    assert not torch.equal(of_four[3], step_of(batches(batch_size=4), 2)[3])


def test_steps_come_in_order_from_the_thread():
    stream = list(batches()(3, 6))
    assert len(stream) == 3
    for step, found in zip(range(3, 6), stream, strict=True):
        assert torch.equal(found[0].noise, batches().step(step)[0].noise)


def test_what_is_drawn_ahead_stays_in_its_thread(monkeypatch):
    """Else OpenMP makes a second team of threads, and slows the training's down."""
    found = []

    def draw(self, indices, image_numbers, seed, real=Numbers.draw):
        found.append((threading.current_thread().name, torch.get_num_threads()))
        return real(self, indices, image_numbers, seed)

    monkeypatch.setattr(Numbers, "draw", draw)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in batches()(0, 3):
            found.append((None, torch.get_num_threads()))
    finally:
        torch.set_num_threads(before)
    assert set(found) == {("batches_0", 1), (None, 2)}


def test_batch_must_split_among_processes():
    with pytest.raises(ValueError, match="batch_size"):
        batches(processes=3)


def test_draws_have_their_distributions():
    numbers = np.arange(20_000)
    u = uniform(0, 7, numbers)
    assert u.dtype == torch.float64
    assert u.min() >= 0 and u.max() < 1
    # Four standard deviations: of the mean 0.289 / sqrt(20,000), of the variance 0.075 / sqrt(20,000).
    assert abs(u.mean() - 0.5) < 0.0082
    assert abs(u.var() - 1 / 12) < 0.0022
    noise = normal(1, 7, numbers[:2000], (1, 4, 4))
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert not torch.equal(uniform(0, 8, numbers), u)


def test_dropped_classes_become_the_null_label():
    labels = torch.cat([step_of(batches(), step)[1] for step in range(200)])
    share = (labels == 5).float().mean()
    assert abs(share - 0.5) < 0.06  # four standard deviations of 1,600 draws are 0.05
    assert not (torch.cat([step_of(batches(class_dropout=0.0), step)[1] for step in range(20)]) == 5).any()
