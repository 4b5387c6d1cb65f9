"""AppArmor: containers confined by profiles that are loaded, on a kernel that has it."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from crinoid.core.api.linux import lsm
from integration.conftest import RUNTIMES, Node
from integration.pods import QUICK, Pod, confined, refused

pytestmark = [
    pytest.mark.skipif(not lsm.has_apparmor(), reason="this kernel has no AppArmor"),
    pytest.mark.skipif(shutil.which("apparmor_parser") is None, reason="there is no apparmor_parser"),
]
PROFILE = "crinoid-test"
TEXT = f"""
profile {PROFILE} flags=(attach_disconnected,mediate_deleted) {{
  file,
  network,
  capability,
  signal,
  deny /denied w,
  deny /tmp/** w,
}}
"""


@pytest.fixture(scope="module")
def profile() -> Iterator[str]:
    """A loaded profile that forbids to write some files."""
    subprocess.run(["apparmor_parser", "--replace", "--skip-cache"], input=TEXT, text=True, check=True)
    yield PROFILE
    subprocess.run(["apparmor_parser", "--remove"], input=TEXT, text=True, check=True)


@pytest.fixture(params=RUNTIMES)
def pod(node: Node, request: pytest.FixtureRequest) -> Pod:
    """A pod of each runtime."""
    return Pod(node, node.run_pod(handler=QUICK[request.param]))


def localhost(name: str) -> dict[str, str]:
    return {"profile_type": "Localhost", "localhost_ref": name}


@pytest.mark.parametrize("form", ["field", "old"])
def test_a_loaded_profile_confines(pod: Pod, profile: str, form: str) -> None:
    security = {"apparmor": localhost(profile)} if form == "field" else {"apparmor_profile": f"localhost/{profile}"}
    script = "cat /proc/self/attr/current; touch /allowed && echo made; touch /denied 2>/dev/null || echo denied"
    assert pod.sh(script, linux=confined(**security)).split() == [profile, "(enforce)", "made", "denied"]


def test_an_exec_is_confined_too(pod: Pod, profile: str) -> None:
    container = pod.start("sleep", "1000", linux=confined(apparmor=localhost(profile)))
    code, out, _ = pod.node.execute(container, "sh", "-c", "cat /proc/self/attr/current; touch /denied 2>/dev/null")
    assert (code, out) == (1, f"{profile} (enforce)\n")


def test_unconfined(pod: Pod, profile: str) -> None:
    for security in ({"apparmor": {"profile_type": "Unconfined"}}, {}):
        assert pod.sh("cat /proc/self/attr/current", linux=confined(**security)) == "unconfined\n"


def test_a_profile_that_is_not_loaded_is_refused(pod: Pod) -> None:
    with refused("FAILED_PRECONDITION", "none-such.*not loaded"):
        pod.create("true", linux=confined(apparmor=localhost("none-such")))
