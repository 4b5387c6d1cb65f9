"""Calls of the CRI without a socket, for ``crinoid trace replay``: a server's methods, in the wrapper of a server's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from crinoid.core.cri.calls import NO_HOOKS, SERVICES, CallHooks, Calls, Json, Malformed, method_name, to_json
from crinoid.core.cri.image_service import ImageService
from crinoid.core.cri.runtime_service import RuntimeService
from crinoid.core.cri.services import Services


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call: gRPC's name of the status, its message, and the answer as JSON where there is one."""

    code: str
    message: str = ""
    content: Json | None = None


class LocalServer:
    """Answers calls in the task that makes them."""

    def __init__(self, services: Services, hooks: CallHooks = NO_HOOKS) -> None:
        self._calls = Calls(hooks, lambda: None)
        self._services = (
            ("RuntimeService", RuntimeService(services)),
            ("ImageService", ImageService(services)),
        )

    async def call(self, rpc: str, request: Mapping[str, Any]) -> Answer | None:
        """Call an RPC that is no stream; ``None`` for one that is not served so. Unknown fields are ignored."""
        for service, implementation in self._services:
            method = SERVICES[service].methods_by_name.get(rpc)
            serve = getattr(implementation, method_name(rpc), None)
            if method is None or serve is None or method.server_streaming:
                continue
            message: Message | Malformed
            try:
                kind = GetMessageClass(method.input_type)
                message = json_format.ParseDict(dict(request), kind(), ignore_unknown_fields=True)
            except json_format.ParseError as error:
                message = Malformed(str(error))
            try:
                found = await self._calls.serve(rpc, serve, message, _Context())
            except _AbortedError as error:
                return Answer(error.code, error.message)
            answer = GetMessageClass(method.output_type).FromString(found) if isinstance(found, bytes) else found
            return Answer("OK", "", to_json(answer))
        return None


class _AbortedError(Exception):
    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


class _Context:
    """What a method may ask of grpc.aio's."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def abort(self, code: Any, message: str, _trailer: object) -> NoReturn:
        raise _AbortedError(code.name, message)
