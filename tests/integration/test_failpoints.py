"""A few of the failpoints of ``make chaos``: the daemon dies there, or the act fails, and nothing is left or lost.

Those that have found something are here for good. Points are named in ``chaos.failpoints --list``.
"""

from collections import Counter
from collections.abc import Iterator

import pytest

from chaos.failing_daemon import AFTER, BEFORE, SPAWN, Plan
from chaos.failpoints import FAIL, FailingNode, failing_node, take_before, try_point
from chaos.lives import LIVES

POD, PULL = "bridge pod, runc, overlay", "pull and removal, overlay"
ADOPTION = "adoption from containerd, overlay"
STORAGE = "root/plugins/snapshotter/overlay/snapshots"
POINTS = [
    (POD, Plan("sqlite INSERT OR REPLACE INTO pods ready", 1, BEFORE)),
    (
        POD,
        Plan(f"{SPAWN} conmon --cid --cuuid --bundle --persist-dir --full-attach --log-level warning", 1, AFTER),
    ),
    (POD, Plan("sqlite INSERT OR REPLACE INTO containers running", 1, BEFORE)),
    (POD, Plan("os.unlink run/rt/runc-bridge-overlay.runc/state/ID/exec.fifo", 1, BEFORE)),
    (POD, Plan("sqlite INSERT OR REPLACE INTO pods not-ready", 1, BEFORE)),
    (PULL, Plan(f"os.rename {STORAGE}/unfinished/#-X -> {STORAGE}/layers/#", 1, AFTER)),
    (POD, Plan("Channel.send_batch nftables._commit", 2, BEFORE, FAIL)),
    (POD, Plan("os.unlink run/rt/runc-bridge-overlay.runc/state/ID", 1, BEFORE, FAIL)),
    (PULL, Plan("os.fsync files.sync", 1, BEFORE, FAIL)),
    (ADOPTION, Plan("os.rename root/content/blobs/sha#/.ID.X.tmp -> root/content/blobs/sha#/ID", 2, AFTER)),
    (ADOPTION, Plan("os.sendfile content._duplicate", 2, BEFORE, FAIL)),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FailingNode]:
    with failing_node(tmp_path_factory.mktemp("failpoints")) as made:
        yield made


@pytest.fixture(scope="module")
def before(table: FailingNode) -> "Counter[str]":
    return take_before(table, LIVES[POD], LIVES[PULL], LIVES[ADOPTION])


@pytest.mark.parametrize(("life", "plan"), POINTS, ids=str)
def test_nothing_is_left_and_nothing_lost(life: str, plan: Plan, table: FailingNode, before: "Counter[str]") -> None:
    reached, wrong = try_point(table, LIVES[life], plan, before)
    assert reached, "no such act: see chaos.failpoints --list"
    assert wrong == []
