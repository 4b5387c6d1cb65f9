"""A network namespace for a whole node: its bridges, addresses and firewall rules go with it, no host port is taken.

``held()`` makes one that has nothing but its loopback; commands run in it behind ``prefix``, functions by ``call``.
"""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from crinoid.core.api.linux.namespaces import call_in

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NetworkNamespace:
    """The namespace at ``path``; without one, that of this process."""

    path: Path | None = None

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command that is to run in it."""
        return ("nsenter", f"--net={self.path}") if self.path else ()

    @property
    def inode(self) -> str:
        """Its name as the kernel has it, such as ``net:[4026531840]``."""
        return str((self.path or Path("/proc/self/ns/net")).readlink())

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in it."""
        return call_in(self.path, function) if self.path else function()


@contextlib.contextmanager
def held() -> Iterator[NetworkNamespace]:
    """A namespace that lasts as long as the context."""
    script = "ip link set lo up && echo && exec cat"
    command = ["unshare", "--net", "sh", "-c", script]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n", "the namespace was not made"
        yield NetworkNamespace(Path(f"/proc/{holder.pid}/ns/net"))
    finally:
        holder.kill()
        holder.communicate()
