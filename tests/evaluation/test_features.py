"""Features batch by batch on several processes, in the order of the images."""

import numpy as np
import pytest
import torch

from gspn_dit.errors import UserError
from gspn_dit.evaluation.features import extract
from gspn_dit.evaluation.image_sets import ArrayImages
from tests.evaluation.conftest import Pixels, random_images


class Two:
    """The second of two processes beside this one, whose results wait here: gathers without a launcher."""

    num_processes = 2

    def __init__(self, index, mailbox):
        self.process_index, self.mailbox = index, mailbox
        self.is_main_process = index == 0
        self.device = torch.device("cpu")

    def gather(self, rows):
        if self.process_index == 1:
            self.mailbox.append(rows)
            return rows
        return torch.cat([rows, self.mailbox.pop(0)])


def test_statistics_do_not_depend_on_the_batch_size(accelerator):
    images = ArrayImages(random_images(50, 0), "random")
    one, many = (extract(images, Pixels(), accelerator, batch_size=size) for size in (1, 50))
    np.testing.assert_allclose(one.pool.covariance, many.pool.covariance, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.spatial.mean, many.spatial.mean, rtol=1e-9)
    assert np.array_equal(one.features, many.features) and np.array_equal(one.logits, many.logits)


@pytest.mark.parametrize(("count", "batch_size"), [(50, 8), (33, 8), (8, 8), (3, 8), (17, 1)])
def test_two_processes_gather_by_number(count, batch_size, accelerator):
    images = ArrayImages(random_images(count, 0), "random")
    mailbox: list = []
    assert extract(images, Pixels(), Two(1, mailbox), batch_size=batch_size) is None
    two = extract(images, Pixels(), Two(0, mailbox), batch_size=batch_size)
    one = extract(images, Pixels(), accelerator, batch_size=batch_size)
    assert two.count == count and np.array_equal(two.features, one.features)
    assert np.array_equal(two.logits, one.logits)
    np.testing.assert_allclose(two.spatial.covariance, one.spatial.covariance, rtol=1e-6, atol=1e-12)


def test_features_are_kept_by_number(accelerator, monkeypatch):
    monkeypatch.setattr("gspn_dit.evaluation.features.ROWS", 16)
    images = ArrayImages(random_images(50, 0), "random")
    kept = np.array([0, 6, 7, 31, 49])
    some = extract(images, Pixels(), accelerator, batch_size=7, kept=kept)
    whole = extract(images, Pixels(), accelerator, batch_size=7)
    assert np.array_equal(whole.features, Pixels()(images.array).pool.numpy())
    assert np.array_equal(some.features, whole.features[kept])
    np.testing.assert_allclose(some.pool.covariance, whole.pool.covariance, rtol=1e-12)


@pytest.mark.parametrize("part", ["pool", "spatial", "logits"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_named(part, value, accelerator):
    class Broken(Pixels):
        def __call__(self, images):
            features = super().__call__(images)
            getattr(features, part)[images[:, 0, 0, 0] == 7, 3] = value
            return features

    images = random_images(20, 0)
    images[:, 0, 0, 0] = 0
    images[13, 0, 0, 0] = 7
    with pytest.raises(UserError, match="features of image 13 are not finite"):
        extract(ArrayImages(images, "random"), Broken(), accelerator, batch_size=4)
