"""Live objects, which one side has and the other calls: sessions, streams, and what an extension may ask the kernel.

Each class of the API that is no value has an :class:`Interface`, made of its own methods and annotations. On the wire
an object is a number, with its attributes; what stands for it on the other side is a stub, a subclass of the same class
whose methods are calls. An object is kept until its stub is gone.
"""

import asyncio
import contextlib
import functools
import inspect
import typing
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Protocol

from crinoid.core.api.errors import DriverError, NotFound
from crinoid.core.api.hooks.extension import ImageDocuments, Kernel
from crinoid.core.api.sessions import AttachSession, ByteSink, ByteSource, ExecSession
from crinoid.core.slots.isolation.forms import INTERFACES, Form, Incoming, Json, Outgoing, form_of
from crinoid.core.slots.running import Outcome, contain


@dataclass(frozen=True, slots=True)
class Method:
    """How a method is called: its parameters in order, and what it answers."""

    parameters: Mapping[str, Form]
    answer: Form
    is_coroutine: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "Method":
        """Read it from a signature. Raises TypeError for what can't travel."""
        hints = typing.get_type_hints(function, include_extras=True)
        names = [*inspect.signature(function).parameters][1:]  # without self
        parameters = {name: form_of(hints[name]) for name in names}
        return cls(parameters, form_of(hints["return"]), inspect.iscoroutinefunction(function))

    def bind(self, arguments: tuple[object, ...], by_name: Mapping[str, object]) -> dict[str, object]:
        """Name all arguments of a call."""
        return {**dict(zip(self.parameters, arguments, strict=False)), **by_name}

    def write(self, arguments: Mapping[str, object], out: Outgoing) -> Json:
        """Return the arguments of a call as they travel."""
        return {name: form.write(arguments[name], out) for name, form in self.parameters.items()}

    def read(self, written: Json, incoming: Incoming) -> dict[str, Any]:
        """Return the arguments of a call."""
        if not isinstance(written, dict) or (missing := self.parameters.keys() - written.keys()):
            raise DriverError(f"was called without {', '.join(sorted(missing)) if written else 'arguments'}")
        return {name: form.read(written[name], incoming) for name, form in self.parameters.items()}


@dataclass(frozen=True, slots=True)
class Interface:
    """The methods of a class, and its attributes, which travel with an object. Forms are made when they are first
    needed, as interfaces name each other."""

    name: str
    functions: Mapping[str, FunctionType]
    hints: Mapping[str, Any]
    stub: type
    wrap: Callable[[Any], Any] = lambda one: one
    """What is called in the place of an object."""

    def method(self, name: str) -> Method:
        """Return a method. Raises NotFound."""
        if (function := self.functions.get(name)) is None:
            raise NotFound(f"{self.name} has no method {name!r:.100}")
        return _method(function)


_method = functools.cache(Method.of)


class Calling(Protocol):
    """What stubs use of a channel."""

    async def call(self, number: int, name: str, method: Method, arguments: Mapping[str, object]) -> Any:
        """Call a method of an object of the other side."""

    def call_now(self, number: int, name: str, method: Method, arguments: Mapping[str, object]) -> Any:
        """As ``call``, of one that is no coroutine: the thread stands still meanwhile."""

    def release(self, number: int) -> None:
        """Say that an object is not going to be called any more."""


@dataclass(frozen=True, slots=True)
class Exported:
    """An object that the other side may call."""

    interface: Interface
    invoke: Callable[[str, dict[str, Any]], Any]
    """Calls a method by its name."""
    drop: Callable[[], None] | None = None
    """Hears that nobody is going to call it any more."""


class LiveObjects:
    """The objects of one channel that the other side may call, by number; 0 is the root."""

    def __init__(self, calling: Calling, root: Exported) -> None:
        self._calling = calling
        self._exported: dict[int, Exported] = {0: root}
        self._last = 0

    def __getitem__(self, number: Json) -> Exported:
        """Return an object by the number that the other side says. Raises NotFound."""
        if not isinstance(number, int) or (found := self._exported.get(number)) is None:
            raise NotFound(f"there is no object {number!r:.100}, or no longer")
        return found

    def drop(self, number: Json) -> None:
        """Forget an object, but the root. Idempotent."""
        if number != 0 and (dropped := self._exported.pop(number, None)) is not None and dropped.drop is not None:
            dropped.drop()

    def clear(self) -> None:
        """Forget all: nobody calls any more."""
        self._exported.clear()

    def export(self, value: object, interface: Interface, out: Outgoing) -> Json:
        """Make an object callable for the other side; return how it is named there."""
        self._last += 1
        number = self._last
        target = interface.wrap(value)
        drop = target.drop if isinstance(target, _Iteration) else None
        self._exported[number] = Exported(interface, lambda name, arguments: getattr(target, name)(**arguments), drop)
        attributes = {name: form_of(hint).write(getattr(value, name), out) for name, hint in interface.hints.items()}
        return {"object": number, **attributes}

    def adopt(self, named: Json, interface: Interface, incoming: Incoming) -> object:
        """Return what calls an object of the other side."""
        match named:
            case {"object": int(number)}:
                attributes = {n: form_of(h).read(named.get(n), incoming) for n, h in interface.hints.items()}
                stub = interface.stub(self._calling, number, attributes)
                weakref.finalize(stub, self._calling.release, number).atexit = False
                return stub
        raise DriverError(f"{named!r:.100} names no object where {interface.name} is due")


