"""A small NRI plugin: it registers, notes all that it is told, and answers as a test wants it to.

It shares the messages with crinoid, and nothing else: its framing is its own, and as strict as that of the peers'
library, which reads pieces of a message into a buffer of 4,096 bytes and fails when one does not fit. It runs in
threads of its own, each call in one, as plugins in Go do.
"""

import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from crinoid.plugins.extensions.nri.wire import nri_pb2, ttrpc_pb2

SERVED_HERE, SERVED_THERE = 1, 2
BUFFER = 4096
Handler = Callable[[Any], Any]
"""Takes a request, returns an answer, or anything else for an empty one; raises PluginError to refuse."""


class PluginError(Exception):
    """What the plugin answers instead; ``code`` is gRPC's."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class _Reader:
    """Reads a connection's pieces as a buffered reader of the peers' language does."""

    def __init__(self) -> None:
        self.pieces: queue.Queue[bytes] = queue.Queue()
        self._buffer = b""

    def read(self, length: int) -> bytes:
        found = b""
        while len(found) < length:
            if not self._buffer:
                piece = self.pieces.get()
                if not piece:
                    raise EOFError
                room = max(length - len(found), BUFFER)
                assert len(piece) <= room, f"a piece of {len(piece)} bytes does not fit where {room} are expected"
                self._buffer = piece
            taken, self._buffer = self._buffer[: length - len(found)], self._buffer[length - len(found) :]
            found += taken
        return found


@dataclass
class NriPlugin:
    """A plugin. ``calls`` are the methods called and their requests, in the order in which they came."""

    name: str
    index: str = "00"
    handlers: dict[str, Handler] = field(default_factory=dict)
    events: int = 0
    calls: list[tuple[str, Any]] = field(default_factory=list)
    synchronized: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)

    def connect(self, path: Path) -> "NriPlugin":
        """Connect, register and wait until Synchronize has been answered."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        self.attach(connection)
        self.register()
        assert self.synchronized.wait(60), "never synchronized"
        return self

    def attach(self, connection: socket.socket) -> None:
        """Take a connection and begin to serve."""
        self._socket = connection
        self._lock = threading.Lock()
        self._readers = {SERVED_HERE: _Reader(), SERVED_THERE: _Reader()}
        self._answers: dict[int, queue.Queue[Any]] = {}
        self._stream = -1
        for work in (self._read_all, self._serve_all, self._take_answers):
            threading.Thread(target=work, daemon=True).start()

    def register(self) -> None:
        """Register by name and index."""
        request = nri_pb2.RegisterPluginRequest(plugin_name=self.name, plugin_idx=self.index, NRI_version="v0.12.0")
        self.call("RegisterPlugin", request)

    def update_containers(self, *updates: Any, evict: tuple[Any, ...] = ()) -> Any:
        """Change and evict containers by itself; return the answer."""
        data = self.call("UpdateContainers", nri_pb2.UpdateContainersRequest(update=updates, evict=evict))
        return nri_pb2.UpdateContainersResponse.FromString(data)

    def call(self, method: str, request: Any, service: str = "nri.pkg.api.v1alpha1.Runtime") -> bytes:
        """Call the runtime; return the answer's bytes. Raises PluginError for an error."""
        self._stream += 2
        answer = self._answers[self._stream] = queue.Queue()
        message = ttrpc_pb2.Request(service=service, method=method, payload=request.SerializeToString())
        self._send(SERVED_THERE, self._stream, 1, message.SerializeToString())
        response = answer.get(timeout=60)
        if response is None:
            raise EOFError(f"{method}: the runtime has hung up")
        if response.status.code:
            raise PluginError(response.status.message, response.status.code)
        return bytes(response.payload)

    def methods(self, *of: str) -> list[str]:
        """Return the methods called so far; ``of``: only those with one of these ids in pod or container."""
        return [method for method, request in self.calls if not of or _ids(request) & set(of)]

    def requests(self, method: str) -> list[Any]:
        """Return the requests of a method so far."""
        return [request for name, request in self.calls if name == method]

    def send_raw(self, data: bytes) -> None:
        """Send bytes that may be anything."""
        self._socket.sendall(data)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send(self, connection: int, stream: int, kind: int, message: bytes) -> None:
        frame = struct.pack(">IIBB", len(message), stream, kind, 0) + message
        with self._lock:
            for start, end in ((0, BUFFER), (BUFFER, len(frame))):
                if piece := frame[start:end]:
                    self._socket.sendall(struct.pack(">II", connection, len(piece)) + piece)

    def _read_all(self) -> None:
        try:
            while True:
                connection, length = struct.unpack(">II", self._exactly(8))
                self._readers[connection].pieces.put(self._exactly(length))
        except (OSError, EOFError):
            for reader in self._readers.values():
                reader.pieces.put(b"")
            for answer in self._answers.values():
                answer.put(None)
            self.closed.set()

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            if not (piece := self._socket.recv(length - len(data))):
                raise EOFError
            data += piece
        return data

    def _serve_all(self) -> None:
        try:
            while True:
                stream, _kind, data = self._frame(SERVED_HERE)
                request = ttrpc_pb2.Request.FromString(data)
                method = request.method
                message = _request_type(method).FromString(request.payload)
                self.calls.append((method, message))
                threading.Thread(target=self._answer, args=(stream, method, message), daemon=True).start()
        except EOFError:
            pass

    def _take_answers(self) -> None:
        try:
            while True:
                stream, _kind, data = self._frame(SERVED_THERE)
                self._answers.pop(stream).put(ttrpc_pb2.Response.FromString(data))
        except EOFError:
            pass

    def _frame(self, connection: int) -> tuple[int, int, bytes]:
        reader = self._readers[connection]
        length, stream, kind, _flags = struct.unpack(">IIBB", reader.read(10))
        return stream, kind, reader.read(length)

    def _answer(self, stream: int, method: str, message: Any) -> None:
        response = ttrpc_pb2.Response()
        try:
            answer = self.handlers[method](message) if method in self.handlers else self._default(method, message)
            response.payload = answer.SerializeToString() if isinstance(answer, Message) else b""
        except PluginError as error:
            response.status.code, response.status.message = error.code, str(error)
        try:
            self._send(SERVED_HERE, stream, 2, response.SerializeToString())
        except OSError:
            return
        if method == "Synchronize" and not message.more:
            self.synchronized.set()

    def _default(self, method: str, message: Any) -> Any:
        if method == "Configure":
            return nri_pb2.ConfigureResponse(events=self.events)
        if method == "Synchronize":
            return nri_pb2.SynchronizeResponse(more=message.more)
        return None


def subscribe(*events: int) -> int:
    """Return the mask of these events."""
    return sum(1 << (event - 1) for event in events)


def _request_type(method: str) -> Any:
    names = {"Shutdown": "Empty", "StateChange": "StateChangeEvent"}
    return getattr(nri_pb2, names.get(method, f"{method}Request"))


def _ids(request: Any) -> set[str]:
    parts = (getattr(request, name, None) for name in ("pod", "container"))
    return {part.id for part in parts if part is not None}
