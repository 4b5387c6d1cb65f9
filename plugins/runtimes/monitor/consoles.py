"""A terminal's way from the runtime's binary to us: it connects to a socket and sends the master's descriptor.

See "Terminals" in runc's documentation; crun does the same.
"""

import contextlib
import fcntl
import os
import socket
import struct
import tempfile
import termios
from pathlib import Path

from crinoid.core.api.errors import DriverError
from crinoid.core.api.values.runtime import TerminalSize

_MAX_PATH_BYTES = 107  # of a unix socket, unix(7)


class ConsoleSocket(contextlib.AbstractContextManager["ConsoleSocket"]):
    """The socket, for the time that it takes; in ``directory`` if that leaves its path short enough, else in /tmp."""

    def __init__(self, directory: Path) -> None:
        with contextlib.ExitStack() as stack:
            if len(os.fsencode(directory)) + len("/console") > _MAX_PATH_BYTES:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crinoid-", dir="/tmp")))
            self.path = directory / "console"
            self._socket = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
            self._socket.bind(str(self.path))
            self._socket.listen(1)
            self._socket.setblocking(False)
            self._stack = stack.pop_all()

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def receive(self) -> int:
        """Return the terminal, once the binary has ended well: it has sent it before. Raises DriverError."""
        try:
            connection, _ = self._socket.accept()
            with connection:
                connection.setblocking(False)
                _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        except BlockingIOError:
            fds = []
        if not fds:
            raise DriverError("the runtime started a process with a terminal, but did not send the terminal")
        os.set_inheritable(fds[0], False)
        return fds[0]


def set_size(terminal: int, size: TerminalSize) -> None:
    """Set the size of a terminal; its foreground processes get SIGWINCH."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.height, size.width, 0, 0))
