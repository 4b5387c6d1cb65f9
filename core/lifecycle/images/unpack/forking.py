"""The program of the forking process: it loads what unpacking needs once, then forks a child for each layer.

``launcher`` in the daemon starts it, and talks to it in packets over a socket, descriptor 0: ``run``, a number and the
child's arguments with the child's descriptors, or ``kill`` and a number; back comes a number and a wait status when
that child has ended. It reads no byte of a layer itself. It ends when the socket is closed, and its children with it.
"""

import _socket
import array
import gc
import os
import select

from crinoid.core.lifecycle.images.unpack import child
from crinoid.core.lifecycle.images.unpack.confinement import die_with_parent
from crinoid.core.lifecycle.images.unpack.decompression import preload

_CHANNEL_FD = 0
_PACKET_BYTES = 1 << 16
_SIGKILL = 9


def main(arguments: list[str]) -> None:
    """Serve until the socket is closed. ``arguments``: the daemon's pid."""
    die_with_parent(int(arguments[0]))
    while os.open("/dev/null", os.O_RDWR) < child.FOREIGN_FDS:
        pass  # what comes over the socket must not have the numbers that the child wants
    preload()
    gc.disable()  # an unpacker makes no cycles, and many small objects
    gc.freeze()
    _Forking().serve()


class _Forking:
    def __init__(self) -> None:
        self._channel = _socket.socket(fileno=_CHANNEL_FD)
        self._poll = select.poll()
        self._children: dict[int, tuple[int, bytes]] = {}

    def serve(self) -> None:
        self._poll.register(_CHANNEL_FD, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == _CHANNEL_FD:
                    self._receive()
                else:
                    self._reap(fd)

    def _receive(self) -> None:
        fds = array.array("i")
        room = _socket.CMSG_SPACE(child.FOREIGN_FDS * fds.itemsize)
        packet, ancillary, _, _ = self._channel.recvmsg(_PACKET_BYTES, room)
        for _, _, content in ancillary:
            fds.frombytes(content)
        if not packet:
            os._exit(0)
        act, number, *arguments = packet.split(b"\0")
        if act == b"run":
            preload_writer(os.fsdecode(arguments[0]))
            self._fork(number, arguments, fds.tolist())
        else:
            self._kill(number)

    def _fork(self, number: bytes, arguments: list[bytes], fds: list[int]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become(fds, [str(parent), *(os.fsdecode(argument) for argument in arguments)])
        for fd in fds:
            os.close(fd)
        watched = os.pidfd_open(pid)
        self._children[watched] = (pid, number)
        self._poll.register(watched, select.POLLIN)

    def _reap(self, watched: int) -> None:
        pid, number = self._children.pop(watched)
        self._poll.unregister(watched)
        os.close(watched)
        _, status = os.waitpid(pid, 0)
        self._channel.send(b"%b %d" % (number, status))

    def _kill(self, wanted: bytes) -> None:
        for pid, number in self._children.values():  # none of them is reaped, so the pids are theirs
            if number == wanted:
                os.kill(pid, _SIGKILL)


def preload_writer(form: str) -> None:
    """Load a driver's writer, where there is one, so that its children have it; each tells what is wrong with it."""
    if form.startswith(child.WRITER):
        try:
            child.load_writer(form)
        except Exception:  # noqa: BLE001  # a stranger's module
            return


def _become(fds: list[int], arguments: list[str]) -> None:
    """Be the child: give its descriptors their numbers, and never return."""
    try:
        for wanted, fd in enumerate(fds):
            os.dup2(fd, wanted, inheritable=False)
        child.main(arguments)
    except BaseException:  # noqa: BLE001  # whatever it is, it must not go back to the loop above
        import sys

        sys.excepthook(*sys.exc_info())  # to descriptor 2, which is the child's own by now
    finally:
        os._exit(1)
