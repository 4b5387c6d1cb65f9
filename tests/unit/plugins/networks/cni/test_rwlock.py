"""Who may be in together, and who alone."""

import asyncio

import pytest

from crinoid.plugins.networks.cni.rwlock import ReadWriteLock


async def test_one_alone_waits_for_those_inside_and_keeps_others_out() -> None:
    lock, seen, leave = ReadWriteLock(), [], asyncio.Event()

    async def share(name: str, until: asyncio.Event) -> None:
        async with lock.shared():
            seen.append(f"{name} in")
            await until.wait()
            seen.append(f"{name} out")

    async def be_alone() -> None:
        async with lock.exclusive():
            seen.append("alone")
            await asyncio.sleep(0.01)
            seen.append("alone no more")

    first = asyncio.create_task(share("first", leave))
    second = asyncio.create_task(share("second", leave))
    await asyncio.sleep(0)
    alone = asyncio.create_task(be_alone())
    await asyncio.sleep(0)
    late = asyncio.create_task(share("late", leave))
    await asyncio.sleep(0.01)
    assert seen == ["first in", "second in"]
    leave.set()
    await asyncio.gather(first, second, alone, late)
    assert seen[2:] == ["first out", "second out", "alone", "alone no more", "late in", "late out"]


async def test_a_cancelled_wait_lets_others_in_again() -> None:
    lock, leave = ReadWriteLock(), asyncio.Event()

    async def share() -> None:
        async with lock.shared():
            await leave.wait()

    async def be_alone() -> None:
        async with lock.exclusive():
            raise AssertionError("nobody has left")

    inside = asyncio.create_task(share())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(be_alone())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    leave.set()
    async with asyncio.timeout(30):
        await asyncio.gather(inside, share())
