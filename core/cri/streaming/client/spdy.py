"""The client's end of a SPDY/3.1 connection: it opens the streams. All else is as at the server's."""

from crinoid.core.api.buffers import BufferPool
from crinoid.core.cri.streaming.spdy import SpdyConnection, SpdyLimits, SpdyStream, StreamRefused
from crinoid.core.cri.streaming.transports import Transport

_MAX_STREAMS = 0  # of the server's: it opens none
_BUFFER_BYTES = 64 << 20


class SpdyClient(SpdyConnection):
    """See the base; ``run`` has to run meanwhile. Streams that the server would open are refused."""

    PEER_PARITY = 0

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, _refuse, SpdyLimits(_MAX_STREAMS, BufferPool(_BUFFER_BYTES).share()))

    async def open(self, **headers: str) -> SpdyStream:
        """Open a stream; one that the server refuses is reset soon after. Raises ConnectionError."""
        if self._going_away or self.gone.is_set():
            raise ConnectionResetError("the server takes no new streams")
        self._last_id += 2 if self._last_id else 1
        stream = self._streams[self._last_id] = SpdyStream(self, self._last_id, headers)
        await self.send(self._writer.opening(stream.id, headers))
        return stream


def _refuse(stream: SpdyStream) -> None:
    raise StreamRefused