class _Stub:
    """An object of the other side."""

    def __init__(self, calling: Calling, number: int, attributes: Mapping[str, object]) -> None:
        self._calling = calling
        self._number = number
        for name, value in attributes.items():
            setattr(self, name, value)


def _stub_of(of: type, functions: Mapping[str, FunctionType], hints: Mapping[str, Any]) -> type:
    def calling(name: str, function: FunctionType) -> Callable[..., Any]:
        async def call(self: Any, *arguments: object, **by_name: object) -> Any:
            method = _method(function)
            return await self._calling.call(self._number, name, method, method.bind(arguments, by_name))

        def call_now(self: Any, *arguments: object, **by_name: object) -> Any:
            method = _method(function)
            return self._calling.call_now(self._number, name, method, method.bind(arguments, by_name))

        return call if inspect.iscoroutinefunction(function) else call_now

    members: dict[str, Any] = dict.fromkeys(hints)  # in the place of properties, which could not be set
    members |= {name: calling(name, function) for name, function in functions.items()}
    return type(f"Remote{of.__name__}", (_Stub, of), members)


def _declare(of: type, hints: Mapping[str, Any]) -> None:
    """Give a class its interface: all of its public methods, and these attributes."""
    functions = _functions_of(of)
    INTERFACES[of] = Interface(of.__name__, functions, hints, _stub_of(of, functions, hints))


def _functions_of(of: type) -> dict[str, FunctionType]:
    members = {name: getattr(of, name) for name in dir(of) if not name.startswith("_")}
    return {name: member for name, member in members.items() if isinstance(member, FunctionType)}


class _Stream(Protocol):
    """An asynchronous iterator of bytes."""

    async def next(self) -> bytes | None:
        """Return the next piece; ``None``: that was all."""

    async def aclose(self) -> None:
        """End it early. Idempotent."""


class _RemoteStream(_Stub, AsyncIterator[bytes]):
    def __aiter__(self) -> "_RemoteStream":
        return self

    async def __anext__(self) -> bytes:
        try:
            piece: bytes | None = await self._calling.call(self._number, "next", _method(_Stream.next), {})
        except asyncio.CancelledError:  # as with a generator: it has ended, and lets go of what it has
            self._calling.release(self._number)
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """End it early."""
        with contextlib.suppress(NotFound):  # it was cancelled, and has let go
            await self._calling.call(self._number, "aclose", _method(_Stream.aclose), {})


class _Iteration:
    """An iterator that is called from afar. One task takes all of its steps: what it opens in one of them (a timeout, a
    task group) it may close in another only there."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._asked: asyncio.Queue[_Step] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def next(self) -> bytes | None:
        """See ``_Stream``."""
        piece: bytes | None = await self._step(lambda: anext(self._pieces, None))
        return piece

    async def aclose(self) -> None:
        """See ``_Stream``."""
        await self._step(getattr(self._pieces, "aclose", _nothing), is_last=True)

    def drop(self) -> None:
        """Close it, as nobody calls it any more."""

        async def close() -> None:
            with contextlib.suppress(Exception):  # whatever it raises, nobody asks
                await self.aclose()

        self._closing = asyncio.create_task(close(), name="close a stream that was dropped")

    async def _step(self, make: Callable[[], Awaitable[Any]], *, is_last: bool = False) -> Any:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve(), name="stream")
        taken: asyncio.Future[Outcome[Any]] = asyncio.get_running_loop().create_future()
        self._asked.put_nowait(_Step(make, taken, is_last))
        try:
            await asyncio.wait({taken})
        except asyncio.CancelledError:
            self._task.cancel()  # it hears of it in the step that it is in
            await asyncio.wait({taken})
            raise
        outcome = taken.result()
        if outcome.error is not None:
            raise outcome.error
        return outcome.answer

    async def _serve(self) -> None:
        while True:
            step = await self._asked.get()
            outcome = await contain(_take(step.make))
            if (task := asyncio.current_task()) is not None:
                while task.cancelling():  # that was for the step
                    task.uncancel()
            step.taken.set_result(outcome)
            if step.is_last:
                return


@dataclass(frozen=True, slots=True)
class _Step:
    make: Callable[[], Awaitable[Any]]
    taken: "asyncio.Future[Outcome[Any]]"
    is_last: bool


async def _nothing() -> None:
    pass


async def _take(make: Callable[[], Awaitable[Any]]) -> Any:
    return await make()


_session = typing.get_type_hints(ExecSession.__init__)
_STREAMS = {name: _session[name] for name in ("stdin", "stdout", "stderr")}
for _class, _hints in (
    (ByteSource, {}),
    (ByteSink, {}),
    (ExecSession, _STREAMS),
    (AttachSession, _STREAMS),
    (ImageDocuments, {}),
    (Kernel, {"documents": ImageDocuments}),
):
    _declare(_class, _hints)
INTERFACES[AsyncIterator[bytes]] = Interface("stream", _functions_of(_Stream), {}, _RemoteStream, _Iteration)
