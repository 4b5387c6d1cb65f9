"""A blocking CRI client for tests: requests and answers as JSON-like dicts, errors as grpc.RpcError."""

from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from crinoid.core.cri.wire import api_pb2
from support.patience import patient

Json = dict[str, Any]
RPCS = {rpc.name: rpc for service in api_pb2.DESCRIPTOR.services_by_name.values() for rpc in service.methods}


class Cri:
    """A connection to a CRI socket; ``call("Version")`` and the rest by name, fields as keywords.

    ``image_socket`` is that of the ImageService, where it has one of its own.
    """

    def __init__(self, socket: Path, image_socket: Path | None = None) -> None:
        self._runtime = _connect(socket)
        self._images = _connect(image_socket) if image_socket else self._runtime

    def call(self, rpc: str, timeout_s: float = 60, **fields: Any) -> Json:
        """Call an RPC; default values of the answer are there too."""
        method = RPCS[rpc]
        request = json_format.ParseDict(fields, getattr(api_pb2, method.input_type.name)())
        answer = self.raw(rpc, request.SerializeToString(), timeout_s)
        message = getattr(api_pb2, method.output_type.name).FromString(answer)
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def raw(self, rpc: str, request: bytes, timeout_s: float = 60) -> bytes:
        """Send bytes as they are, and return the answer's."""
        path = f"/{RPCS[rpc].containing_service.full_name}/{rpc}"
        channel = self._images if "ImageService" in path else self._runtime
        answer: bytes = channel.unary_unary(path)(request, timeout=patient(timeout_s))
        return answer

    def stream_raw(self, rpc: str, request: bytes, timeout_s: float = 60) -> Any:
        """Send bytes and return the call, an iterator of the answers' bytes. ``Any``: grpc has no types."""
        path = f"/{RPCS[rpc].containing_service.full_name}/{rpc}"
        channel = self._images if "ImageService" in path else self._runtime
        return channel.unary_stream(path)(request, timeout=patient(timeout_s))

    def own_stream(self, rpc: str, request: bytes, timeout_s: float = 60) -> Any:
        """As ``stream_raw`` for one of crinoid's own services, such as ``NodeImages/AdoptImages``."""
        return self._runtime.unary_stream(f"/crinoid.v1.{rpc}")(request, timeout=patient(timeout_s))

    def close(self) -> None:
        """Close the connection."""
        for channel in {self._runtime, self._images}:
            channel.close()


def _connect(socket: Path) -> grpc.Channel:
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(f"unix://{socket}", options=options)
