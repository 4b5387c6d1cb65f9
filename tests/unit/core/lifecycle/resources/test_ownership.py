"""What a row of the ledger names is undone only where it is its owner's; damaged rows are put aside."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from crinoid.core.lifecycle.resources import ownership
from crinoid.core.lifecycle.resources.resources import (
    CONTAINER,
    CONTENTS,
    DEFERRED,
    DIRECTORY,
    MOUNT,
    NAMESPACES,
    NETWORK,
    SNAPSHOT,
)
from unit.core.lifecycle.conftest import FakeNode, a_pod

OWNER, OTHER, TOKEN = "a" * 64, "b" * 64, "c" * 32


@pytest.mark.parametrize(
    ("path", "owner", "fits"),
    [
        (f"/run/crinoid/pods/{OWNER}", OWNER, True),
        (f"/run/crinoid/pods/{OWNER}/bundle", f"{OWNER}/init", True),
        (f"/data/.crinoid-{TOKEN}", f"checkpoint/{TOKEN}", True),
        (f"/run/crinoid/checkpoints/.crinoid-{TOKEN}-0", f"checkpoint/{TOKEN}", True),
        (f"/run/crinoid/pods/{OTHER}", OWNER, False),
        ("/run/crinoid/pods", OWNER, False),
        ("/", OWNER, False),
        ("", OWNER, False),
        (f"pods/{OWNER}", OWNER, False),
        (f"/run/crinoid/pods/{OWNER}/../..", OWNER, False),
        (f"/run/{OWNER}\0", OWNER, False),
        ("/run/crinoid/pods/p1", "p1", False),
        ("/run/crinoid/pods", "", False),
        ("/run/checkpoint/", "checkpoint/", False),
    ],
)
def test_paths(path: str, owner: str, fits: bool) -> None:
    if fits:
        ownership.require_path(path, owner)
    else:
        with pytest.raises(ValueError, match=r"is no absolute path|has no name that was given|is none that crinoid"):
            ownership.require_path(path, owner)


@pytest.mark.parametrize("paths", [None, "/", 7, {}, ["/"], [None]])
def test_what_should_be_a_list_of_paths(paths: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        ownership.require_paths(paths, OWNER)


@pytest.mark.parametrize(
    ("key", "owner", "fits"),
    [
        (OWNER, OWNER, True),
        (OWNER, f"{OWNER}/init", True),
        (ownership.volume_key(OWNER, "0"), OWNER, True),
        pytest.param(ownership.checkpoint_key(OTHER), f"checkpoint/{TOKEN}", True, id="as a checkpoint draws it"),
        (OTHER, OWNER, False),
        (OTHER, f"checkpoint/{TOKEN}", False),
        (ownership.volume_key(OTHER, "0"), f"checkpoint/{TOKEN}", False),
    ],
)
def test_snapshots(key: str, owner: str, fits: bool) -> None:
    if fits:
        ownership.require_snapshot(key, owner)
    else:
        with pytest.raises(ValueError, match=r"is not the id of|is none of a checkpoint"):
            ownership.require_snapshot(key, owner)


def _rows(foreign: Path) -> list[tuple[str, str, Mapping[str, object]]]:
    """Rows of every kind that name what is somebody else's: a directory, and a container of another pod."""
    path = str(foreign)
    handle = {"container_id": OTHER, "pod_id": OTHER, "bundle": path, "cgroup": "/x"}
    metadata = {"name": "n", "namespace": "n", "uid": "u", "attempt": 0}
    mine = {"pod_id": OWNER, "metadata": metadata, "netns": "/proc/1/ns/net"}
    return [
        (DIRECTORY, path, {}),
        (MOUNT, path, {}),
        (NAMESPACES, OWNER, {"paths": [f"{path}/file"]}),
        (NAMESPACES, OWNER, {"paths": f"{path}/file"}),
        (NAMESPACES, OWNER, {}),
        (CONTENTS, path, {}),
        (SNAPSHOT, OTHER, {"slot": "overlay"}),
        (CONTAINER, OTHER, {"slot": "runc", "handle": handle}),
        (CONTAINER, OWNER, {"slot": "runc", "handle": handle | {"container_id": OWNER}}),
        (CONTAINER, OWNER, {"slot": "runc"}),
        (NETWORK, "default", {"slot": "default", "request": mine, "data": {}}),
        (NETWORK, "default", {"slot": "default", "request": mine | {"pod_id": OTHER, "netns": None}, "data": {}}),
        (NETWORK, "default", {"slot": "default", "request": 7, "data": {}}),
    ]


async def test_damaged_rows_end_nothing(fake_node: FakeNode, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "file").write_text("theirs")
    pod = await fake_node.now.pods.run(a_pod(), "")
    fake_node.machine.mounts.append(foreign)
    rows = _rows(foreign)
    for kind, key, data in rows:
        for owner in (OWNER, "nobody", f"checkpoint/{TOKEN}", pod):
            fake_node.now.store.ledger.record(owner, kind, key, data)
        fake_node.now.store.ledger.record(DEFERRED, kind, key, {**data, "owner": OWNER})
    await fake_node.crash()
    asked = {driver: len(driver.calls) for driver in fake_node.drivers}
    await fake_node.start()
    undoing = {"detach", "remove_snapshot", "delete", "kill"}
    for driver, before in asked.items():
        assert undoing.isdisjoint(driver.hooks_called[before:])
    aside = [one for one in fake_node.now.store.quarantined() if one[0] == "ledger"]
    assert len(aside) == 5 * len(rows) - 4  # contents are looked at only when they are undone, if there is an owner
    await fake_node.now.pods.remove(pod)
    assert (foreign / "file").read_text() == "theirs"
    assert fake_node.machine.mounts == [foreign]
    assert fake_node.now.store.ledger.entries() == []
