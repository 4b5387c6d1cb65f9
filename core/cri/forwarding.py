"""Passes calls on to the daemon that has taken over from this one, for clients that are still connected here.

gRPC's server can't send its clients away without failing the calls that cross the message on its way. So a daemon that
was taken over serves its connections on, by the other daemon's answers, until the last has reached its age and was made
anew (``server``), which loses no call. Used by ``calls``.
"""

from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

_ANY_LENGTH = -1
_OWN_HEADERS = ("grpc-", ":", "user-agent", "te", "content-type")


class Forwarder:
    """A connection to the socket that this daemon has served before. Requests and answers pass as they are."""

    def __init__(self, socket: Path) -> None:
        options = [
            ("grpc.max_receive_message_length", _ANY_LENGTH),
            ("grpc.max_send_message_length", _ANY_LENGTH),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=options)

    async def pass_on(self, rpc: MethodDescriptor, request: Message, context: Any) -> bytes | None:
        """Answer a call as the other daemon does, once it serves. ``context`` is grpc.aio's, which has no types."""
        method = f"/{rpc.containing_service.full_name}/{rpc.name}"
        given = context.invocation_metadata() or ()
        how = {
            "metadata": tuple(pair for pair in given if not pair[0].startswith(_OWN_HEADERS)),
            "timeout": context.time_remaining(),
            "wait_for_ready": True,
        }
        try:
            if not rpc.server_streaming:
                answer: bytes = await self._channel.unary_unary(method)(request.SerializeToString(), **how)
                return answer
            await context.send_initial_metadata(())
            async for part in self._channel.unary_stream(method)(request.SerializeToString(), **how):
                await context.write(part)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata() or ()))
        return None

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._channel.close()
