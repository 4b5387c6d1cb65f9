"""Whatever stands in ``state.db``: the daemon starts, who lives is not undone, and is shown, stopped and removed."""

import contextlib
import json
import random
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from crinoid.core.api.errors import AlreadyExists, CrinoidError, DriverError
from crinoid.core.api.values.runtime import ContainerStatus
from crinoid.core.cri.encode.containers import encode_container, encode_container_status
from crinoid.core.cri.encode.images import encode_image
from crinoid.core.cri.encode.pods import encode_pod, encode_pod_status
from crinoid.core.lifecycle.queries import ContainerFilter, PodFilter
from crinoid.core.lifecycle.resources.resources import NETWORK
from crinoid.core.lifecycle.strays.stand_ins import ANNOTATION, REASON
from crinoid.core.state.migrations import COLUMNS
from crinoid.core.state.records import ContainerState, PodState
from unit.core.lifecycle.conftest import IMAGE, FakeNode, a_container, a_pod
from unit.core.lifecycle.test_services import assert_nothing_left


@dataclass
class Living:
    """A node with a pod in which a container runs, and the file of its state once its daemon has died."""

    node: FakeNode
    pod: str
    container: str

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.node.config.root / "state.db")) as connection, connection:
            yield connection

    def edit(self, statement: str, *values: object) -> None:
        with self.database() as connection:
            connection.execute(statement, values)

    def is_running(self) -> bool:
        found = self.node.runtime._containers.get(self.container)
        return found is not None and found.status is ContainerStatus.RUNNING


@pytest.fixture
async def living(fake_node: FakeNode) -> Living:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    await fake_node.now.containers.start(container)
    fake_node.now.containers.acknowledge(container)
    fake_node.now.pods.acknowledge(pod)
    await fake_node.crash()
    return Living(fake_node, pod, container)


NONSENSE = ["", "{", "null", "[]", b"\x00\xff", 7, '{"v": 99}', '{"id": ["hush"]}', '{"config": {"metadata": {}}}']


@pytest.mark.parametrize("body", NONSENSE)
async def test_a_container_whose_record_can_not_be_read(
    living: Living, body: object, caplog: pytest.LogCaptureFixture
) -> None:
    living.edit("UPDATE containers SET body = ? WHERE id = ?", body, living.container)
    services = await living.node.start()
    (shown,) = services.containers.list(ContainerFilter())
    assert (shown.id, shown.pod_id, shown.state, shown.reason) == (
        living.container, living.pod, ContainerState.UNKNOWN, REASON
    )  # fmt: skip
    assert f"the record containers/{living.container} can't be read: " in shown.message
    assert "hush" not in shown.message + caplog.text  # it may be a container's environment
    assert living.is_running()
    assert services.pods.get(living.pod).state is PodState.READY
    (told,) = json.loads((await services.node.status(True)).info["quarantine"])
    assert (told["table"], told["id"]) == ("containers", living.container)
    await services.containers.stop(living.container, 5)
    assert not living.is_running()
    assert services.containers.get(living.container).state is ContainerState.EXITED
    await services.containers.remove(living.container)
    assert services.containers.list(ContainerFilter()) == []
    await services.pods.remove(living.pod)
    assert_nothing_left(living.node)
    with living.database() as connection:  # nothing that was known is thrown away
        rows = connection.execute("SELECT source, id, body FROM quarantine").fetchall()
    assert rows == [("containers", living.container, body if isinstance(body, str | bytes) else str(body))]


async def test_a_name_is_kept_where_it_can_be_read(living: Living) -> None:
    with living.database() as connection:
        ((body,),) = connection.execute("SELECT body FROM containers").fetchall()
        connection.execute("UPDATE containers SET body = ?", (json.dumps({**json.loads(body), "image_id": 5}),))
    services = await living.node.start()
    assert services.containers.get(living.container).config.metadata.name == "app"
    with pytest.raises(AlreadyExists, match=living.container):
        await services.containers.create(living.pod, a_container(), None)


