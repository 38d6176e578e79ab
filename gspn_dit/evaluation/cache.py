"""Where results that follow from their inputs alone are kept: $GSPN_DIT_CACHE, or ~/.cache/gspn-dit."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from gspn_dit.errors import UserError


def cache_folder() -> Path:
    """The cache folder, made if need be."""
    folder = Path(os.environ.get("GSPN_DIT_CACHE") or Path.home() / ".cache" / "gspn-dit")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the cache {folder} ({error.strerror}): set GSPN_DIT_CACHE to a folder that can be"
        ) from error
    return folder


def content_key(parts: Iterable[bytes]) -> str:
    """SHA-256 over byte strings, each preceded by its length, so that no two lists of parts read alike."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
