"""A cgroup that is not crinoid's: made by the test, with a name of its own, and holding one sleeping process."""

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from crinoid.core.api.linux.cgroups import Hierarchies
from crinoid.core.api.linux.procfs import read_lines
from support.daemon import end_cgroups


@contextlib.contextmanager
def foreign_cgroup() -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Yield its path and the process in it; both are gone afterwards."""
    path = f"/crt-foreign-{secrets.token_hex(6)}"
    host = Hierarchies.read(read_lines("/proc/self/mountinfo"))
    process = subprocess.Popen(["sleep", "1000"])
    try:
        for root in host.all:
            directory = Path(root + path)
            directory.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (directory / name).exists() and host.version == 1:
                    (directory / name).write_text((directory.parent / name).read_text())
            (directory / "cgroup.procs").write_text(str(process.pid))
        yield path, process
    finally:
        process.kill()
        process.wait()
        end_cgroups(path)
