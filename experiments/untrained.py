"""What untrained parts of a block know of absolute position: see `probe.probe_untrained`."""

from pathlib import Path

from experiments.plan import SCALES
from experiments.probe import probe_untrained, untrained_parts
from experiments.train_run import environment, is_measured, write_json


def run(scale: str, path: Path) -> None:
    """Probe, unless the result is there; seconds."""
    settings = {"images": SCALES[scale].probe_images, "width": SCALES[scale].width}
    if is_measured(path, settings):
        return
    rows = probe_untrained(settings["images"], width=settings["width"])
    parts = untrained_parts(settings["width"])
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    write_json(path, {"settings": settings, "parameters": parameters, "rows": rows, **environment()})
