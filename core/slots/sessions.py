"""Sessions as a runtime's driver returns them, with the slot's name on whatever their streams raise.

They are called long after their hook has answered, by who carries an exec or attach; a driver's own CancelledError
there would look like the carrier's.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from crinoid.core.api.errors import DriverError
from crinoid.core.api.sessions import AttachSession, ByteSink, ByteSource, ExecSession, Session
from crinoid.core.api.values.runtime import TerminalSize

Contain = Callable[[], AbstractContextManager[None]]
"""Makes the context in which a driver's code is awaited."""


class _Source:
    def __init__(self, source: ByteSource, contain: Contain) -> None:
        self._source = source
        self._contain = contain

    async def read(self) -> bytes:
        with self._contain():
            piece: object = await self._source.read()
            if not isinstance(piece, bytes):
                raise DriverError(f"its stream gave {type(piece).__name__} where bytes are due")
            return piece


class _Sink:
    def __init__(self, sink: ByteSink, contain: Contain) -> None:
        self._sink = sink
        self._contain = contain

    async def write(self, data: bytes) -> None:
        with self._contain():
            await self._sink.write(data)

    async def close(self) -> None:
        with self._contain():
            await self._sink.close()


class _Named(Session):
    """What both kinds of sessions share."""

    def __init__(self, session: Session, contain: Contain) -> None:
        with contain():
            stdin, stdout, stderr = session.stdin, session.stdout, session.stderr
        super().__init__(
            None if stdin is None else _Sink(stdin, contain),
            None if stdout is None else _Source(stdout, contain),
            None if stderr is None else _Source(stderr, contain),
        )
        self._session = session
        self._contain = contain

    async def resize(self, size: TerminalSize) -> None:
        """See the base."""
        with self._contain():
            await self._session.resize(size)

    async def close(self) -> None:
        """See the base."""
        with self._contain():
            await self._session.close()


class NamedExecSession(_Named, ExecSession):
    """A driver's exec session."""

    def __init__(self, session: ExecSession, contain: Contain) -> None:
        super().__init__(session, contain)
        self._exec = session

    async def wait(self) -> int:
        """See the base."""
        with self._contain():
            code: object = await self._exec.wait()
            if not isinstance(code, int):
                raise DriverError(f"its process ended with {type(code).__name__} where an exit code is due")
            return code


class NamedAttachSession(_Named, AttachSession):
    """A driver's attach session."""

    def __init__(self, session: AttachSession, contain: Contain) -> None:
        super().__init__(session, contain)
        self._attach = session

    async def wait(self) -> None:
        """See the base."""
        with self._contain():
            await self._attach.wait()
