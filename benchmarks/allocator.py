"""An allocator that keeps its pages, for a benchmark: it starts the process anew, so call it before importing torch."""

import os
import sys

SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def keep_pages() -> None:
    """Run this command again with `SETTINGS` unless it has them.

    Pages that the allocator returns to the system come back untouched, and touching them costs more than a pass.
    """
    if any(os.environ.get(key) != value for key, value in SETTINGS.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})
