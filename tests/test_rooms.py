"""The layout: imports that run downwards, names that stand once, files that can be read at one sitting."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "gspn_dit").rglob("*.py"))
SOURCES = [*PACKAGE, *ROOT.glob("*.py"), *(ROOT / "ops").glob("*.py"), *(ROOT / "experiments").glob("*.py")]
ROOMS = {path.name for path in (ROOT / "gspn_dit").iterdir() if (path / "__init__.py").exists()}


def test_imports_keep_the_contracts():
    """The contracts of pyproject.toml: rooms in layers, no circle, networks without checkpoints."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def unexplained_imports(source: str) -> list[int]:
    """Lines of imports inside functions without a comment on the line, or above their block."""
    lines = source.splitlines()
    inner = {
        node.lineno
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    wrong = []
    for number in sorted(inner):
        above = number - 1
        while above and (above in inner or not lines[above - 1].strip()):  # up to the top of its block
            above -= 1
        if "#" not in lines[number - 1] and not lines[above - 1].lstrip().startswith("#"):
            wrong.append(number)
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_import_inside_a_function_says_why(path):
    assert unexplained_imports(path.read_text(encoding="utf-8")) == []


def test_an_import_without_a_reason_is_found():
    good = "def f():\n    # Speed: slow.\n    import a\n\n    import b\n"
    assert unexplained_imports(good) == []
    assert unexplained_imports("def f():\n    import a\n") == [2]
    assert unexplained_imports("def f():\n    '''Doc.'''\n    import a\n\n    import b  # here\n") == [3]


def test_no_two_modules_of_one_name():
    names = Counter(path.stem for path in PACKAGE if path.stem not in ("__init__", "__main__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_files_are_short_and_the_top_is_small():
    long = [path.name for path in SOURCES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert long == []
    assert len(list((ROOT / "gspn_dit").glob("*.py"))) <= 12


def test_tests_mirror_the_rooms():
    assert {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} >= ROOMS


def test_every_room_is_a_line_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    places = text[text.index("## Where things are") :]
    assert [room for room in sorted(ROOMS) if f"`gspn_dit/{room}/`" not in places] == []


def test_every_package_is_installed_by_pip():
    """setuptools is told the packages by name: a new room must be among them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert [room for room in sorted(ROOMS) if f'"gspn_dit.{room}"' not in text] == []
