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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from crinoid.core.api import timeline
from crinoid.core.api.errors import CrinoidError, InvalidArgument, NotImplementedHere, Unavailable
from crinoid.core.cri.decode.checks import check_message
from crinoid.core.cri.errors import to_status
from crinoid.core.cri.forwarding import ENDLESS, Forwarder, relayed_until_s
from crinoid.core.cri.wire import api_pb2, node_explain_pb2, node_images_pb2
from crinoid.core.state.timelines import Ending

Json = dict[str, Any]
"""A JSON object; ``Any`` because its form is the message's."""

Method = Callable[[Any], Awaitable[Message | bytes]]
"""One RPC: a request message in, the response out, as a message or encoded already. ``Any``: each has its own type."""

StreamMethod = Callable[[Any], AsyncGenerator[Message | bytes, None]]
"""One RPC that answers with a stream; what it is about, such as a subscription, begins with the call, not the loop."""

SERVICES: Mapping[str, ServiceDescriptor] = {
    **api_pb2.DESCRIPTOR.services_by_name,
    **node_images_pb2.DESCRIPTOR.services_by_name,
    **node_explain_pb2.DESCRIPTOR.services_by_name,
}

_SERVICE_OF = {method.name: service.full_name for service in SERVICES.values() for method in service.methods}

RELAYED_UNTIL_S: ContextVar[float | None] = ContextVar("relayed until", default=None)
"""Of a stream that comes over an earlier daemon, until when it can (time.monotonic): see ``forwarding``."""

_GIVE_UP_S = 5.0
"""How long calls that are given up may take to end."""

_log = logging.getLogger("crinoid.cri")

_READS = re.compile(
    r"ReadTimeline|DryRunPod|ProvideBlob|ImageDiskUsage|List|Stream|Version|Status|Get|.*(Status|Stats|FsInfo)$"
    r"|RuntimeConfig"
)
RECORDED = frozenset(
    {"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "UpdatePodSandboxResources", "RestorePod", "CheckpointPod"}
    | {"CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "UpdateContainerResources"}
    | {"CheckpointContainer", "ReopenContainerLog", "PullImage", "RemoveImage", "LoadImage", "AdoptImages"}
    | {"TagImage", "UntagImage"}
)
"""The RPCs whose timelines are kept: what changes something. A kubelet's probes (ExecSync) come each second."""

_OUR_FAULT = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})


class RpcTape(Protocol):
    """Takes down calls as a whole, while somebody records them. Nothing here raises, or blocks.

    ``request`` and ``answer`` make JSON, in any thread; the answer's is ``None`` where there is none.
    """

    def begin_rpc(self, rpc: str, request: Callable[[], Json]) -> int:
        """Take down a request; the hooks that its task calls are its own. Return its number, above 0."""

    def end_rpc(self, number: int, seconds: float, code: str, message: str, answer: Callable[[], Json | None]) -> None:
        """Take down what came of it; ``number`` 0, or another tape's: this one has not seen its begin."""


def _ignore(_rpc: str, _seconds: float, _code: str) -> None:
    """Measure nothing."""


def _no_tape() -> None:
    """Take nothing down."""


def _ignore_failure(_rpc: str, _reason: str) -> None:
    """Count nothing."""


_NO_SPAN = contextlib.nullcontext()


def service_of(rpc: str) -> str:
    """Return the full name of an RPC's service, such as ``runtime.v1.ImageService``."""
    return _SERVICE_OF[rpc]


@dataclass(frozen=True, slots=True)
class CallHooks:
    """Who else wants to know of calls.

    ``observe(rpc, seconds, code)`` is told the end of each, with gRPC's name of the status. ``span(rpc, metadata)``
    returns the context that the call runs in, ``None`` for none; ``metadata`` are the request's headers, with
    ``traceparent`` maybe. ``record(rpc, about)`` returns the context that keeps the timeline of an RPC of ``RECORDED``.
    ``fail(rpc, reason)`` is told each error with its reason, before its end. ``tape()`` is where calls are taken down
    now, ``None`` for nowhere.
    """

    observe: Callable[[str, float, str], None] = _ignore
    span: Callable[[str, Mapping[str, str]], contextlib.AbstractContextManager[object]] | None = None
    record: Callable[[str, Iterable[str]], contextlib.AbstractContextManager[Ending]] | None = None
    fail: Callable[[str, str], None] = _ignore_failure
    tape: Callable[[], RpcTape | None] = _no_tape


NO_HOOKS = CallHooks()


@dataclass(frozen=True, slots=True)
class Malformed:
    """Takes the place of a request that could not be read."""

    message: str


@dataclass(slots=True)
class _Taken:
    """A call for the tape: its number, 0 without one, and its answer. Lists and statuses, encoded already, are left
    out: they tell what the state at the end of a trace does."""

    number: int = 0
    answer: Message | bytes | None = None

    def answer_json(self) -> Json | None:
        return to_json(self.answer) if isinstance(self.answer, Message) else None


