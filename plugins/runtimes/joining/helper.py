"""The program of the joining process: it forks a child for each exec, in the container's PID namespace, and reaps it.

``joining_process`` in the daemon starts it, and talks to it in packets over a socket, descriptor 0: a request is a
number and how long it may take in seconds (0: no limit), with six descriptors: the request's description (a file in
memory, by marshal: both are the same Python) and those of ``child``. Back come the number and the child's process id,
then the number, and the child's wait status. It ends when the socket is closed: at once where no child of its own is
left. Should the daemon be killed, a child ends by its timeout at the latest.
"""

import _socket
import array
import gc
import marshal
import os
import select
import time

from crinoid.plugins.runtimes.joining import child

CHANNEL_FD = 0
STARTED, ENDED = b"started", b"ended"
_PACKET_BYTES = 1 << 10
_SIGKILL = 9
_LATER_S = 5  # the daemon ends what is overdue, with all that came from it; this is for when there is none
_CLONE_NEWPID = 0x20000000


def main() -> None:
    """Serve until the socket is closed."""
    while os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) < child.FDS + 1:
        pass  # what comes over the socket must not have the numbers that a child wants
    os.chdir("/")
    gc.disable()
    gc.freeze()
    Helper().serve()


class Helper:
    """The loop: requests come in, children end."""

    def __init__(self) -> None:
        self._channel = _socket.socket(fileno=CHANNEL_FD)
        self._poll = select.poll()
        self._children: dict[int, tuple[int, bytes, float]] = {}
        self._is_open = True
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def serve(self) -> None:
        """Serve until the socket is closed and no child is left."""
        self._poll.register(CHANNEL_FD, select.POLLIN)
        while self._is_open or self._children:
            for fd, _ in self._poll.poll(self._patience_ms()):
                if fd == CHANNEL_FD:
                    self._receive()
                else:
                    self._reap(fd)
            self._end_overdue()

    def _patience_ms(self) -> float | None:
        if self._is_open:
            return None  # the daemon looks after its own
        first = min((until for _, _, until in self._children.values()), default=0.0)
        return max(0.0, first - time.monotonic()) * 1000 if first != float("inf") else None

    def _receive(self) -> None:
        fds = array.array("i")
        room = _socket.CMSG_SPACE((child.FDS + 1) * fds.itemsize)
        packet, ancillary, _, _ = self._channel.recvmsg(_PACKET_BYTES, room, _socket.MSG_CMSG_CLOEXEC)
        for _, _, content in ancillary:
            fds.frombytes(content)
        if not packet:
            self._is_open = False
            self._poll.unregister(CHANNEL_FD)
            return
        number, timeout_s = packet.split()
        try:
            self._start(number, float(timeout_s), *fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _start(self, number: bytes, timeout_s: float, description: int, *fds: int) -> None:
        request = marshal.loads(os.pread(description, os.fstat(description).st_size, 0))  # noqa: S302  # the daemon's
        try:
            pid = self._fork(request, list(fds))
        except OSError as error:
            os.write(fds[child.FAILURE], child.CANT_JOIN + b"\0" + str(error).encode())
            self._tell(number, STARTED, 0)
            self._tell(number, ENDED, 0)
            return
        watched = os.pidfd_open(pid)
        until = time.monotonic() + timeout_s + _LATER_S if timeout_s else float("inf")
        self._children[watched] = (pid, number, until)
        self._poll.register(watched, select.POLLIN)
        self._tell(number, STARTED, pid)

    def _fork(self, request: dict, fds: list[int]) -> int:  # type: ignore[type-arg]  # what marshal made of it
        """Fork into the container's PID namespace: a process is in one from its birth (setns(2), CLONE_NEWPID)."""
        if request["joins_pids"]:
            child.set_namespaces(fds[child.PIDFD], _CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                child.become(request, fds)  # which never returns
            return pid
        finally:
            if request["joins_pids"]:
                child.set_namespaces(self._own_pids, _CLONE_NEWPID)

    def _reap(self, watched: int) -> None:
        pid, number, _ = self._children.pop(watched)
        self._poll.unregister(watched)
        os.close(watched)
        _, status = os.waitpid(pid, 0)
        self._tell(number, ENDED, status)

    def _end_overdue(self) -> None:
        if not self._is_open:
            now = time.monotonic()
            for watched, (pid, number, until) in self._children.items():  # none is reaped yet, so the ids are theirs
                if until <= now:
                    os.kill(pid, _SIGKILL)
                    self._children[watched] = (pid, number, float("inf"))

    def _tell(self, number: bytes, what: bytes, value: int) -> None:
        if self._is_open:
            try:
                self._channel.send(b"%b %b %d" % (number, what, value))
            except OSError:
                return  # the daemon has gone, and the end of the socket is going to tell
