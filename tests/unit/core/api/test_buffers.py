"""Queues of bytes, and a limit on what many hold together."""

import asyncio
import sys

from hypothesis import given
from hypothesis import strategies as st

from crinoid.core.api.buffers import BufferPool, BufferShare, ByteQueue


@given(st.lists(st.binary(max_size=9000), max_size=20), st.integers(1, 20_000))
def test_a_queue_gives_back_what_it_took(pieces: list[bytes], enough: int) -> None:
    queue = ByteQueue()
    for piece in pieces:
        queue.put(piece)
    assert queue.size == sum(map(len, pieces))
    got = b""
    while taken := queue.take(enough):
        got += taken
    assert got == b"".join(pieces)
    assert queue.size == 0


def test_small_pieces_take_no_more_than_their_bytes() -> None:
    queue = ByteQueue()
    for _ in range(100_000):
        queue.put(b"ab")
    held = sum(sys.getsizeof(piece) for piece in queue._pieces)
    assert held < 2 * queue.size, "as objects of their own they would take more than twenty times as much"


def test_the_largest_are_given_up_and_no_more_than_needed() -> None:
    pool = BufferPool(100)
    given_up: list[str] = []

    def begin(name: str, size: int) -> BufferShare:
        def give_up() -> None:
            given_up.append(name)
            share.resize(-share.size)

        share = pool.share(reserve_bytes=10, give_up=give_up)
        share.resize(size)
        return share

    begin("small", 9), begin("middle", 40), begin("large", 50)
    pool.relieve()
    assert given_up == []
    begin("largest", 60)
    pool.relieve()
    assert given_up == ["largest"]
    begin("another", 41)
    pool.relieve()
    assert given_up == ["largest", "large"]
    assert pool.held_bytes == 90


def test_nobody_within_his_reserve_is_given_up() -> None:
    pool = BufferPool(0)
    shares = [pool.share(reserve_bytes=10, give_up=lambda: None) for _ in range(3)]
    for share in shares:
        share.resize(10)
    pool.relieve()
    assert pool.is_full
    assert all(share.has_room for share in shares), "and each can go on"


async def test_who_waits_goes_on_when_another_lets_go() -> None:
    pool = BufferPool(100)
    greedy, modest = pool.share(most_bytes=80), pool.share(reserve_bytes=10)
    greedy.resize(80)
    assert greedy.has_room
    modest.resize(21)
    assert not greedy.has_room
    assert not modest.has_room
    waiting = asyncio.create_task(modest.wait_for_change())
    await asyncio.sleep(0)
    greedy.resize(-50)
    await asyncio.wait_for(waiting, 10)
    assert modest.has_room
    greedy.resize(51)
    assert not greedy.has_room, "its own limit is lower than the pool's"
    greedy.close()
    greedy.resize(-5)
    assert pool.held_bytes == 21, "what is closed counts no more, whatever comes after"
