"""Passes calls on to the daemon that has taken over from this one, for clients that are still connected here.

gRPC's server can't send its clients away without failing the calls that cross the message on its way. So a daemon that
was taken over serves its connections on, by the other daemon's answers, until the last has reached its age and was made
anew (``server``), which loses no call. Used by ``calls``.

A stream of events has no end of its own, so it goes on over here from where this daemon's own events end. The other
daemon is told by a header until when it may: it ends such streams by then, at a moment of which it knows
(``lifecycle.events``), so that no event is lost to a client that subscribes again.
"""

import contextlib
import math
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

_ANY_LENGTH = -1
_UNTIL = "crinoid-relayed-until"
"""Until when a stream can come over an earlier daemon, by CLOCK_MONOTONIC, which all daemons of a host share."""
_OWN_HEADERS = ("grpc-", ":", "user-agent", "te", "content-type", _UNTIL)
ENDLESS = frozenset({"GetContainerEvents"})
"""The RPCs whose streams end with the client or the daemon alone."""


class Forwarder:
    """A connection to the socket that this daemon has served before. Requests and answers pass as they are."""

    def __init__(self, socket: Path, until_s: float) -> None:
        """``until_s``, by time.monotonic: when all clients have made their connections anew."""
        self._until_s = until_s
        options = [
            ("grpc.max_receive_message_length", _ANY_LENGTH),
            ("grpc.max_send_message_length", _ANY_LENGTH),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=options)

    async def pass_on(
        self, rpc: MethodDescriptor, request: Message, context: Any, *, has_begun: bool = False
    ) -> bytes | None:
        """Answer a call as the other daemon does, once it serves. ``context`` is grpc.aio's, which has no types.

        ``has_begun``: it is a stream, of which the client has got the beginning from this daemon.
        """
        method = f"/{rpc.containing_service.full_name}/{rpc.name}"
        headers = [pair for pair in context.invocation_metadata() or () if not pair[0].startswith(_OWN_HEADERS)]
        if rpc.name in ENDLESS:
            headers.append((_UNTIL, f"{min(self._until_s, relayed_until_s(context) or math.inf):.3f}"))
        how = {"metadata": tuple(headers), "timeout": context.time_remaining(), "wait_for_ready": True}
        try:
            if not rpc.server_streaming:
                answer: bytes = await self._channel.unary_unary(method)(request.SerializeToString(), **how)
                return answer
            if not has_begun:
                await context.send_initial_metadata(())
            call = self._channel.unary_stream(method)(request.SerializeToString(), **how)
            try:
                async for part in call:
                    await context.write(part)
            finally:
                call.cancel()  # the client may have gone
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata() or ()))
        return None

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._channel.close()


def relayed_until_s(context: Any) -> float | None:
    """Return until when a client's stream can come over an earlier daemon, by time.monotonic; ``None``: it does not."""
    for key, value in context.invocation_metadata() or ():
        if key == _UNTIL:
            with contextlib.suppress(ValueError):
                return float(value) if math.isfinite(float(value)) else None
    return None
