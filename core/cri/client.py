"""A client of any CRI endpoint, for ``crinoid ctl``, which knows neither grpc nor protobuf.

Requests and answers are dicts in protobuf's JSON form, with the field names of the ``.proto``: 64-bit numbers come back
as strings, bytes as base64, enum values by name. An error status is raised as the CrinoidError it stands for.
"""

import difflib
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from crinoid.core.api.errors import CrinoidError, InvalidArgument, PermissionDenied, Unavailable, Unsupported
from crinoid.core.cri.errors import REASON_KEY, from_status
from crinoid.core.cri.wire import api_pb2, node_explain_pb2, node_images_pb2

Json = dict[str, Any]
"""A JSON object; ``Any`` because its form is the message's."""

_SCHEME = "unix:"
_MAX_MESSAGE_BYTES = 128 << 20
_RPCS: Mapping[str, MethodDescriptor] = {
    rpc.name: rpc for service in api_pb2.DESCRIPTOR.services_by_name.values() for rpc in service.methods
}
_OWN_RPCS: Mapping[str, MethodDescriptor] = {
    rpc.name: rpc
    for module in (node_images_pb2, node_explain_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for rpc in service.methods
}


class Client:
    """A connection to ``endpoint``, ``unix:///run/…/x.sock`` or a plain path; use it with ``async with``.

    The connection is made by the first call, and anew after it was lost.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = f"unix://{_socket_path(endpoint)}"
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
        self._channel = grpc.aio.insecure_channel(self._endpoint, options=options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._channel.close()

    async def call(self, rpc: str, request: Mapping[str, Any] | None = None, timeout_s: float | None = None) -> Json:
        """Call an RPC by its name, such as ``ListContainers``, and return its answer with every field.

        Raises what the answer's status stands for; DeadlineExceeded after ``timeout_s``; Unavailable when nobody
        serves the endpoint; InvalidArgument for a name or a field that the API does not have.
        """
        descriptor = _find(rpc)
        message = _build(descriptor, request or {})
        invoke = self._channel.unary_unary(**_route(descriptor))
        try:
            return _to_json(await invoke(message, timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            raise self._to_error(error) from None

    async def stream(
        self, rpc: str, request: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Json]:
        """Call an RPC that answers with a stream and yield its messages; errors as those of ``call``."""
        descriptor = _find(rpc)
        message = _build(descriptor, request or {})
        call = self._channel.unary_stream(**_route(descriptor))(message, timeout=timeout_s)
        try:
            async for answer in call:
                yield _to_json(answer)
        except grpc.aio.AioRpcError as error:
            raise self._to_error(error) from None
        finally:
            call.cancel()  # grpc does so for who leaves while it waits for a message, but not before the call has begun

    async def call_crinoid(self, rpc: str, timeout_s: float | None = None, **fields: Any) -> Any:
        """Call an RPC that crinoid serves beside the CRI; fields, and the answer, are protobuf's: bytes stay bytes.

        ``Any``: the messages are generated. Raises Unsupported where the endpoint is another runtime's.
        """
        descriptor = _OWN_RPCS[rpc]
        message = GetMessageClass(descriptor.input_type)(**fields)
        try:
            return await self._channel.unary_unary(**_route(descriptor))(message, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._to_own_error(error) from None

    async def stream_crinoid(self, rpc: str, **fields: Any) -> AsyncIterator[Any]:
        """As ``call_crinoid``, of an RPC that answers with a stream."""
        descriptor = _OWN_RPCS[rpc]
        message = GetMessageClass(descriptor.input_type)(**fields)
        call = self._channel.unary_stream(**_route(descriptor))(message)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise self._to_own_error(error) from None
        finally:
            call.cancel()

    def _to_own_error(self, error: Any) -> CrinoidError:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return Unsupported(f"{self._endpoint} does not serve this: it is no crinoid, or an older one")
        return self._to_error(error)

    def _to_error(self, error: Any) -> CrinoidError:
        """Turn grpc's error into ours. ``Any``: grpc has no types."""
        details, trailer = error.details() or "", dict(error.trailing_metadata() or ())
        if error.code() is grpc.StatusCode.UNAVAILABLE and REASON_KEY not in trailer:
            return self._to_connection_error(details)
        return from_status(error.code(), details, trailer.get(REASON_KEY, ""))

    def _to_connection_error(self, details: str) -> CrinoidError:
        if "Permission denied" in details:
            return PermissionDenied(
                f"may not open {self._endpoint}: run this as root or as a member of its group: "
                "docs/troubleshooting.md#permission-denied-at-the-socket"
            )
        if "No such file" in details:
            return Unavailable(
                f"there is no socket at {self._endpoint}; is the daemon running, and serving there? "
                "docs/troubleshooting.md#no-socket"
            )
        if "Connection refused" in details:
            return Unavailable(
                f"nobody serves {self._endpoint}; start the daemon: docs/troubleshooting.md#nobody-serves"
            )
        return Unavailable(f"{self._endpoint}: {details}")


def encode_config(kind: Literal["PodSandboxConfig", "ContainerConfig"], config: Mapping[str, Any]) -> bytes:
    """Encode a configuration of the CRI, for a field of crinoid's own RPCs. Raises InvalidArgument."""
    message: Message = getattr(api_pb2, kind)()
    try:
        return json_format.ParseDict(dict(config), message).SerializeToString()
    except json_format.ParseError as error:
        raise InvalidArgument(f"{kind}: {error}") from error


def rpc_names() -> tuple[str, ...]:
    """Return the names of all RPCs of the API."""
    return tuple(_RPCS)


def _socket_path(endpoint: str) -> str:
    path = endpoint.removeprefix(_SCHEME)
    path = path.removeprefix("//") if path != endpoint else path
    if not path.startswith("/"):
        raise InvalidArgument(f"endpoint {endpoint!r} is no unix socket; write unix:///path/to.sock")
    return path


def _find(rpc: str) -> MethodDescriptor:
    if rpc not in _RPCS:
        near = difflib.get_close_matches(rpc, _RPCS, n=1)
        raise InvalidArgument(f"the CRI has no RPC {rpc!r}" + (f"; did you mean {near[0]}?" if near else ""))
    return _RPCS[rpc]


def _build(rpc: MethodDescriptor, request: Mapping[str, Any]) -> Message:
    message = GetMessageClass(rpc.input_type)()
    try:
        return json_format.ParseDict(dict(request), message)
    except json_format.ParseError as error:
        raise InvalidArgument(f"the request of {rpc.name}: {error}") from error


def _route(rpc: MethodDescriptor) -> Json:
    """Name the method and how its messages are written and read."""
    return {
        "method": f"/{rpc.containing_service.full_name}/{rpc.name}",
        "request_serializer": GetMessageClass(rpc.input_type).SerializeToString,
        "response_deserializer": GetMessageClass(rpc.output_type).FromString,
    }


def _to_json(message: Message) -> Json:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
