"""Compiles the guest's agent into the wheel, which is for one platform then; without a compiler, the node does it."""

import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

COMPILER = shutil.which("cc") or shutil.which("gcc")
COMMAND = ["-std=gnu11", "-Os", "-Wall", "-static", "-s"]  # as crinoid_microvm/boot.py has it


class BuildWithAgent(build_py):
    """As always, and the agent beside the modules."""

    def run(self) -> None:
        """Build; an editable installation has its agent compiled at its first use."""
        super().run()
        if COMPILER is not None and not self.editable_mode:
            target = Path(self.build_lib) / "crinoid_microvm"
            subprocess.run(
                [COMPILER, *COMMAND, "-o", str(target / "agent"), str(target / "agent.c"), "-lpthread"], check=True
            )


class AnyPython(bdist_wheel):
    """The program is for a platform, and for no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Name what the wheel is for."""
        *_, platform = super().get_tag()
        return "py3", "none", platform


class WithAgent(Distribution):
    """One whose wheel holds a program."""

    def has_ext_modules(self) -> bool:
        """Whether the wheel is for this platform only."""
        return COMPILER is not None


setup(cmdclass={"build_py": BuildWithAgent, "bdist_wheel": AnyPython}, distclass=WithAgent)
