"""The contract of the runtime role, applied to our own drivers with real containers; and what is theirs alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import cgroup_namespace

from crinoid.core.api.host import Host
from crinoid.core.api.testing.runtimes import RuntimeContract
from crinoid.plugins.runtimes.crun import CrunOptions, CrunRuntime
from crinoid.plugins.runtimes.runc import RuncOptions, RuncRuntime

needs_runc = pytest.mark.skipif(not shutil.which("runc"), reason="wants runc and conmon")
needs_crun = pytest.mark.skipif(not shutil.which("crun"), reason="wants crun and conmon")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="running containers needs root")


@needs_runc
class TestRunc(RuntimeContract):
    def make_driver(self, host: Host) -> object:
        return RuncRuntime(RuncOptions(), host)


@needs_crun
class TestCrun(RuntimeContract):
    __test__ = not cgroup_namespace.is_hybrid()  # else test_crun_where_cgroups_are_not_hybrid runs it

    def make_driver(self, host: Host) -> object:
        return CrunRuntime(CrunOptions(), host)


@needs_crun
@needs_root
@pytest.mark.skipif(not cgroup_namespace.is_hybrid(), reason="TestCrun runs as it is")
@pytest.mark.timeout(300)
def test_crun_where_cgroups_are_not_hybrid(tmp_path: Path) -> None:
    """crun refuses cgroup v2 beside v1: its part runs where that can't be seen."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'crun'}"]
    command += [__file__, "-k", "Crun"]
    finished = subprocess.run(
        [*cgroup_namespace.prefix(), *command], capture_output=True, text=True, timeout=280, check=False
    )
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr}"
    assert " passed" in finished.stdout
