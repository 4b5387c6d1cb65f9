"""The distributions of ``examples/`` for a daemon of a test's own: installed by pip as a site would, in an environment
that sees our packages, or one or two of them as if they were."""

import shutil
import site
import subprocess
import sys
import tomllib
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


def declare(directory: Path, *names: str) -> str:
    """Write the metadata that pip would, from each project's ``pyproject.toml``; return the PYTHONPATH of them all."""
    places = [directory]
    for name in names:
        project = tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]
        info = directory / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        lines = []
        for group, points in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        places.append(ROOT / name)
    return ":".join(map(str, places))
