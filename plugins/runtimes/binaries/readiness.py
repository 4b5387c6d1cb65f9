"""Waiting on the event loop for a descriptor: pipes, and pidfds, which are readable once their process has ended."""

import asyncio


async def readable(fd: int) -> None:
    """Wait until the descriptor can be read. It must be the caller's own: a loop watches each only once."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
