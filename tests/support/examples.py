"""The distributions of ``examples/``, installed by pip as a site would, in an environment that sees our packages."""

import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

from support.patience import patient

ROOT = Path(__file__).parents[2] / "examples"


_BUILD = """\
import os, sys
from setuptools import build_meta
wheels, *projects = sys.argv[1:]
for project in projects:
    os.chdir(project)
    build_meta.build_wheel(wheels)
"""
"""Builds all wheels by the projects' build backend in one process: pip would start two for each."""


def install(directory: Path) -> str:
    """Build and install all of them in a new environment; return its interpreter. pip works offline, and builds go by
    copies, as they leave files; what the projects depend on is what ours has."""
    environment, copies, wheels = (directory / name for name in ("environment", "copies", "wheels"))
    shutil.copytree(ROOT, copies, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    projects = [str(path.parent) for path in sorted(copies.glob("*/pyproject.toml"))]
    build = [sys.executable, "-c", _BUILD, str(wheels), *projects]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL, timeout=patient(200))
    venv.create(environment, symlinks=True, with_pip=False)
    interpreter = environment / "bin" / "python"
    packages = next((environment / "lib").glob("python*/site-packages"))
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (packages / "base.pth").write_text("".join(lines))
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-index", "--no-deps"]
    found = sorted(map(str, wheels.glob("*.whl")))
    assert len(found) == len(projects), found
    subprocess.run([*pip, *found], check=True, timeout=patient(200))
    return str(interpreter)
