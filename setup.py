"""`pip install .`: compiles the scan as `make build` does. The rest is in pyproject.toml.

The build needs torch's headers, so pyproject.toml names torch among its requirements; the stable ABI makes the result
serve every torch from 2.10 on, whichever one the build saw.
"""

import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class BuildScan(build_py):
    """Compile the library into the package."""

    def run(self) -> None:
        super().run()
        out = Path(self.build_lib) / "ops" / "lib"
        if not self.editable_mode:
            subprocess.run([sys.executable, "ops/build.py", "--out", str(out)], check=True)


class PlatformWheel(bdist_wheel):
    """The library is compiled but uses no Python API: one wheel for every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """Has a compiled library that setuptools does not know of."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildScan, "bdist_wheel": PlatformWheel}, distclass=BinaryDistribution)
