"""What surrounds every call: its request is looked through, its errors become statuses, it is logged and measured.

``generic_handler`` makes of an object with one method per RPC the handler of a whole service: a coroutine,
``run_pod_sandbox(request) -> response``, or for an RPC that answers with a stream a plain function that returns an
async generator of responses. RPCs that the object has no method for answer UNIMPLEMENTED.
"""

import asyncio
import contextlib
import functools
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from crinoid.core.api.errors import CrinoidError, InvalidArgument, NotImplementedHere, Unavailable
from crinoid.core.cri.decode.checks import check_message
from crinoid.core.cri.errors import to_status
from crinoid.core.cri.forwarding import Forwarder
from crinoid.core.cri.wire import api_pb2

Method = Callable[[Any], Awaitable[Message | bytes]]
"""One RPC: a request message in, the response out, as a message or encoded already. ``Any``: each has its own type."""

StreamMethod = Callable[[Any], AsyncGenerator[Message | bytes, None]]
"""One RPC that answers with a stream; what it is about, such as a subscription, begins with the call, not the loop."""

_GIVE_UP_S = 5.0
"""How long calls that are given up may take to end."""

_log = logging.getLogger("crinoid.cri")

_READS = re.compile(r"List|Stream|Version|Status|Get|.*(Status|Stats|FsInfo)$|RuntimeConfig")
_OUR_FAULT = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})


def _ignore(_rpc: str, _seconds: float, _code: str) -> None:
    """Measure nothing."""


_NO_SPAN = contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class CallHooks:
    """Who else wants to know of calls.

    ``observe(rpc, seconds, code)`` is told the end of each, with gRPC's name of the status. ``span(rpc, metadata)``
    returns the context that the call runs in, ``None`` for none; ``metadata`` are the request's headers, with
    ``traceparent`` maybe.
    """

    observe: Callable[[str, float, str], None] = _ignore
    span: Callable[[str, Mapping[str, str]], contextlib.AbstractContextManager[object]] | None = None


NO_HOOKS = CallHooks()


@dataclass(frozen=True, slots=True)
class Malformed:
    """Takes the place of a request that could not be read."""

    message: str


class Calls:
    """The lifecycle of all calls of a server; ``in_flight`` counts those under way by RPC.

    Once there is a ``forwarder``, calls that come in are another daemon's to answer.
    """

    def __init__(self, hooks: CallHooks, ended: Callable[[], None]) -> None:
        """``ended`` is called at the end of each call."""
        self.in_flight: Counter[str] = Counter()
        self._ended = ended
        self.forwarder: Forwarder | None = None
        self._scopes: dict[asyncio.Task[object], tuple[str, asyncio.Timeout]] = {}
        self._observe = hooks.observe
        self._trace = hooks.span

    async def serve(self, rpc: str, method: Method, request: Message | Malformed, context: Any) -> Message | bytes:
        """Run one call to its answer, its error or its cancellation. ``context`` is grpc.aio's, which has no types."""
        with _Life(self, rpc, request) as life:
            try:
                with self._span(rpc, context):
                    async with self._scope(rpc):
                        return await method(_readable(request))
            except BaseException as error:  # here ends, as a status, whatever went wrong
                if not _is_delivered(error):
                    raise
                await life.fail(error, context)
                raise  # not reached: abort raises

    async def serve_stream(self, rpc: str, method: StreamMethod, request: Message | Malformed, context: Any) -> None:
        """Run one call that answers with a stream; a client that reads slowly holds up this call and nothing else.

        The client gets the answer's headers once the call has begun, whenever the first message comes.
        """
        with _Life(self, rpc, request) as life:
            try:
                with self._span(rpc, context):
                    async with self._scope(rpc), contextlib.aclosing(method(_readable(request))) as answers:
                        await context.send_initial_metadata(())
                        async for answer in answers:
                            await context.write(answer)
            except BaseException as error:
                if not _is_delivered(error):
                    raise
                await life.fail(error, context)
                raise

    async def drain(self, timeout_s: float, but: Collection[str] = ()) -> None:
        """Wait for the end of all calls under way here ``but`` those of some RPCs, and of what follows their answers.

        After ``timeout_s`` the others are given up: they are answered UNAVAILABLE.
        """
        tasks = {task for task, (rpc, _) in self._scopes.items() if rpc not in but}
        pending = (await asyncio.wait(tasks, timeout=timeout_s))[1] if tasks else set()
        for task in pending:
            if task in self._scopes:
                self._scopes[task][1].reschedule(0)
        if pending:
            await asyncio.wait(pending, timeout=_GIVE_UP_S)

    @contextlib.asynccontextmanager
    async def _scope(self, rpc: str) -> AsyncIterator[None]:
        """What ``drain`` can end: no client has gone then, so it has to be an error of ours."""
        task = asyncio.current_task()
        assert task is not None  # a call runs in a task of grpc's
        try:
            async with asyncio.timeout(None) as scope:
                self._scopes[task] = (rpc, scope)
                task.add_done_callback(lambda done: self._scopes.pop(done, None))
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise Unavailable(f"{rpc} had not ended when another crinoid took over: ask it again") from error

    def note(self, rpc: str, request: object, seconds: float, code: str, text: str) -> None:
        """Tell of the end of a call, in the log and to whoever measures; ``text`` says what went wrong."""
        self._observe(rpc, seconds, code)
        self._ended()
        if not _log.isEnabledFor(level := _level(rpc, code)):
            return
        subject = describe_subject(request)
        fields = {"rpc": rpc, "subject": subject, "seconds": round(seconds, 6), "code": code}
        outcome = f"{code}: {text}" if text else code
        _log.log(level, "%s %s: %s in %.1f ms", rpc, subject, outcome, seconds * 1000, extra=fields)

    def _span(self, rpc: str, context: Any) -> contextlib.AbstractContextManager[object]:
        return _NO_SPAN if self._trace is None else self._trace(rpc, _headers(context))


