"""~ in paths: home, never a folder of that name."""

import os

from gspn_dit.errors import UserError


def at_home(what: str, path: str) -> str:
    """`path` with a ~ or ~user that begins it replaced by that home.

    Shells do that for a word that begins with ~, and not for run_dir=~/x or a path in a file. Raises `UserError`
    where there is no such home: what begins with ~ would become a folder of that name.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(
            f"{what} {path}: {path.split('/')[0]} is nobody's home here; give the path in full, or as ./{path}"
        )
    return expanded
