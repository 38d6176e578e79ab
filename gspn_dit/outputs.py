"""Outputs that are inputs: refused before any work, for to write the one would be to lose the other."""

import os
from collections.abc import Iterable
from pathlib import Path

from gspn_dit.errors import UserError


def refuse_inputs(option: str, output: str | Path, inputs: Iterable[tuple[str, str | Path]]) -> None:
    """Raise `UserError` for an output that is one of the inputs, or would lie in a folder that is one.

    Args:
        option: what names the output on the command line, for the message.
        inputs: (name, path) of each file or folder that is read. Links are followed; a path of which nothing is
            there, such as a hub id, refuses nothing.
    """
    place = Path(os.path.realpath(output))
    for name, path in inputs:
        source = Path(os.path.realpath(path))
        if not source.exists():
            continue
        if place == source or (place.exists() and place.samefile(source)):
            raise UserError(
                f"{option} {output} is {name} itself, which it would overwrite: give another name"
            )
        if source in place.parents:
            raise UserError(f"{option} {output} lies in {name}, {path}: give a place outside of it")
