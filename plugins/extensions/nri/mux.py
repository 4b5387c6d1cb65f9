"""Several connections over one socket, as NRI multiplexes them: each piece of data comes with its connection's number.

A piece is preceded by eight bytes, big-endian: the number of the connection and the length. ``ttrpc`` speaks over one
:class:`Channel` in each direction. Source: containerd/nri, pkg/net/multiplex.
"""

import asyncio
import itertools
import struct

PLUGIN_SERVICE, RUNTIME_SERVICE = 1, 2
"""The connection on which the plugin serves, and the one on which the runtime does."""

MAX_MESSAGE_BYTES = 4 << 20
"""The largest ttrpc message; peers refuse more."""
_HEADER = struct.Struct(">II")
_TTRPC_HEADER_BYTES = 10
_MAX_PIECE_BYTES = MAX_MESSAGE_BYTES + _TTRPC_HEADER_BYTES
_FIRST_PIECE_BYTES = 4096
"""Peers read the first piece of a message into a buffer of this size, and the rest where it belongs."""
_MAX_UNREAD_BYTES = 4 * _MAX_PIECE_BYTES
_MAX_STRAYS = 1000  # pieces that are empty or of no connection
TURN = 32
"""How many pieces or messages are taken from one plugin until others have their turn: buffered ones come without."""


class ConnectionLost(Exception):
    """The plugin is gone, or said what is no NRI; nothing more will come."""


class Trunk:
    """A socket to a plugin. ``run`` reads it to its end; everything else may be used meanwhile."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._channels: dict[int, Channel] = {}
        self.closed = asyncio.Event()

    def open(self, number: int) -> "Channel":
        """Return the connection with this number; the other side opens the same one, or never answers."""
        channel = self._channels[number] = Channel(self, number)
        return channel

    async def run(self) -> None:
        """Hand out what comes until the socket is closed by either side."""
        strays = 0
        try:
            for count in itertools.count(1):
                if count % TURN == 0:
                    await asyncio.sleep(0)
                number, length = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
                if length > _MAX_PIECE_BYTES:
                    return
                piece = await self._reader.readexactly(length)
                channel = self._channels.get(number)
                strays += channel is None or not piece
                if strays > _MAX_STRAYS or (channel is not None and not channel.take_in(piece)):
                    return
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            self.close()

    async def send(self, number: int, data: bytes) -> None:
        """Send a message in pieces that peers can read. Raises ConnectionLost."""
        if self.closed.is_set():
            raise ConnectionLost("the connection is closed")
        head, rest = data[:_FIRST_PIECE_BYTES], data[_FIRST_PIECE_BYTES:]
        for piece in (head, rest) if rest else (head,):
            self._writer.write(_HEADER.pack(number, len(piece)) + piece)
        try:
            await self._writer.drain()
        except OSError as error:
            self.close()
            raise ConnectionLost(str(error)) from error

    def close(self) -> None:
        """Close the socket; who waits for data learns it. Idempotent."""
        if not self.closed.is_set():
            self.closed.set()
            self._writer.close()
            for channel in self._channels.values():
                channel.end()


class Channel:
    """One connection of a trunk: a stream of bytes each way."""

    def __init__(self, trunk: Trunk, number: int) -> None:
        self._trunk = trunk
        self._number = number
        self._incoming = asyncio.StreamReader(limit=_MAX_UNREAD_BYTES)
        self._unread = 0

    async def read(self, length: int) -> bytes:
        """Read so many bytes. Raises ConnectionLost when they will not come."""
        try:
            data = await self._incoming.readexactly(length)
        except asyncio.IncompleteReadError as error:
            raise ConnectionLost("the plugin has closed the connection") from error
        self._unread -= length
        return data

    async def write(self, data: bytes) -> None:
        """Write a message. Raises ConnectionLost."""
        await self._trunk.send(self._number, data)

    def take_in(self, piece: bytes) -> bool:
        """Add what came; tell whether that may go on."""
        self._unread += len(piece)
        self._incoming.feed_data(piece)
        return self._unread <= _MAX_UNREAD_BYTES

    def end(self) -> None:
        """Nothing more will come."""
        self._incoming.feed_eof()

    def close(self) -> None:
        """Close the whole trunk: one connection without the other is of no use."""
        self._trunk.close()
