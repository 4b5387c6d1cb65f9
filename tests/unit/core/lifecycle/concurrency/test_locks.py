"""A lock's wait is bounded, and says who holds it."""

import asyncio

import pytest

from crinoid.core.api.errors import DeadlineExceeded
from crinoid.core.lifecycle.concurrency.locks import Locks


async def test_acts_on_one_object_follow_one_another() -> None:
    locks, seen = Locks(), []

    async def act(name: str) -> None:
        async with locks.hold("pod", name):
            seen.append(f"{name} begins")
            await asyncio.sleep(0)
            seen.append(f"{name} ends")

    await asyncio.gather(act("one"), act("two"))
    assert seen == ["one begins", "one ends", "two begins", "two ends"]


async def test_who_waits_too_long_is_told_for_what() -> None:
    locks = Locks()
    async with locks.hold("pod", "CreateContainer of app"), locks.hold("another pod", "StopPodSandbox"):
        with pytest.raises(DeadlineExceeded, match=r"^StopPodSandbox of pod waits for CreateContainer of app"):
            async with locks.hold("pod", "StopPodSandbox of pod", patience_s=0.05):
                pytest.fail("the lock is held")
    async with locks.hold("pod", "StopPodSandbox of pod", patience_s=0.05):
        pass


async def test_an_error_gives_the_lock_up() -> None:
    locks = Locks()
    with pytest.raises(ZeroDivisionError):
        async with locks.hold("pod", "one"):
            raise ZeroDivisionError
    async with locks.hold("pod", "two", patience_s=1):
        pass
