"""What untrained parts of a block know of absolute position: see `probe.probe_untrained`."""

from pathlib import Path

from experiments.plan import SCALES
from experiments.probe import probe_untrained
from experiments.train_run import environment, write_json


def run(scale: str, path: Path) -> None:
    """Probe, unless the result is there; seconds."""
    if path.exists():
        return
    width = SCALES[scale].width
    rows = probe_untrained(SCALES[scale].probe_images, width=width)
    write_json(
        path,
        {"settings": {"images": SCALES[scale].probe_images, "width": width}, "rows": rows, **environment()},
    )
