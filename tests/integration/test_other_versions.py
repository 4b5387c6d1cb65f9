"""Up to this version and back, over the last commits that changed what is kept of pods, with pods that run meanwhile.

Takes the earlier versions out of git; where the history is not there (a tarball), there is nothing to test.
"""

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from integration.own_nodes import own_node

REPOSITORY = Path(__file__).parents[2]
KEPT = ("core/state", "core/api/values")
COUNT = 6 if os.environ.get("CRINOID_CHAOS") else 1


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, check=True).stdout


def earlier_versions() -> Sequence[str]:
    """The commits just before those that changed what is kept, the latest first."""
    try:
        return [f"{one}~1" for one in git("log", f"-{COUNT}", "--format=%h", "--", *KEPT).decode().split()]
    except (subprocess.CalledProcessError, FileNotFoundError):
        return []


@pytest.mark.parametrize("version", earlier_versions())
def test_pods_run_on_through_an_upgrade_and_a_downgrade(tmp_path: Path, version: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(git("archive", version, "core", "plugins", "src"))) as archive:
        archive.extractall(tmp_path / "earlier", filter="tar")
    # What is made of git's tags when a version is built; those before 0.1.1 don't look for it.
    (tmp_path / "earlier/src/crinoid/_version.py").write_text('__version__ = "earlier"\n')
    with own_node(tmp_path) as node:
        daemon, now = node.daemon, node.daemon.prefix
        earlier = (*now, "env", f"PYTHONPATH={tmp_path / 'earlier' / 'src'}")
        pods = []
        for number, prefix in enumerate((earlier, now, earlier, now)):
            daemon.stop()
            daemon.prefix = prefix
            try:
                daemon.start()
            except AssertionError as error:
                if "ImportError" in str(error) and prefix is earlier:
                    pytest.skip(f"{version} never ran by itself")
                if prefix is now or not re.search("ended with 78:.*(schema|version)", str(error), re.DOTALL):
                    raise
                continue  # an earlier version may refuse the state, and leaves it alone then
            pods.append(node.run_container(node.run_pod(f"pod{number}"), "sleep", "600"))
            for container in pods:
                assert node.status(container)["state"] == "CONTAINER_RUNNING"
                assert node.execute(container, "echo", str(number))[1] == f"{number}\n"
        assert len(pods) >= 3
