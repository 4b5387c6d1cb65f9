"""A program on a terminal of its own, as a person has it before them."""

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from support import programs
from support.patience import patient

WAIT_S = patient(15)


@dataclass
class Terminal:
    """The keyboard and the screen; ``screen`` is all that was ever shown."""

    descriptor: int
    process: subprocess.Popen[bytes]
    slave: int
    screen: bytes = b""

    def type(self, keys: bytes) -> None:
        """Type keys."""
        os.write(self.descriptor, keys)

    def see(self, wanted: bytes) -> None:
        """Wait until something new is shown."""
        self.look(lambda: wanted in self.screen, f"{wanted!r}")
        self.screen = self.screen.partition(wanted)[2]

    def resize(self, width: int, height: int) -> None:
        """Change the size of the window."""
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    @property
    def is_raw(self) -> bool:
        """Whether keys are handed on as they are typed."""
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        self.look(lambda: self.process.poll() is not None, "the end")
        return self.process.wait()

    def look(self, done: Callable[[], bool], what: str) -> None:
        """Read the screen until something is so."""
        deadline = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < deadline, f"it did not come to {what}, but {self.screen!r}"
            if select.select([self.descriptor], [], [], 0.02)[0]:
                self.screen += os.read(self.descriptor, 1 << 16)


@contextlib.contextmanager
def on_terminal(command: Sequence[str], width: int = 90, height: int = 30) -> Iterator[Terminal]:
    """Run a program on a new terminal, which controls it."""
    master, slave = pty.openpty()
    process = programs.Popen(["setsid", "--ctty", *command], stdin=slave, stdout=slave, stderr=slave)
    terminal = Terminal(master, process, slave)
    terminal.resize(width, height)
    try:
        yield terminal
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
        os.close(slave)
