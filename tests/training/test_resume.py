"""What a run that continues compares with its checkpoint."""

import dataclasses

import pytest

from gspn_dit.data import describe_dataset
from gspn_dit.errors import UserError
from gspn_dit.latents.dataset import Manifest
from gspn_dit.training.resume import check_same_data

MANIFEST = Manifest(
    autoencoder="vae",
    weights_hash="0",
    scale=1.0,
    shift=0.0,
    image_size=64,
    images=5,
    skipped=0,
    latent_shape=(4, 8, 8),
    class_names=("ant", "bee"),
    images_hash="abc",
    float16_error={},
    complete=True,
)


class Latents(list):
    """As many images, of the same shape and classes, whatever they are of."""

    size, channels, num_classes, class_names = 8, 4, 2, ("ant", "bee")

    def __init__(self, **changes) -> None:
        super().__init__(range(5))
        self.manifest = dataclasses.replace(MANIFEST, **changes)


def test_latents_of_other_images_are_refused(tmp_path):
    before = describe_dataset(Latents())
    check_same_data(tmp_path, before, Latents())
    with pytest.raises(UserError, match=r"the data has images_hash other, but .* was trained with abc"):
        check_same_data(tmp_path, before, Latents(images_hash="other"))


def test_a_checkpoint_from_before_the_hash_was_kept_continues(tmp_path):
    before = describe_dataset(Latents())
    del before["images_hash"]
    check_same_data(tmp_path, before, Latents(images_hash="other"))