class _Life:
    """What is around a call: its count, its end as a status, its line in the log. One that ends in neither an answer
    nor an error was cancelled."""

    __slots__ = ("_calls", "_code", "_request", "_rpc", "_started", "_text")

    def __init__(self, calls: Calls, rpc: str, request: object) -> None:
        self._calls = calls
        self._rpc = rpc
        self._request = request
        self._code, self._text = "OK", ""
        self._started = time.monotonic()

    def __enter__(self) -> "_Life":
        self._calls.in_flight[self._rpc] += 1
        return self

    async def fail(self, error: BaseException, context: Any) -> None:
        """Abort the call with the status of an error, by grpc's own exception."""
        status = to_status(error, self._rpc)
        self._code, self._text = status.code.name, status.message
        await context.abort(status.code, status.message, status.trailer)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and self._code == "OK":
            self._code, self._text = "CANCELLED", "the client has gone away"
        self._calls.in_flight[self._rpc] -= 1
        self._calls.note(self._rpc, self._request, time.monotonic() - self._started, self._code, self._text)


def _is_delivered(error: BaseException) -> bool:
    """Return whether a call that ended so gets a status: not one whose client has gone, which cancels its task.

    Any other CancelledError is of something that the call waited for: who asked is still there, and would wait on.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return not isinstance(error, GeneratorExit)


def generic_handler(service: str, implementation: object, calls: Calls) -> Any:
    """Make grpc's handler of ``RuntimeService`` or ``ImageService``. ``Any``: grpc has no types."""
    descriptor = api_pb2.DESCRIPTOR.services_by_name[service]
    handlers = {rpc.name: _method_handler(rpc, implementation, calls) for rpc in descriptor.methods}
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


def method_name(rpc: str) -> str:
    """Return the name of an RPC's method: ``RunPodSandbox`` is ``run_pod_sandbox``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()


def once_delivered(note: Callable[[], None]) -> None:
    """Call ``note`` when the answer of the call that this runs in has gone out; never, where its client left before.

    A daemon that is killed between the two has answered without noting so, and not the other way round: what is asked
    again then gets the same answer, and nobody who saw none is told that it has been given.
    """

    def tell(call: "asyncio.Task[object]") -> None:
        if call.cancelled() or call.cancelling() or call.exception() is not None:
            return
        try:
            note()
        except CrinoidError as error:
            _log.warning("that a call was answered could not be noted: %s", error.message)

    call = asyncio.current_task()
    assert call is not None  # a call runs in a task of grpc's
    call.add_done_callback(tell)


def describe_subject(request: object) -> str:
    """Name what a request is about, for the log: never any of its other content."""
    metadata = getattr(getattr(request, "config", None), "metadata", None)
    name = "/".join(filter(None, (getattr(metadata, "namespace", ""), getattr(metadata, "name", ""))))
    image = getattr(getattr(request, "image", None), "image", "")
    parts = (getattr(request, "pod_sandbox_id", ""), getattr(request, "container_id", ""), name, image)
    text = " ".join(filter(None, parts))[:300]
    return text if text.isprintable() else repr(text)


def _method_handler(rpc: MethodDescriptor, implementation: object, calls: Calls) -> Any:
    method = getattr(implementation, method_name(rpc.name), None) or _not_served(rpc.name)
    run = calls.serve_stream if rpc.server_streaming else calls.serve

    async def serve(request: Message | Malformed, context: Any) -> Message | bytes | None:
        if calls.forwarder is not None and not isinstance(request, Malformed):
            return await calls.forwarder.pass_on(rpc, request, context)
        return await run(rpc.name, method, request, context)

    make = grpc.unary_stream_rpc_method_handler if rpc.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(serve, request_deserializer=_reader(rpc.input_type.name), response_serializer=_write)


def _not_served(rpc: str) -> Callable[[Message], NoReturn]:
    def refuse(_request: Message) -> NoReturn:
        raise NotImplementedHere(f"crinoid does not serve {rpc}")

    return refuse


def _reader(name: str) -> Callable[[bytes], Message | Malformed]:
    """Make the reader of a request. It must not raise: grpc would call that an internal error."""
    kind: type[Message] = getattr(api_pb2, name)

    def read(data: bytes) -> Message | Malformed:
        try:
            return kind.FromString(data)
        except DecodeError:
            return Malformed(f"the request is no {name}: its {len(data)} bytes can't be parsed, or hold invalid UTF-8")

    return read


def _readable(request: Message | Malformed) -> Message:
    if isinstance(request, Malformed):
        raise InvalidArgument(request.message)
    check_message(request)
    return request


def _write(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _headers(context: Any) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _level(rpc: str, code: str) -> int:
    """Choose how loud to be: what is asked every second is for debugging only, unless we are at fault."""
    if code in _OUR_FAULT:
        return logging.WARNING
    return logging.DEBUG if _is_read(rpc) else logging.INFO


@functools.cache
def _is_read(rpc: str) -> bool:
    return _READS.match(rpc) is not None
