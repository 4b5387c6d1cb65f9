"""Waiting on the event loop for a descriptor: pipes, and pidfds, which are readable once their process has ended."""

import asyncio
import os


async def readable(fd: int) -> None:
    """Wait until the descriptor can be read; any number may wait."""
    own = os.dup(fd)  # a loop watches a descriptor only once
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(own, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(own)
        os.close(own)
