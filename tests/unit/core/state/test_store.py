"""The store: records and ledger survive, nonsense is put aside, states take only the steps of their table."""

import dataclasses
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from crinoid.core.api.errors import (
    ConfigurationError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StateUnavailable,
    Unavailable,
)
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata, VolumeMount
from crinoid.core.api.values.image import Descriptor
from crinoid.core.api.values.network import Attachment
from crinoid.core.api.values.pod import IdMapping, NamespaceOptions, PodConfig, PodMetadata, PodSecurity, UserNamespace
from crinoid.core.api.values.runtime import ContainerHandle
from crinoid.core.state.records import (
    CONTAINER_STEPS,
    POD_STEPS,
    ContainerRecord,
    ContainerState,
    ImageRecord,
    PodRecord,
    PodState,
)
from crinoid.core.state.store import Store


def a_pod(key: str = "p1") -> PodRecord:
    security = PodSecurity(namespaces=NamespaceOptions(user=UserNamespace(uids=(IdMapping(1, 0, 9),))))
    return PodRecord(
        id=key,
        config=PodConfig(metadata=PodMetadata("n", "ns", "u"), labels={"a": "b"}, security=security),
        runtime_handler="",
        runtime="runc",
        network="default",
        snapshotter="default",
        state=PodState.READY,
        created_at_ns=5,
        namespaces={"network": Path("/run/x")},
        attachment=Attachment(("10.1.1.1",), {"result": {"ips": [1, "x"]}}),
    )


