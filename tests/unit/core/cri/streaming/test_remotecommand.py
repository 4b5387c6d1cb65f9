"""An exec or attach carried for a client: how it ends when the client, or the server, does."""

import asyncio

import pytest

from crinoid.core.api.testing.fakes import FakeExecSession
from crinoid.core.api.values.runtime import ExecStreamRequest
from crinoid.core.cri.streaming.remotecommand import Client, run_exec


class _Stuck(FakeExecSession):
    """Its ``close`` waits."""

    def __init__(self) -> None:
        super().__init__(ExecStreamRequest(process={}, stdin=True, stdout=True, stderr=True))
        self.closing = asyncio.Event()

    async def close(self) -> None:
        self.closing.set()
        await asyncio.Event().wait()


async def test_a_server_that_stops_is_not_held_by_a_session_that_does_not_close() -> None:
    session, gone = _Stuck(), asyncio.Event()

    async def start() -> FakeExecSession:
        return session

    carrying = asyncio.create_task(run_exec(Client(4, {}, gone), start))
    await asyncio.sleep(0.01)
    gone.set()
    async with asyncio.timeout(10):
        await session.closing.wait()
        carrying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await carrying
