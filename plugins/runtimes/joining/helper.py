"""The program of the joining process: it forks a child for each exec, in the container's PID namespace, and reaps it.

``joining_process`` in the daemon starts it, and talks to it in packets over a socket, descriptor 0: a request is a
number and how long it may take in seconds (0: no limit), with six descriptors: the request's description (a file in
memory, by marshal: both are the same Python) and those of ``child``. Back come the number and the child's process id
(0: there is none), then the number, and the child's wait status. A number with ``KILL`` ends that child. It ends when
the socket is closed: at once where no child of its own is left. Should the daemon be killed, a child ends by its
timeout at the latest. No request, and nothing that a container does, may hold it up or end it: it is everybody's.
"""

import _socket
import array
import gc
import marshal
import os
import select
import signal
import sys
import time

from crinoid.plugins.runtimes.joining import child

CHANNEL_FD = 0
STARTED, ENDED, KILL = b"started", b"ended", b"kill"
_PACKET_BYTES = 1 << 10
_LATER_S = 5  # the daemon ends what is overdue, with all that came from it; this is for when there is none
_CLONE_NEWPID = 0x20000000
_LOOK_MS = 1000.0  # how often those are looked at whose end nothing tells of
_MOST_MS = 1e9  # days; poll(2) takes a C int


def main() -> None:
    """Serve until the socket is closed."""
    while os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) < child.FDS + 1:
        pass  # what comes over the socket must not have the numbers that a child wants
    os.chdir("/")
    child.hide()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a child ends by it, and does not raise KeyboardInterrupt somewhere
    sys.meta_path.clear()  # what is imported in a container's root would be the container's
    gc.disable()
    gc.freeze()
    Helper().serve()


class Helper:
    """The loop: requests come in, children end."""

    def __init__(self) -> None:
        self._channel = _socket.socket(fileno=CHANNEL_FD)
        self._poll = select.poll()
        self._children: dict[int, tuple[int, bytes, float]] = {}
        self._unwatched: dict[int, bytes] = {}
        self._is_open = True
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def serve(self) -> None:
        """Serve until the socket is closed and no child is left."""
        self._poll.register(CHANNEL_FD, select.POLLIN)
        while self._is_open or self._children or self._unwatched:
            for fd, _ in self._poll.poll(self._patience_ms()):
                if fd == CHANNEL_FD:
                    self._receive()
                else:
                    pid, number, _ = self._children.pop(fd)
                    self._poll.unregister(fd)
                    os.close(fd)
                    self._unwatched[pid] = number
            self._reap()
            self._end_overdue()

    def _patience_ms(self) -> float:
        patience_ms = _LOOK_MS if self._unwatched else _MOST_MS
        if not self._is_open:  # else the daemon looks after its own
            first = min((until for _, _, until in self._children.values()), default=float("inf"))
            patience_ms = min(patience_ms, max(0.0, first - time.monotonic()) * 1000)
        return patience_ms

    def _receive(self) -> None:
        fds = array.array("i")
        room = _socket.CMSG_SPACE((child.FDS + 1) * fds.itemsize)
        try:
            packet, ancillary, _, _ = self._channel.recvmsg(_PACKET_BYTES, room, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # the daemon has gone, and had not read all that it was told
            packet, ancillary = b"", []
        for _, _, content in ancillary:
            fds.frombytes(content)
        if not packet:
            self._is_open = False
            self._poll.unregister(CHANNEL_FD)
            return
        number, what = packet.split()
        try:
            if what == KILL:
                self._kill(number)
            else:
                self._start(number, float(what), list(fds))
        finally:
            for fd in fds:
                os.close(fd)

    def _start(self, number: bytes, timeout_s: float, fds: list[int]) -> None:
        try:
            description, *given = fds
            if len(given) != child.FDS:
                raise OSError("descriptors were lost on the way: too many are open")
            content = os.pread(description, os.fstat(description).st_size, 0)
            pid = self._fork(marshal.loads(content), given)  # noqa: S302  # the daemon's
        except Exception as error:  # noqa: BLE001  # of one request, and others are under way
            _fail(fds, child.CANT_JOIN, error)
            self._tell(number, STARTED, 0)
            self._tell(number, ENDED, 0)
            return
        self._tell(number, STARTED, pid)
        until = time.monotonic() + timeout_s + _LATER_S if timeout_s else float("inf")
        try:
            watched = os.pidfd_open(pid)
        except OSError as error:  # what can't be watched must not run
            _fail(fds, child.REFUSED, error)
            os.kill(pid, signal.SIGKILL)
            self._unwatched[pid] = number
            return
        self._children[watched] = (pid, number, until)
        self._poll.register(watched, select.POLLIN)

    def _kill(self, number: bytes) -> None:
        for pid, its_number, _ in self._children.values():  # none is reaped yet, so the ids are theirs
            if its_number == number:
                os.kill(pid, signal.SIGKILL)

    def _fork(self, request: dict, fds: list[int]) -> int:  # type: ignore[type-arg]  # what marshal made of it
        """Fork into the container's PID namespace: a process is in one from its birth (setns(2), CLONE_NEWPID)."""
        if request["joins_pids"]:
            child.set_namespaces(fds[child.PIDFD], _CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    child.become(request, fds)
                finally:
                    os._exit(255)
            return pid
        finally:
            if request["joins_pids"]:
                child.set_namespaces(self._own_pids, _CLONE_NEWPID)

    def _reap(self) -> None:
        """Reap those that have ended. One that a process of the container traces is that one's to reap first, and its
        pidfd says all the same that it has ended: whoever waited for it would wait for as long as the tracer likes."""
        for pid, number in list(self._unwatched.items()):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                del self._unwatched[pid]
                self._tell(number, ENDED, status)

    def _end_overdue(self) -> None:
        if not self._is_open:
            now = time.monotonic()
            for watched, (pid, number, until) in self._children.items():  # as in _kill, none is reaped yet
                if until <= now:
                    os.kill(pid, signal.SIGKILL)
                    self._children[watched] = (pid, number, float("inf"))

    def _tell(self, number: bytes, what: bytes, value: int) -> None:
        if self._is_open:
            try:
                self._channel.send(b"%b %b %d" % (number, what, value))
            except OSError:
                return  # the daemon has gone, and the end of the socket is going to tell


def _fail(fds: list[int], whose: bytes, error: Exception) -> None:
    """Tell the daemon why, where the descriptor for it has come and somebody reads there."""
    try:
        os.write(fds[1 + child.FAILURE], whose + b"\0" + str(error).encode(errors="replace")[:4000])
    except (OSError, IndexError):
        return