class Calls:
    """The lifecycle of all calls of a server; ``in_flight`` counts those under way by RPC.

    Once there is a ``forwarder``, calls that come in are another daemon's to answer.
    """

    def __init__(self, hooks: CallHooks, ended: Callable[[], None]) -> None:
        """``ended`` is called at the end of each call."""
        self.in_flight: Counter[str] = Counter()
        self._ended = ended
        self.forwarder: Forwarder | None = None
        self._scopes: dict[asyncio.Future[Any], tuple[str, asyncio.Timeout]] = {}
        self._observe = hooks.observe
        self._trace = hooks.span
        self._record = hooks.record
        self._fail = hooks.fail
        self._tape = hooks.tape

    async def serve(self, rpc: str, method: Method, request: Message | Malformed, context: Any) -> Message | bytes:
        """Run one call to its answer, its error or its cancellation. ``context`` is grpc.aio's, which has no types."""
        task = asyncio.current_task()
        assert task is not None  # a call runs in a task of grpc's
        with self._timeline_of(rpc, request) as ending:
            async with self._around(rpc, request, context, ending, task) as (readable, taken):
                answer = taken.answer = await method(readable)
                timeline.about(*_subjects(answer))
                return answer
        raise AssertionError("a call ends in an answer or an error")  # not reached: nothing is swallowed around it

    async def serve_stream(self, rpc: str, method: StreamMethod, request: Message | Malformed, context: Any) -> None:
        """Run one call that answers with a stream; a client that reads slowly holds up this call and nothing else.

        The client gets the answer's headers once the call has begun, whenever the first message comes.
        """
        RELAYED_UNTIL_S.set(relayed_until_s(context))
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # another daemon may go on with it
        try:
            with self._timeline_of(rpc, request) as ending:
                async with (
                    self._around(rpc, request, context, ending, over) as (readable, _),
                    contextlib.aclosing(method(readable)) as answers,
                ):
                    await context.send_initial_metadata(())
                    async for answer in answers:
                        await context.write(answer)
        finally:
            over.set_result(None)

    def _timeline_of(self, rpc: str, request: Message | Malformed) -> contextlib.AbstractContextManager[Ending]:
        """Return what keeps a call's timeline, if its RPC is one of ``RECORDED``; the call's end is filled in there."""
        if self._record is None or rpc not in RECORDED:
            return contextlib.nullcontext(Ending())
        return self._record(rpc, _subjects(request))

    @contextlib.asynccontextmanager
    async def _around(
        self, rpc: str, request: Message | Malformed, context: Any, ending: Ending, over: "asyncio.Future[Any]"
    ) -> AsyncIterator[tuple[Message, "_Taken"]]:
        """All that is around a call, from its count to its line in the log; yields the request once it is checked.

        The call has ended here when ``over`` is done.
        """
        task = asyncio.current_task()
        assert task is not None  # a call runs in a task of grpc's
        started_s, code, text = time.monotonic(), "OK", ""
        span: contextlib.AbstractContextManager[object] = _NO_SPAN
        self.in_flight[rpc] += 1
        taken = _Taken()
        if (tape := self._tape()) is not None and isinstance(request, Message):
            taken.number = tape.begin_rpc(rpc, functools.partial(to_json, request))
        try:
            if self._trace is not None:
                pairs = context.invocation_metadata() or ()  # values are bytes under names that end with -bin
                span = self._trace(rpc, {key: value for key, value in pairs if isinstance(value, str)})
            with span:
                try:
                    # ``drain`` moves this deadline to now: no client has gone then, so it has to be an error of ours.
                    async with asyncio.timeout(None) as scope:
                        self._scopes[over] = (rpc, scope)
                        over.add_done_callback(lambda done: self._scopes.pop(done, None))
                        if isinstance(request, Malformed):
                            raise InvalidArgument(request.message)
                        check_message(request)
                        yield request, taken
                except TimeoutError as error:
                    if not scope.expired():
                        raise
                    raise Unavailable(f"{rpc} had not ended when another crinoid took over: ask it again") from error
        except BaseException as error:  # here ends, as a status, whatever went wrong
            # A client that goes cancels the task, and nobody is there for a status. Any other CancelledError is of
            # something that the call waited for: who asked is still there, and would wait on.
            if isinstance(error, GeneratorExit) or (isinstance(error, asyncio.CancelledError) and task.cancelling()):
                code, text = "CANCELLED", "the client has gone away"
                raise
            status = to_status(error, rpc)
            self._fail(rpc, status.reason)
            code, text = status.code.name, status.message
            await context.abort(status.code, status.message, status.trailer)
            raise  # not reached: abort raises, by grpc's own exception
        finally:
            self.in_flight[rpc] -= 1
            ending.code, ending.message = code, text
            seconds = time.monotonic() - started_s
            if (tape := self._tape()) is not None:
                tape.end_rpc(taken.number, seconds, code, text, taken.answer_json)
            self.note(rpc, request, seconds, code, text)

    async def drain(self, timeout_s: float, but: Collection[str] = ()) -> None:
        """Wait for the end of all calls under way here ``but`` those of some RPCs, and of what follows their answers.

        After ``timeout_s`` the others are given up: they are answered UNAVAILABLE.
        """
        calls = {over for over, (rpc, _) in self._scopes.items() if rpc not in but}
        pending = (await asyncio.wait(calls, timeout=timeout_s))[1] if calls else set()
        for over in pending:
            if over in self._scopes:
                self._scopes[over][1].reschedule(0)
        if pending:
            await asyncio.wait(pending, timeout=_GIVE_UP_S)

    def note(self, rpc: str, request: object, seconds: float, code: str, text: str) -> None:
        """Tell of the end of a call, in the log and to whoever measures; ``text`` says what went wrong."""
        self._observe(rpc, seconds, code)
        self._ended()
        # What is asked every second is for debugging only, unless we are at fault.
        level = logging.WARNING if code in _OUR_FAULT else logging.DEBUG if _is_read(rpc) else logging.INFO
        if not _log.isEnabledFor(level):
            return
        subject = describe_subject(request)
        fields = {"rpc": rpc, "subject": subject, "seconds": round(seconds, 6), "code": code}
        outcome = f"{code}: {text}" if text else code
        _log.log(level, "%s %s: %s in %.1f ms", rpc, subject, outcome, seconds * 1000, extra=fields)


