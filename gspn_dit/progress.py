"""The progress bar of all that takes long."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**settings: Any) -> tqdm:
    """tqdm's bar on stderr; where no terminal shows it, and each state adds to a log, it is drawn twice a minute."""
    return tqdm(mininterval=0.2 if sys.stderr.isatty() else 30, **settings)
