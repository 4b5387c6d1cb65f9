"""The example plugin as a stranger's: installed by pip into a throw-away environment, found and tested there."""

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from support.patience import patient

EXAMPLE = Path(__file__).parents[2] / "examples" / "crinoid-network-ptp"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example: building a distribution leaves files in its directory."""
    copy = tmp_path_factory.mktemp("example") / EXAMPLE.name
    shutil.copytree(EXAMPLE, copy)
    return copy


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, example: Path) -> Path:
    """The interpreter of a new environment that sees what is installed in ours, and the example on top of it."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, symlinks=True, with_pip=False)
    interpreter = directory / "bin" / "python"
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    packages = next((directory / "lib").glob("python*/site-packages"))
    (packages / "base.pth").write_text("".join(lines))
    # Without its dependencies and without fetching a build tool: no network is needed.
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", str(example)]
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter)]
    subprocess.run([*pip, *install], check=True, timeout=patient(100))
    return interpreter


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command, limit_s = [str(python), *arguments], patient(100)
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=limit_s)


def configure(directory: Path, options: str) -> str:
    file = directory / "config.toml"
    file.write_text(f'[network]\ndriver = "ptp"\noptions = {{ {options} }}\n')
    return str(file)


def test_it_is_not_installed_here() -> None:
    """Else the tests below would show nothing."""
    assert not any((Path(path) / "crinoid_network_ptp.py").exists() for path in site.getsitepackages())


def test_it_is_found_by_its_entry_point_and_selected_by_name(python: Path, tmp_path: Path) -> None:
    file = configure(tmp_path, 'subnet = "10.89.3.0/24"')
    listed = run(python, "-m", "crinoid", "plugins", "--config", file, "--output", "json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    (found,) = [entry for entry in json.loads(listed.stdout) if entry["name"] == "ptp"]
    assert found["role"] == "network"
    assert found["distribution"] == "crinoid-network-ptp"
    assert found["slots"] == ["default"]


def test_its_options_are_checked_like_our_own(python: Path, tmp_path: Path) -> None:
    good = run(python, "-m", "crinoid", "config", "check", "--config", configure(tmp_path, ""), cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    file = configure(tmp_path, 'subnett = "10.89.3.0/24"')
    bad = run(python, "-m", "crinoid", "config", "check", "--config", file, cwd=tmp_path)
    assert bad.returncode != 0
    assert 'did you mean "subnet"?' in bad.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root")
def test_its_own_tests_pass(python: Path, example: Path) -> None:
    """They apply the published contract."""
    tested = run(python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests", cwd=example)
    assert tested.returncode == 0, tested.stdout
    assert " passed" in tested.stdout
    skipped = [line for line in tested.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all("this driver has no" in line for line in skipped), skipped