def a_container(state: ContainerState = ContainerState.CREATED) -> ContainerRecord:
    config = ContainerConfig(
        metadata=ContainerMetadata("c"), envs=(("A", "é"),), mounts=(VolumeMount(container_path="/x"),)
    )
    handle = ContainerHandle("c1", "p1", Path("/b"), "/crinoid/c1")
    return ContainerRecord(
        id="c1", pod_id="p1", config=config, handle=handle, image_id="i", image_ref="r", state=state, created_at_ns=1
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def test_records_come_back_equal(path: Path) -> None:
    store = Store(path)
    image = ImageRecord(id="sha256:1", tags=("a:b",), layers=(Descriptor("m", "sha256:2", 3),), config='{"x": 1}')
    wanted = (store.pods.put(a_pod()), store.containers.put(a_container()), store.images.put(image))
    store.close()
    again = Store(path)
    assert (again.pods.get("p1"), again.containers.get("c1"), again.images.get("sha256:1")) == wanted
    assert again.containers_of("p1") == [wanted[1]]


def test_text_that_is_no_unicode_comes_back(path: Path) -> None:
    """An environment variable may hold any bytes."""
    record = a_container()
    config = dataclasses.replace(record.config, envs=(("A", "\udcff\udc80é"), ("B", "\\udcff")))
    wanted = Store(path).containers.put(dataclasses.replace(record, config=config))
    assert Store(path).containers.get("c1") == wanted


def test_dropped_records_stay_dropped(path: Path) -> None:
    store = Store(path)
    store.pods.put(a_pod())
    store.pods.drop("p1")
    store.pods.drop("p1")
    assert list(Store(path).pods) == []


def test_find_by_unique_prefix(path: Path) -> None:
    store = Store(path)
    for key in ("abc1", "abd2"):
        store.pods.put(a_pod(key))
    assert store.pods.find("abc").id == "abc1"
    with pytest.raises(InvalidArgument, match="2 ids of pods"):
        store.pods.find("ab")
    for missing in ("x", ""):
        with pytest.raises(NotFound):
            store.pods.find(missing)


def test_ledger_is_undone_latest_first_and_by_what_was_amended(path: Path) -> None:
    ledger = Store(path).ledger
    first = ledger.record("p1", "mount", "/a", {})
    second = ledger.record("p1", "network", "default", {"plan": {"x": [1]}})
    ledger.record("p2", "mount", "/b", {})
    ledger.update(second, {"data": {"ip": "é"}})
    again = Store(path).ledger
    assert [(e.key, e.data) for e in again.entries("p1")] == [("default", {"data": {"ip": "é"}}), ("/a", {})]
    again.delete(first)
    again.delete(first)
    assert [entry.key for entry in again.entries()] == ["/b", "default"]


def test_an_owners_entries_are_found_whatever_came_and_went(path: Path) -> None:
    """Who has none is not looked up, so how many there are must be right, after a restart too."""
    ledger = Store(path).ledger
    assert ledger.entries("p1") == []
    first = ledger.record("p1", "mount", "/a", {})
    ledger.record_all("p1", [("mount", "/b", {}), ("mount", "/c", {})])
    ledger.record_all("p2", [])
    ledger = Store(path).ledger
    assert [entry.key for entry in ledger.entries("p1")] == ["/c", "/b", "/a"]
    assert ledger.entries("p2") == []
    ledger.delete(first)
    ledger.delete(first)
    assert [entry.key for entry in ledger.entries("p1")] == ["/c", "/b"]
    rest = ledger.entries("p1")
    ledger.delete(first, *rest)
    assert ledger.entries("p1") == []
    ledger.delete(*rest)
    assert [ledger.entries("p1"), ledger.entries()] == [[], []]
    ledger.record("p1", "mount", "/d", {})
    assert [entry.key for entry in ledger.entries("p1")] == ["/d"]


@pytest.mark.parametrize("old", ContainerState)
@pytest.mark.parametrize("new", ContainerState)
def test_containers_take_only_the_steps_of_the_table(path: Path, old: ContainerState, new: ContainerState) -> None:
    store = Store(path)
    store.containers.put(a_container(old))
    if new is old or new in CONTAINER_STEPS[old]:
        assert store.containers.put(a_container(new)).state is new
    else:
        with pytest.raises(FailedPrecondition, match=f"from {old.value} to {new.value}"):
            store.containers.put(a_container(new))
        assert store.containers.get("c1") == a_container(old)


def test_a_stopped_pod_never_gets_ready_again(path: Path) -> None:
    assert POD_STEPS[PodState.NOT_READY] == frozenset()
    store = Store(path)
    store.pods.put(dataclasses.replace(a_pod(), state=PodState.NOT_READY))
    with pytest.raises(FailedPrecondition):
        store.pods.put(a_pod())


@pytest.mark.parametrize("body", ['{"id": ["hush"]}', '{"id": "hush', '["hush"]', '"hush \\udc00'])
def test_a_record_that_does_not_parse_is_put_in_quarantine(
    path: Path, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(path)
    store.pods.put(a_pod("good"))
    store.pods.put(a_pod("bad"))
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE pods SET body = ? WHERE id = 'bad'", (body,))
    for _ in range(2):
        again = Store(path)
        assert [pod.id for pod in again.pods] == ["good"]
        assert [row[:2] for row in again.quarantined()] == [("pods", "bad")]
        assert "hush" not in again.quarantined()[0][2] + caplog.text  # it may be a container's environment
        again.close()


def test_a_file_that_is_no_database_is_put_aside(path: Path) -> None:
    path.write_bytes(b"rubbish" * 1000)
    store = Store(path)
    store.pods.put(a_pod())
    (aside,) = path.parent.glob("state.db.broken-*")
    assert aside.read_bytes().startswith(b"rubbish")


def test_a_newer_schema_is_refused_untouched(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="schema 99"):
        Store(path)
    assert not list(path.parent.glob("*.broken-*"))


def test_the_log_is_carried_over_now_and_then(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crinoid.core.state.store.LOOK_WRITES", 50)
    monkeypatch.setattr("crinoid.core.state.store.LOG_BYTES", 100_000)
    store = Store(path)
    before = path.stat().st_size
    for number in range(300):
        store.ledger.record("p", "mount", str(number), {"x": "y" * 500})
    store._database._checkpoint.join(5)
    assert path.stat().st_size > before + 50_000
    assert len(store.ledger.entries("p")) == 300


@pytest.mark.parametrize("is_ever_quiet", [True, False])
def test_the_log_stays_short(path: Path, monkeypatch: pytest.MonkeyPatch, is_ever_quiet: bool) -> None:
    """SQLite writes it from its beginning again only where all was carried over and nothing has come meanwhile."""
    limit = 200_000
    for name in ("store.LOG_BYTES", "opening.LOG_BYTES"):
        monkeypatch.setattr(f"crinoid.core.state.{name}", limit)
    monkeypatch.setattr("crinoid.core.state.store.MOST_LOG_BYTES", 2 * limit)
    monkeypatch.setattr("crinoid.core.state.store.LOOK_WRITES", 5)
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.run)
    if not is_ever_quiet:
        monkeypatch.setattr("crinoid.core.state.store.Database._run_checkpoint", lambda _: None)
    monkeypatch.setattr(threading.Thread, "ident", 1)
    monkeypatch.setattr(threading.Thread, "join", lambda _: None)
    store, log = Store(path), path.with_name("state.db-wal")
    longest = 0
    for _ in range(1000):
        store.pods.put(a_pod())
        longest = max(longest, log.stat().st_size)
    assert limit < longest < 3 * limit  # of 8 MB that were written
    store.close()
    assert [pod.id for pod in Store(path).pods] == ["p1"]


def test_settings_survive(path: Path) -> None:
    Store(path).set("pod_cidrs", "10.0.0.0/24")
    assert Store(path).setting("pod_cidrs") == "10.0.0.0/24"
    assert Store(path).setting("other") is None


ELSEWHERE = [sys.executable, "-c"]
"""Another process: locks are between processes."""


def hold(path: Path, statement: str) -> "subprocess.Popen[str]":
    """Have another process open the database, run a statement in a transaction, and wait."""
    script = (
        f"import sqlite3, sys; c = sqlite3.connect({str(path)!r}, isolation_level=None, timeout=0)\n"
        f"c.execute({statement!r}).fetchall(); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([*ELSEWHERE, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "SELECT * FROM pods"])
def test_a_database_that_another_process_has_open_stops_the_start_and_stays_as_it_is(
    path: Path, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crinoid.core.state.opening.START_WAIT_S", 0.2)
    store = Store(path)
    store.pods.put(a_pod())
    store.close()
    other = hold(path, statement)
    before = path.read_bytes()
    try:
        with pytest.raises(StateUnavailable, match=r"state\.db is locked: another process has had it open for 0\.2 s"):
            Store(path)
        assert path.read_bytes() == before
        assert not list(path.parent.glob("*.broken-*"))
    finally:
        other.communicate()
    assert [pod.id for pod in Store(path).pods] == ["p1"]


def test_nobody_can_lock_the_database_while_it_is_in_use(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crinoid.core.state.store.LOOK_WRITES", 1)
    monkeypatch.setattr("crinoid.core.state.store.LOG_BYTES", 1)  # it is carried over at once, by another connection
    store = Store(path)
    store.pods.put(a_pod())
    store._database._checkpoint.join(5)
    for statement in ("BEGIN IMMEDIATE", "SELECT * FROM pods", "PRAGMA wal_checkpoint(TRUNCATE)"):
        script = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0.1).execute({statement!r}).fetchall()"
        refused = subprocess.run([*ELSEWHERE, script], capture_output=True, text=True, check=False)
        assert "database is locked" in refused.stderr
    started = time.monotonic()
    store.pods.put(a_pod("p2"))
    assert time.monotonic() - started < 1
    assert not path.with_name("state.db-shm").exists()


@pytest.mark.parametrize("vfs", ["unix-excl", "unix"])
def test_what_a_killed_daemon_wrote_is_there_and_that_of_one_that_shared_the_file(path: Path, vfs: str) -> None:
    Store(path).close()
    row = "INSERT INTO settings VALUES ('a', '1')"
    script = (
        f"import os, sqlite3; c = sqlite3.connect('file:{path}?vfs={vfs}', uri=True, isolation_level=None)\n"
        f'c.execute("PRAGMA journal_mode = WAL"); c.execute("PRAGMA wal_autocheckpoint = 0"); c.execute("{row}")\n'
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([*ELSEWHERE, script], check=False).returncode == -9
    assert path.with_name("state.db-wal").stat().st_size > 0
    assert path.with_name("state.db-shm").exists() is (vfs == "unix")
    store = Store(path)
    assert store.setting("a") == "1"
    assert not path.with_name("state.db-shm").exists()


@pytest.mark.parametrize("name", ["a b?c#d%20", "é"])
def test_a_path_may_have_any_characters(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    Store(directory / "state.db").set("a", "1")
    assert (directory / "state.db").exists()


def test_a_directory_that_can_not_be_written_to_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "state.db").mkdir()
    with pytest.raises(StateUnavailable, match=r"can't be used: Is a directory\. Nothing has been changed"):
        Store(tmp_path / "state.db")
    assert (tmp_path / "state.db").is_dir()


async def test_what_was_synced_is_on_disk_and_the_loop_did_not_wait_for_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, synced = Store(path), []

    def note(descriptor: int) -> None:
        synced.append(
            (os.readlink(f"/proc/self/fd/{descriptor}"), threading.current_thread() is threading.main_thread())
        )

    monkeypatch.setattr(os, "fsync", note)
    store.set("a", "1")
    await store.sync()
    assert synced == [(f"{path}-wal", False)]
    store.close()


def test_damage_that_shows_while_the_file_is_in_use_is_no_internal_error(path: Path) -> None:
    store = Store(path)
    for number in range(1000):  # more than SQLite keeps in memory
        store.ledger.record("owner", "directory", f"/d{number}", {"x": "y" * 4000})
    store.close()
    store = Store(path)
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (path.stat().st_size - 8192))
    assert not store.damage
    with pytest.raises(Unavailable, match=r"is damaged.*restart crinoid"):
        store.ledger.entries()
    assert "is damaged" in store.damage
    store.close()
