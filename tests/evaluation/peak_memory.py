"""Every score from synthetic features, and the process's peak memory: peak_memory.py SAMPLES REFERENCES."""

import json
import resource
import sys

import torch

from gspn_dit.evaluation.extractors import Features
from gspn_dit.evaluation.features import Collector
from gspn_dit.evaluation.references import Reference
from gspn_dit.evaluation.scores import Options, Stages, compute
from gspn_dit.random import generator


def collect(count: int, seed: int):
    """Statistics of random features of Inception's widths, batch by batch as they are extracted."""
    collector = Collector(count, None)
    for start in range(0, count, 500):
        size, rng = min(500, count - start), generator(seed, start)
        widths = (2048, 2023, 1008)
        collector.add(Features(*(torch.rand(size, width, generator=rng) for width in widths)))
    return collector.result()


def main(samples: int, references: int) -> None:
    real = collect(references, 1)
    reference = Reference(
        name="synthetic",
        kind="images",
        network=None,
        size=None,
        count=references,
        pool=real.pool,
        spatial=real.spatial,
        features=real.features,
    )
    stages = Stages(print)
    with stages("moments"):
        statistics = collect(samples, 0)
    del real
    scores = compute(statistics, reference, Options(), "cpu", stages)
    assert scores["notes"] == [], scores["notes"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"peak_gib": round(peak, 2), "seconds": stages.seconds}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
