"""Turns: however many want the loop, others wait for one slice a round."""

import asyncio
import time
from collections import Counter

from crinoid.core.cri.streaming.turns import SLICE_S, Turns


async def _busy(turns: Turns, name: int, steps: Counter[int]) -> None:
    while True:
        await turns.take()
        end = time.perf_counter() + SLICE_S / 20
        while time.perf_counter() < end:
            pass
        steps[name] += 1


async def test_others_wait_for_one_slice_and_each_gets_its_share() -> None:
    turns, steps = Turns(), Counter[int]()
    tasks = [asyncio.create_task(_busy(turns, name, steps)) for name in range(50)]
    rounds = 0
    begun = time.process_time()
    while min(steps[name] for name in range(50)) < 40:
        await asyncio.sleep(0)
        rounds += 1
    used = time.process_time() - begun
    assert used / rounds < 3 * SLICE_S, "a round of the loop holds one slice, not fifty"
    assert max(steps.values()) < 4 * min(steps.values()), "nobody is left out"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_who_is_alone_does_not_wait() -> None:
    turns = Turns()
    for _ in range(10):
        before = asyncio.create_task(asyncio.sleep(0))
        await turns.take()
        assert not before.done(), "no round of the loop has passed"
        await before
        await asyncio.sleep(0)


async def test_whoever_gives_up_in_the_queue_holds_up_nobody() -> None:
    turns, steps = Turns(), Counter[int]()
    busy = [asyncio.create_task(_busy(turns, name, steps)) for name in range(3)]
    for _ in range(20):
        waiting = [asyncio.create_task(turns.take()) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.sleep(0)
    seen = steps.copy()
    async with asyncio.timeout(60):
        while not all(steps[name] > seen[name] for name in range(3)):  # noqa: ASYNC110
            await asyncio.sleep(0)
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    async with asyncio.timeout(10):
        await turns.take()