def generic_handler(service: str, implementation: object, calls: Calls) -> Any:
    """Make grpc's handler of a service: CRI's, or our own ``NodeImages``. ``Any``: grpc has no types."""
    descriptor = SERVICES[service]
    handlers = {rpc.name: _method_handler(rpc, implementation, calls) for rpc in descriptor.methods}
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


def to_json(message: Message) -> Json:
    """Return a message as JSON, by the field names of the ``.proto``, without fields at their defaults."""
    found: Json = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


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


def _subjects(message: object) -> list[str]:
    """Name all that a request or an answer is about: ids, the names of pod and container, the image."""
    config, sandbox = getattr(message, "config", None), getattr(message, "sandbox_config", None)
    found = [getattr(message, name, "") for name in ("pod_sandbox_id", "container_id", "name")]
    images = [getattr(message, "image_ref", "")]
    images += [getattr(getattr(one, "image", None), "image", "") for one in (message, config)]
    found += [f"{timeline.IMAGE}{image}" for image in images if image]
    for metadata in (getattr(config, "metadata", None), getattr(sandbox, "metadata", None)):
        if metadata is not None and metadata.name:
            namespace = getattr(metadata, "namespace", "")
            found += [metadata.name, *([f"{namespace}/{metadata.name}"] * bool(namespace))]
    return [one for one in found if isinstance(one, str) and one]


def describe_subject(request: object) -> str:
    """Name what a request is about, for the log: never any of its other content."""
    metadata = getattr(getattr(request, "config", None), "metadata", None)
    name = "/".join(filter(None, (getattr(metadata, "namespace", ""), getattr(metadata, "name", ""))))
    image = getattr(getattr(request, "image", None), "image", "")
    parts = (getattr(request, "pod_sandbox_id", ""), getattr(request, "container_id", ""), name, image)
    text = " ".join(filter(None, parts))[:300]
    return text if text.isprintable() else repr(text)


def _method_handler(rpc: MethodDescriptor, implementation: object, calls: Calls) -> Any:
    """Make grpc's handler of one RPC: read bytes, run a method of ``implementation`` within ``calls``, write."""
    kind = GetMessageClass(rpc.input_type)

    def read(data: bytes) -> Message | Malformed:
        try:
            return kind.FromString(data)
        except DecodeError:  # must not leave here: grpc would call it an internal error, and ``calls`` would not know
            return Malformed(
                f"the request is no {rpc.input_type.name}: its {len(data)} bytes can't be parsed, or hold invalid UTF-8"
            )

    def refuse(_request: Message) -> NoReturn:
        raise NotImplementedHere(f"crinoid does not serve {rpc.name}")

    method = getattr(implementation, method_name(rpc.name), None) or refuse
    run = calls.serve_stream if rpc.server_streaming else calls.serve

    async def serve(request: Message | Malformed, context: Any) -> Message | bytes | None:
        if calls.forwarder is not None and not isinstance(request, Malformed):
            return await calls.forwarder.pass_on(rpc, request, context)
        answer = await run(rpc.name, method, request, context)
        if rpc.name in ENDLESS and calls.forwarder is not None and not isinstance(request, Malformed):
            # It has ended as this daemon has nothing more to tell; the other one has.
            return await calls.forwarder.pass_on(rpc, request, context, has_begun=True)
        return answer

    make = grpc.unary_stream_rpc_method_handler if rpc.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(serve, request_deserializer=read, response_serializer=_write)


def _write(answer: Message | bytes) -> bytes:
    """Encode an answer; lists come encoded already (``lists``)."""
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


@functools.cache
def _is_read(rpc: str) -> bool:
    return _READS.match(rpc) is not None
