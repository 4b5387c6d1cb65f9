"""The store on a full or broken disk: what is new is refused, what has happened holds and is written later."""

import asyncio
import dataclasses
import sqlite3
from pathlib import Path

import pytest

from crinoid.core.api.errors import ResourceExhausted, Unavailable
from crinoid.core.api.linux import libc
from crinoid.core.state import latewrites
from crinoid.core.state.records import ContainerState, PodState
from crinoid.core.state.reserve import RESERVE_BYTES, Reserve
from crinoid.core.state.store import Database, Store

from .test_store import a_container, a_pod


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def refuse(*_: object, **__: object) -> int:
    raise OSError(28, "No space left on device")


def spare(path: Path) -> int:
    return path.stat().st_blocks * 512 - path.stat().st_size


def test_the_reserve_lies_beyond_the_end_and_is_made_anew_as_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 5000)
    reserve = Reserve(path)
    assert spare(path) >= RESERVE_BYTES - 4096
    assert path.stat().st_size == 5000
    with path.open("ab") as file:
        file.write(b"x" * RESERVE_BYTES)
    assert reserve.is_whole()
    assert spare(path) >= RESERVE_BYTES - 4096
    reserve.close()


def test_a_reserve_that_was_used_is_whole_again_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.touch()
    reserve = Reserve(path)
    with path.open("ab") as file, monkeypatch.context() as full:
        file.write(b"x" * (RESERVE_BYTES // 2))
        file.flush()
        full.setattr(libc, "call", refuse)
        assert not reserve.is_whole()
    assert reserve.is_whole()
    reserve.close()


def test_a_full_disk_has_room_for_ends_and_removals_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(path)
    pod = store.pods.put(a_pod())
    entry = store.ledger.record("p1", "directory", "/x", {})
    monkeypatch.setattr(Reserve, "is_whole", lambda _: False)
    for new in (
        lambda: store.pods.put(a_pod("p2")),
        lambda: store.ledger.record("p2", "directory", "/y", {}),
        lambda: store.ledger.record_all("p2", [("directory", "/y", {})]),
        lambda: store.set("a", "b"),
    ):
        with pytest.raises(ResourceExhausted, match="is full: free some space"):
            new()
    store.pods.put_fact(dataclasses.replace(pod, state=PodState.NOT_READY))
    store.ledger.delete(store.ledger.hand_over(entry, "deferred", {"owner": "p1"}))
    store.pods.drop("p1")
    assert (len(store.pods), store.ledger.entries()) == (0, [])


def test_what_has_happened_holds_at_once_and_is_written_once_it_can_be(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latewrites, "FIRST_S", 0.01)

    def fail(*_: object) -> sqlite3.Cursor:
        raise sqlite3.OperationalError("disk I/O error")

    async def work() -> None:
        store = Store(path)
        running, removed = store.containers.put(a_container()), store.pods.put(a_pod())
        with monkeypatch.context() as broken:
            broken.setattr(Database, "_executed", fail)
            for state in (ContainerState.RUNNING, ContainerState.EXITED):
                running = store.containers.put_fact(dataclasses.replace(running, state=state))
            store.pods.put_fact(dataclasses.replace(removed, state=PodState.NOT_READY))
            with pytest.raises(Unavailable, match=r"state\.db can't be used, and nothing has been changed in it"):
                store.containers.drop("c1")
            assert store.containers.get("c1") == running
            await asyncio.sleep(0.03)
        store.pods.drop("p1")
        assert store._late._task is not None
        await store._late._task
        store.close()
        again = Store(path)
        assert (again.containers.get("c1"), len(again.pods)) == (running, 0)
        again.close()

    asyncio.run(work())