@pytest.mark.parametrize("table", ["pods", "containers", "images"])
async def test_a_record_that_is_repaired_comes_back_whole(living: Living, table: str) -> None:
    before = {row.id: row for row in (await living.node.start()).store.containers}
    await living.node.crash()
    with living.database() as connection:
        rows = connection.execute(f"SELECT body, id FROM {table}").fetchall()
        connection.execute(f"UPDATE {table} SET body = 'torn'")
    await living.node.start()
    await living.node.crash()
    with living.database() as connection:
        assert connection.execute(f"SELECT DISTINCT body FROM {table}").fetchall() == [("torn",)]
        connection.executemany(f"UPDATE {table} SET body = ? WHERE id = ?", rows)
    services = await living.node.start()
    assert living.is_running()
    assert {row.id: row for row in services.store.containers} == before
    assert services.pods.get(living.pod).state is PodState.READY
    assert services.store.quarantined() == []


@pytest.mark.parametrize("body", [*NONSENSE, None])
async def test_a_pod_whose_record_can_not_be_read_or_is_gone(living: Living, body: object) -> None:
    if body is None:
        living.edit("DELETE FROM pods")
    else:
        living.edit("UPDATE pods SET body = ?", body)
    services = await living.node.start()
    (shown,) = services.pods.list(PodFilter())
    assert (shown.id, shown.state) == (living.pod, PodState.NOT_READY)
    assert f"the record pods/{living.pod} can't be read: " in shown.config.annotations[ANNOTATION]
    assert shown.config.metadata == a_pod().metadata  # by the ledger
    with pytest.raises(AlreadyExists, match=living.pod):
        await services.pods.run(a_pod(), "")
    assert living.is_running()
    assert services.containers.get(living.container).state is ContainerState.RUNNING
    assert living.pod in living.node.network.attached
    await services.pods.stop(living.pod)
    assert not living.is_running()
    assert living.node.network.attached == {}
    await services.pods.remove(living.pod)
    assert_nothing_left(living.node)


async def test_an_image_whose_record_can_not_be_read_hides_no_other_and_loses_nothing(living: Living) -> None:
    living.node.snapshotter.layers["sha256:layer"] = None
    living.edit('INSERT INTO images VALUES (\'sha256:bad\', \'{"tags": ["a/b:c"], "config": "}"}\')')
    living.edit('INSERT INTO images VALUES (\'sha256:odd\', \'{"id": "sha256:odd", "config": "}"}\')')
    services = await living.node.start()
    shown = [encode_image(record, services.images.user_of(record)).id for record in services.images.list()]
    assert sorted(shown) == [IMAGE.id, "sha256:bad", "sha256:odd"]
    await services.images.remove("sha256:odd")
    assert "sha256:layer" in living.node.snapshotter.layers  # it may be the bad one's
    assert services.images.find("a/b:c") is None or services.images.find("a/b:c").id == "sha256:bad"  # type: ignore[union-attr]
    with living.database() as connection:
        assert connection.execute("SELECT count(*) FROM images WHERE id = 'sha256:bad'").fetchone() == (1,)


@pytest.mark.parametrize("kind", ["directory", "namespaces", "mount", "network", "snapshot", "container", "cgroup"])
@pytest.mark.parametrize("column", ["data", "owner"])
async def test_a_row_of_the_ledger_is_mended_by_what_else_is_known(living: Living, kind: str, column: str) -> None:
    living.edit(f"UPDATE ledger SET {column} = '}}' WHERE kind = ?", kind)
    services = await living.node.start()
    assert living.is_running()
    assert living.pod in living.node.network.attached
    assert services.containers.get(living.container).state is ContainerState.RUNNING
    await services.pods.remove(living.pod)
    if (kind, column) != ("snapshot", "owner"):  # it is removed at the next start, as nobody's
        assert_nothing_left(living.node)


VALUES = [
    "", "}", "[]", "{}", b"\xff", -1, 1.5, "../../etc", "\x00", "x" * 5000, '"\\udc00"',
    '{"slot": 5, "handle": [], "request": {}, "data": 3, "made": 7, "paths": {}}',
]  # fmt: skip


