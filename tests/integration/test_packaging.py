"""What ``pip install .`` installs: a wheel with every package and no test, which works from any directory."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from crinoid.core.slots.roles import ROLES
from support.patience import patient

REPOSITORY = Path(__file__).parents[2]
PARTS = ("core", "plugins", "src", "packaging", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built as from a checkout, without fetching a build tool."""
    copy, built = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    copy_sources(copy)
    if shutil.which("git") is not None:  # what git lists, setuptools-scm hands to setuptools
        (copy / ".gitignore").write_text("_version.py\n*.egg-info/\nbuild/\n")
        for arguments in (
            ["init", "-q"],
            ["add", "."],
            ["commit", "-qm", "all"],
            ["tag", "-am", "a release", "v0.1.0"],
        ):
            command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
            subprocess.run(command, cwd=copy, check=True, capture_output=True)
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True, timeout=patient(100))
    (found,) = built.glob("*.whl")
    return found


def copy_sources(copy: Path) -> None:
    for name in PARTS:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=IGNORED)
        else:
            shutil.copy(REPOSITORY / name, copy / name)


@pytest.fixture(scope="module")
def crinoid(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of a new environment with the wheel, and our own's packages beneath it."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, symlinks=True, with_pip=False)
    packages = next((directory / "lib").glob("python*/site-packages"))
    (packages / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")  # without its own .pth files
    install = ["--python", str(directory / "bin/python"), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=patient(100))
    return directory / "bin/crinoid"


def run(program: Path, *arguments: str, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CRINOID_CONFIG")}
    done = subprocess.run(
        [program, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=patient(60)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_module_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name and ".data/" not in name}
    expected = {"crinoid/__init__.py", "crinoid/__main__.py", "crinoid/_version.py", "crinoid/py.typed"}
    for top in ("core", "plugins"):
        files = [path for path in (REPOSITORY / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        expected |= {f"crinoid/{path.relative_to(REPOSITORY)}" for path in files}
    assert names == expected


def test_the_wheel_brings_unit_and_documents(wheel: Path) -> None:
    """They are installed below the environment's prefix, where docs/install.md says they are."""
    marker = ".data/data/share/"
    shared = {name.partition(marker)[2] for name in zipfile.ZipFile(wheel).namelist() if marker in name}
    documents = {f"doc/crinoid/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")}
    brought = {f"crinoid/{name}" for name in ("crinoid.service", "10-crinoid.conflist")}
    assert shared == documents | brought | {"doc/crinoid/README.md", "doc/crinoid/CHANGELOG.md"}


def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


@pytest.mark.skipif(shutil.which("git") is None, reason="git, whose commits name versions, is not on this machine")
def test_a_version_names_the_commit_since_the_last_tag(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    (tmp_path / "src/crinoid/_version.py").unlink()
    (tmp_path / ".gitignore").write_text("_version.py\n*.egg-info/\n")

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    def version() -> str:
        return subprocess.run(
            [sys.executable, "-m", "setuptools_scm"], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "-am", "a release", "v3.2.0")
    assert version() == "3.2.0"
    git("commit", "-qm", "second", "--allow-empty")
    assert version() == f"3.2.1.dev1+g{git('rev-parse', 'HEAD')[:9]}"


def test_it_runs_from_any_directory(crinoid: Path, tmp_path: Path) -> None:
    assert run(crinoid, "--version", cwd=tmp_path) == "crinoid, version 0.1.0\n"
    config = tmp_path / "config.toml"
    config.write_text('[runtimes.fast]\ndriver = "runc"\n')
    assert "the configuration is valid" in run(crinoid, "config", "check", "--config", str(config), cwd=tmp_path)
    where = run(crinoid.with_name("python"), "-c", "import crinoid.core; print(crinoid.core.__file__)", cwd=tmp_path)
    assert where.startswith(str(crinoid.parents[1]))


COMPILES_NOTHING = """
from importlib.machinery import SourceFileLoader
def refuse(loader, data, path, **options):
    raise AssertionError(f"{path} is compiled at each start")
SourceFileLoader.source_to_code = refuse
import crinoid.core.daemon.serve, crinoid.plugins.runtimes.runc, crinoid.plugins.networks.bridge
"""


def test_the_daemon_starts_from_bytecode(crinoid: Path, tmp_path: Path) -> None:
    run(crinoid.with_name("python"), "-B", "-c", COMPILES_NOTHING, cwd=tmp_path)


def test_a_source_tree_can_be_compiled_once_for_all_starts(tmp_path: Path) -> None:
    for name in ("core", "plugins", "src", "tools"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, symlinks=True, ignore=IGNORED)
    python = Path(sys.executable)
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'src')!r}){COMPILES_NOTHING}"
    with pytest.raises(AssertionError, match="is compiled at each start"):
        run(python, "-B", "-c", program, cwd=tmp_path)
    run(python, str(tmp_path / "tools/compile_bytecode.py"), cwd=tmp_path)
    run(python, "-B", "-c", program, cwd=tmp_path)


def test_its_plugins_are_found_by_their_entry_points(crinoid: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("")
    listed = json.loads(run(crinoid, "plugins", "--config", str(config), "--output", "json", cwd=tmp_path))
    groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    offered = {(role.name, name) for role in ROLES.values() for name in groups.get(role.group, {})}
    assert {(each["role"], each["name"]) for each in listed if each["distribution"] == "crinoid"} == offered
    assert ("runtime", "runc") in offered
    assert {each["state"] for each in listed} <= {"selected", "available"}
