import asyncio

from crinoid.core.lifecycle.images.leases import Claims


async def test_what_is_claimed_is_not_removed() -> None:
    claims = Claims()
    async with claims.hold(["a", "b"]), claims.hold(["a"]):
        with claims.removal("a") as allowed:
            assert not allowed
        with claims.removal("c") as allowed:
            assert allowed
    with claims.removal("a") as allowed:
        assert allowed


async def test_a_claim_waits_for_a_removal_that_has_begun() -> None:
    claims, held = Claims(), asyncio.Event()

    async def hold(name: str) -> None:
        async with claims.hold([name]):
            held.set()

    with claims.removal("a") as allowed:
        assert allowed
        holder = asyncio.create_task(hold("a"))
        await hold("b")
        held.clear()
        await asyncio.sleep(0.01)
        assert not held.is_set()
    await holder
    assert held.is_set()
