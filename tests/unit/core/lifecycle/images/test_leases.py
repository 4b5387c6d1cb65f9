import asyncio

from crinoid.core.lifecycle.images.leases import Leases


async def test_what_is_leased_is_not_removed() -> None:
    leases = Leases()
    async with leases.hold(["a", "b"]), leases.hold(["a"]):
        with leases.removal("a") as allowed:
            assert not allowed
        with leases.removal("c") as allowed:
            assert allowed
    with leases.removal("a") as allowed:
        assert allowed


async def test_a_lease_waits_for_a_removal_that_has_begun() -> None:
    leases, held = Leases(), asyncio.Event()

    async def hold(name: str) -> None:
        async with leases.hold([name]):
            held.set()

    with leases.removal("a") as allowed:
        assert allowed
        holder = asyncio.create_task(hold("a"))
        await hold("b")
        held.clear()
        await asyncio.sleep(0.01)
        assert not held.is_set()
    await holder
    assert held.is_set()