@pytest.mark.parametrize("table", COLUMNS)
async def test_the_daemon_starts_with_any_row_of_any_table(living: Living, table: str) -> None:
    """Each value in each column, and then many rows at once, as a torn page would leave them."""
    living.edit("INSERT INTO settings VALUES ('pod_cidrs', '10.0.0.0/24')")
    living.edit("INSERT INTO quarantine VALUES ('pods', 'p', 'b', 'e', 1)")
    living.edit("INSERT INTO ledger (owner, kind, key, data) VALUES ('deferred', 'snapshot', 's', '{\"slot\": \"x\"}')")
    living.edit("INSERT INTO ledger (owner, kind, key, data) VALUES ('images', 'layer', 's', '{}')")
    with living.database() as connection:
        rows = connection.execute(f"SELECT * FROM {table}").fetchall()
    dice = random.Random(table)
    tries = [{column: value} for column in COLUMNS[table] for value in VALUES]
    tries += [{column: dice.choice(VALUES) for column in COLUMNS[table] if dice.random() < 0.7} for _ in range(10)]
    for damage in tries:
        with living.database() as connection, contextlib.suppress(sqlite3.IntegrityError):
            for column, value in damage.items():  # all rows of a table without two of one id
                key = "rowid" if table in ("ledger", "quarantine") else "id"
                one = f"{key} = (SELECT {key} FROM {table} LIMIT 1)" if column == "id" else "1"
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {one}", (value,))
        services = await living.node.start()
        assert (await services.node.status(True)).info["quarantine"]
        for pod in services.pods.list(PodFilter()):
            assert encode_pod(pod).SerializeToString()
            assert encode_pod_status(pod).SerializeToString()
            services.pods.info(pod.id)
        for container in services.containers.list(ContainerFilter()):
            assert encode_container(container).SerializeToString()
            assert encode_container_status(container, None).SerializeToString()
            services.containers.info(container.id)
        for image in services.images.list():
            assert encode_image(image, services.images.user_of(image)).SerializeToString()
        if table != "ledger" or "key" not in damage:  # a key that is another's is undone as that
            assert living.is_running(), damage
        await living.node.crash()
        with living.database() as connection:
            connection.execute(f"DELETE FROM {table}")
            places = ", ".join("?" * len(COLUMNS[table]))
            connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)


async def test_address_ranges_that_a_network_refuses_are_not_kept(fake_node: FakeNode) -> None:
    await fake_node.now.node.set_pod_cidrs(("10.1.0.0/24",))
    fake_node.network.fail("set_pod_cidrs", CrinoidError("no room"))
    with pytest.raises(CrinoidError, match="no room"):
        await fake_node.now.node.set_pod_cidrs(("10.88.0.0/32",))
    assert fake_node.now.pods.pod_cidrs() == ("10.1.0.0/24",)


async def test_address_ranges_that_were_kept_and_are_refused_now_do_not_end_the_start(
    fake_node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier version kept them before anybody was asked."""
    fake_node.now.store.set("pod_cidrs", "10.88.0.0/32")
    await fake_node.crash()
    fake_node.network.fail("set_pod_cidrs", CrinoidError("no room"))
    services = await fake_node.start()
    assert "the address ranges of the last UpdateRuntimeConfig can't be used" in caplog.text
    await services.node.set_pod_cidrs(("10.1.0.0/24",))
    assert services.pods.pod_cidrs() == ("10.1.0.0/24",)


async def test_what_waits_to_be_undone_of_a_pod_that_is_there_goes_on_waiting(
    fake_node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    """A network that can't detach a pod at its stop: the record is there until the pod is removed."""
    pod = await fake_node.now.pods.run(a_pod(), "")
    fake_node.network.fail("detach", DriverError("plugin is gone"))
    await fake_node.now.pods.stop(pod)
    await fake_node.crash()
    fake_node.network.fail("detach", DriverError("plugin is gone"))
    services = await fake_node.start()
    assert [(one.kind, one.owner) for one in services.resources.deferred()] == [(NETWORK, pod)]
    assert "is mended" not in caplog.text
    await fake_node.crash()
    services = await fake_node.start()
    assert services.resources.count_deferred() == 0
    await services.pods.remove(pod)
    assert_nothing_left(fake_node)


async def test_a_stop_that_was_killed_before_it_noted_its_end_is_made_again(living: Living) -> None:
    """What the network may have of the pod still is freed by that: nobody else would."""
    living.edit("DELETE FROM ledger WHERE kind = ?", NETWORK)
    services = await living.node.start()
    assert services.pods.get(living.pod).state is PodState.READY
    assert "detach" not in living.node.network.hooks_called
    await services.pods.stop(living.pod)
    assert living.node.network.hooks_called.count("detach") == 1
    await services.pods.remove(living.pod)
    assert_nothing_left(living.node)
