"""What ``crinoid plugin new`` writes, as its author finds it: each project is installed, typed, tested and used."""

import base64
import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from crinoid.core.cli.plugin.project import Project
from crinoid.core.slots.roles import ROLES
from support import programs
from support.daemon import Daemon, container_config, pod_config
from support.images import build_image, busybox_layer
from support.patience import patient

NAME = "mine-own"
PROJECTS = {role: Project(role, NAME) for role in ROLES}
ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="containers and network namespaces need root")
pytestmark = pytest.mark.timeout(600)


def run(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(python), *map(str, arguments)]
    return programs.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=patient(300))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the projects are, written by the command."""
    directory = tmp_path_factory.mktemp("projects")
    for role in ROLES:
        made = run(Path(sys.executable), "-m", "crinoid", "plugin", "new", role, NAME, cwd=directory)
        assert made.returncode == 0, made.stderr
    return directory


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, directory: Path) -> Path:
    """The interpreter of an environment that has ours, and all five on top of it; no network is needed."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True, with_pip=False)
    interpreter = environment / "bin" / "python"
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "base.pth").write_text("".join(lines))
    projects = [word for project in PROJECTS.values() for word in ("-e", str(directory / project.distribution))]
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", *projects], check=True, timeout=patient(300))
    return interpreter


def test_a_project_is_never_written_over(directory: Path) -> None:
    again = run(Path(sys.executable), "-m", "crinoid", "plugin", "new", "network", NAME, cwd=directory)
    assert again.returncode == 1
    assert "is there already, and is not empty" in again.stderr


@pytest.mark.parametrize("name", ["Mine", "-x", "a b", "a--b", "../x", ""])
def test_a_name_is_one_that_pip_and_python_take(name: str, tmp_path: Path) -> None:
    refused = run(Path(sys.executable), "-m", "crinoid", "plugin", "new", "network", "--", name, cwd=tmp_path)
    assert refused.returncode == 1
    assert "use lower case letters" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_they_are_typed(directory: Path) -> None:
    """A driver subclasses its hooks, so that mypy holds it to them: a wrong type is an error."""
    packages = [directory / project.distribution / project.module for project in PROJECTS.values()]
    network = packages[list(ROLES).index("network")] / "__init__.py"
    wrong = directory / "wrong" / "wrong_network.py"
    wrong.parent.mkdir()
    plan = "async def plan(self, request: NetworkRequest)"
    assert plan in network.read_text()
    wrong.write_text(network.read_text().replace(plan, "async def plan(self, request: int)"))
    options = ["--strict", "--follow-imports=silent", "--cache-dir", str(ROOT / ".mypy_cache"), "--no-error-summary"]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, packages), str(wrong)],
        cwd=directory / PROJECTS["network"].distribution,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(300),
    )
    errors = [line for line in found.stdout.splitlines() if ": error:" in line]
    assert errors, found.stdout + found.stderr
    assert all(str(wrong.name) in line for line in errors), found.stdout
    assert 'Argument 1 of "plan" is incompatible' in errors[0]


SHORT = {"runtime": ["-k", "not left_in_the_background and not flooded_log"]}
"""What takes long, 13 s in all, and has nothing to do with the one hook that the project has of its own, ``create``:
TestRunc passes it beside this."""


@needs_root
@pytest.mark.parametrize("role", ROLES)
def test_their_own_tests_pass(python: Path, directory: Path, role: str) -> None:
    if role == "runtime" and not shutil.which("runc"):
        pytest.skip("wants runc and conmon")
    command = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *SHORT.get(role, ())]
    tested = run(python, *command, cwd=directory / PROJECTS[role].distribution)
    assert tested.returncode == 0, tested.stdout
    assert " passed" in tested.stdout


@needs_root
def test_they_are_checked_as_the_daemon_would(python: Path, directory: Path) -> None:
    """One of them by its contract, too; the others have just shown that they pass it."""
    for role, project in PROJECTS.items():
        contract = [] if role == "extension" else ["--no-contract"]
        checked = run(python, "-m", "crinoid", "plugin", "check", project.distribution, *contract, cwd=directory)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert (
            f'{role} driver "{NAME}" of distribution {project.distribution} 0.1.0 is fit to be used' in checked.stdout
        )
        assert (" passed" in checked.stdout) == (role == "extension")


@needs_root
def test_what_the_daemon_would_refuse_is_refused(python: Path, directory: Path) -> None:
    check = ("-m", "crinoid", "plugin", "check", PROJECTS["network"].distribution, "--no-contract")
    misspelt = run(python, *check, "--options", '{"subnett": 1}', cwd=directory)
    assert misspelt.returncode == os.EX_CONFIG
    assert 'did you mean "subnet"?' in misspelt.stderr
    absent = run(python, "-m", "crinoid", "plugin", "check", "crinoid-nowhere", cwd=directory)
    assert absent.returncode == os.EX_CONFIG
    assert "no driver of a distribution crinoid-nowhere is installed" in absent.stderr


@needs_root
@pytest.mark.skipif(not shutil.which("runc"), reason="wants runc and conmon")
def test_a_pod_runs_on_all_five(python: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    build_image(images / "site.test/app/1", "site.test/app:1", [busybox_layer()])
    config = f"""
[pods]
default_runtime = "{NAME}"
[runtimes.{NAME}]
driver = "{NAME}"
[network]
driver = "{NAME}"
options = {{ subnet = "10.90.78.0/24" }}
[snapshotter]
driver = "{NAME}"
[registries.{NAME}]
driver = "{NAME}"
options = {{ directory = {json.dumps(str(images))} }}
[images]
sources = ["{NAME}"]
[extensions.{NAME}]
driver = "{NAME}"
options = {{ environment = {{ SITE = "here" }} }}
"""
    daemon = Daemon(tmp_path, config, python=str(python))
    try:
        daemon.start()
        image = daemon.cri.call("PullImage", image={"image": "site.test/app:1"})["image_ref"]
        pod = daemon.cri.call("RunPodSandbox", config=pod_config())["pod_sandbox_id"]
        wanted = container_config("app", image, "sleep", "1000")
        made = daemon.cri.call("CreateContainer", pod_sandbox_id=pod, config=wanted, sandbox_config=pod_config())
        container = made["container_id"]
        daemon.cri.call("StartContainer", container_id=container)
        said = daemon.cri.call("ExecSync", container_id=container, cmd=["cat", "/proc/1/environ"], timeout=30)
        assert {"SITE=here", f"RUNTIME={NAME}"} <= {*base64.b64decode(said["stdout"]).decode().split("\0")}
        address = daemon.cri.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["network"]["ip"]
        assert address.startswith("10.90.78.")
        daemon.cri.call("StopPodSandbox", pod_sandbox_id=pod)
        daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod)
    finally:
        daemon.end()
