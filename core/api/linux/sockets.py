"""Unix sockets at paths that others know: taken only when nobody serves them, given up only when still one's own.

For the CRI's socket and for those of plugins (NRI). A socket is bound beside its place and moved there once it has its
mode and its server listens: no client ever meets it half made.
"""

import contextlib
import fcntl
import logging
import os
import socket
import stat
import time
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.api.linux import rights

LOG = logging.getLogger(__name__)
_MAX_PATH_BYTES = 107  # sun_path of unix(7), less its NUL
_PROBE_TIMEOUT_S = 1.0
_TURN_S = 2.0  # another daemon's turn lasts for milliseconds
_PAUSE_S = 0.01


class SocketPlace:
    """The path of a socket: ``claim``, bind at ``passing``, listen, ``publish``; at the end ``withdraw``.

    From ``claim`` to ``publish`` no other daemon can take the place: without that, two that start at the same time
    would both find it free, and the first would be deaf without knowing. ``release`` ends a claim that came to nothing.
    Everything but ``publish`` and ``withdraw`` may block, for seconds at most.
    """

    def __init__(self, path: Path, directory_mode: int = rights.SHOWN_DIRECTORY) -> None:
        """``directory_mode``: of directories above that have to be made."""
        self.path = path
        self._directory_mode = directory_mode
        self._turn = -1
        self._identity: tuple[int, int] | None = None

    @property
    def passing(self) -> Path:
        """Where to bind the socket."""
        return self.path.with_name(f"{self.path.name}~")

    def check(self, *, taking_over: bool = False) -> None:
        """Raise ConfigurationError when the place is too long, something else's, or served by another daemon."""
        if len(os.fsencode(self.passing)) > _MAX_PATH_BYTES:
            raise ConfigurationError(
                f"the socket's path {self.path} is too long: the kernel takes {_MAX_PATH_BYTES - 1} bytes"
            )
        try:
            mode = self.path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISSOCK(mode):
            raise ConfigurationError(
                f"{self.path} is there and is no socket; remove it or choose another path for the socket"
            )
        if not taking_over and _is_served(self.path):
            raise ConfigurationError(
                f"another daemon serves {self.path}; stop it, or choose another path for the socket"
            )

    def claim(self, *, taking_over: bool = False) -> None:
        """Make sure that the place is ours to take, and keep others from taking it. Raises ConfigurationError.

        ``taking_over``: from a daemon that serves it still, and knows.
        """
        self.check(taking_over=taking_over)
        try:
            rights.make_directories(self.path.parent, self._directory_mode)
            self._turn = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(f"can't make the directory of the socket {self.path}: {error}") from error
        try:
            self._take_turn()
            self.check(taking_over=taking_over)  # again, as another may have published its own
            self.passing.unlink(missing_ok=True)  # of a daemon that was killed before it could publish
        except OSError as error:
            self.release()
            raise ConfigurationError(f"can't take {self.path} for the socket: {error}") from error
        except BaseException:
            self.release()
            raise

    def publish(self, mode: int, gid: int = -1) -> None:
        """Give the socket its group and mode and move it to its place. Raises ConfigurationError."""
        try:
            os.chown(self.passing, -1, gid)
            self.passing.chmod(mode)
            self.passing.rename(self.path)
            self._identity = _identity(self.path)
        except OSError as error:
            raise ConfigurationError(f"can't put the socket at {self.path}: {error}") from error
        finally:
            self.release()

    def release(self) -> None:
        """Let others claim the place. Idempotent."""
        if self._turn >= 0:
            os.close(self._turn)
            self._turn = -1

    def withdraw(self) -> None:
        """Remove the socket if it is still the one that was published here. Idempotent.

        Call it while the socket is open: until then no other can have its inode.
        """
        identity, self._identity = self._identity, None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if identity is not None and _identity(self.path) == identity:
                self.path.unlink()

    def _take_turn(self) -> None:
        """Lock the directory. Any user who may list it can do so, too, and for ever: so it is not waited for long, and
        no reason not to start."""
        deadline = time.monotonic() + _TURN_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_PAUSE_S)
            else:
                return
        LOG.warning("somebody holds a lock on %s: the socket is made without a turn there", self.path.parent)


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its backlog is full, or we may not connect: somebody is there
            return True
        return True
