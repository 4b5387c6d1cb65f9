"""A daemon with failpoints that is started over and over, from a process that has imported everything already."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass

from support.daemon import Daemon
from support.patience import patient


class Forked:
    """A process that is nobody's child here, with as much of ``subprocess.Popen`` as a Daemon uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return None while it lives; its exit code is not known."""
        if self.returncode is None and select.select([self._pidfd], [], [], 0)[0]:
            self._note_end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self._note_end()
        return 0

    def _note_end(self) -> None:
        os.close(self._pidfd)
        self.returncode = 0


@dataclass
class ForkedDaemon(Daemon):
    """As Daemon; its configuration stays as it is at the first start."""

    _template: "subprocess.Popen[str] | None" = None

    def launch(self, *arguments: str, is_forked: bool = True) -> None:
        """Start, and don't wait."""
        assert is_forked
        assert not arguments
        options = self.write_config()
        if self._template is None:
            command = [*self.prefix, sys.executable, "-m", "chaos.failing_daemon", "template", *options]
            environment = {**os.environ, **self.environment}
            self._template = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
            )
        assert self._template.stdin is not None
        assert self._template.stdout is not None
        self._template.stdin.write(f"{self.log}\n")
        self._template.stdin.flush()
        self.process = Forked(int(self._template.stdout.readline()))  # type: ignore[assignment]  # as far as it is used

    def end(self) -> None:
        """As Daemon's, and end the process that it came from."""
        if self._template is not None:
            with contextlib.suppress(ProcessLookupError):
                self._template.send_signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._template.communicate(timeout=patient(10))
        super().end()
