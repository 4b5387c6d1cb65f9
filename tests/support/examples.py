"""The distributions of ``examples/`` for a daemon of a test's own, as if they were installed in its environment."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2] / "examples"


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
