"""sample.py whose shards hold the latents in float32; each process also writes the noise that it drew."""

import numpy as np
from accelerate import PartialState

import sample
from gspn_dit import errors
from gspn_dit.sampling import generation, request
from gspn_dit.sampling.sample_file import SampleFile

drawn: dict[str, np.ndarray] = {}
keyed_noise = generation.keyed_noise


class Latents:
    """A decoder that shows the latents themselves."""

    identity = "latents"
    factor = 1
    channels = 1

    def decode(self, z):
        return z


def recorded_noise(seed, numbers, shape):
    source = keyed_noise(seed, numbers, shape)

    def draw(step):
        values = source(step)
        drawn.update(
            {
                f"{number}-{step}": value.numpy()
                for number, value in zip(numbers.tolist(), values, strict=True)
            }
        )
        return values

    return draw


def keep_shards(file: SampleFile) -> None:
    """In place of the join, which would make bytes of the latents."""


def main() -> int:
    """As sample.py; the noise goes to noise-RANK.npz beside the shards."""
    status = sample.main()
    arguments = sample.parse_arguments(None)
    np.savez(f"{arguments.npz}.parts/noise-{PartialState().process_index}.npz", **drawn)
    return status


if __name__ == "__main__":
    request.create_autoencoder = lambda name, device: Latents()
    generation.keyed_noise = recorded_noise
    SampleFile.merge = keep_shards
    errors.run(main)
