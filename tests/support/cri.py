"""A blocking CRI client for tests: requests and answers as JSON-like dicts, errors as grpc.RpcError."""

from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from crinoid.core.cri.wire import api_pb2

Json = dict[str, Any]
_RPCS = {rpc.name: rpc for service in api_pb2.DESCRIPTOR.services_by_name.values() for rpc in service.methods}


class Cri:
    """A connection to a CRI socket; ``call("Version")`` and the rest by name, fields as keywords."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix://{socket}",
            options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", -1)],
        )

    def call(self, rpc: str, timeout_s: float = 60, **fields: Any) -> Json:
        """Call an RPC; default values of the answer are there too."""
        method = _RPCS[rpc]
        request = json_format.ParseDict(fields, getattr(api_pb2, method.input_type.name)())
        answer = self.raw(rpc, request.SerializeToString(), timeout_s)
        message = getattr(api_pb2, method.output_type.name).FromString(answer)
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def raw(self, rpc: str, request: bytes, timeout_s: float = 60) -> bytes:
        """Send bytes as they are, and return the answer's."""
        path = f"/{_RPCS[rpc].containing_service.full_name}/{rpc}"
        answer: bytes = self._channel.unary_unary(path)(request, timeout=timeout_s)
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
