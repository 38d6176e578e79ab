"""Random numbers from keys: what an image draws depends on its key alone.

Neither the batch size nor the number of processes nor an interruption changes a draw, because every draw has its
own generator, seeded by (stream, seed, image number, ...).

torch's generator on the CPU takes 32 bits of a seed: among 100 million draws one in a hundred has the numbers of an
earlier one, under another key.
"""

import contextlib
import hashlib
import struct
from collections.abc import Iterator

import torch

# Streams: the first integer of a key, so that two uses of one (seed, image number) stay independent.
TIME, NOISE, DROPOUT, POSTERIOR, ORDER, SAMPLE, LABELS, WEIGHTS, FLIP, VALIDATION, CONTRAST = range(11)
AUGMENT, MIX, PATHS = range(11, 14)


def seed_of(*key: int) -> int:
    """Hash integers to one seed of 63 bits."""
    packed = struct.pack(f"<{len(key)}q", *key)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def generator(*key: int) -> torch.Generator:
    """A CPU generator for this key: the same integers give the same numbers on every machine."""
    return torch.Generator().manual_seed(seed_of(*key))


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within the context torch's own CPU generator gives this key's numbers, for libraries that draw from it.

    It is one for all threads: nothing else may draw meanwhile.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed_of(*key))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
