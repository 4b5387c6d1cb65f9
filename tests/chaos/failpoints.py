"""Kills the daemon, or makes an act fail, at each irreversible act of scripted lives: nothing may be left or lost.

By hand, as root: ``PYTHONPATH=tests .venv/bin/python -m chaos.failpoints``; ``--life WORDS`` some lives, ``--fail``
acts that fail in place of kills, ``--point WORDS`` some points, ``--list`` only names them, ``--most N`` at most so
many of each life, ``--workers N`` on so many nodes at a time, ``--results FILE`` without those that this file has for
the code as it is. A life is led once to learn its acts; then again for each of them, with the daemon killed there (and
the programs that it runs; monitors and containers live on), started anew and asked again. Then the host is as it was,
no record lies, and a container that ran before runs.
"""

import argparse
import contextlib
import os
import queue
import random
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chaos import inventory
from chaos.failing_daemon import AFTER, BEFORE, KILL, KILL_ALONE, VARIABLE, Plan
from chaos.forked_daemon import ForkedDaemon
from chaos.lives import FORMER, LIVES, TWO, VOLUMES, Kubelet, Life
from chaos.results import Result, Results
from integration.conftest import BUSYBOX, Node, configuration, write_conflist
from support import cgroup_namespace, network_namespace
from support.former import write_containerd
from support.images import Entry, ImageConfig, build_busybox
from support.patience import patient
from support.registry import RunningRegistry

FAIL = "fail"
_UNCLEAR = "see crinoid's log"
_SETTLE_S = 10.0
"""How long what is undone in the background may take."""
_NODES = 20
"""How many nodes a worker uses up for a life at most."""
_NEVER_FAILS = ("os.kill", "signal.", "os.write")
"""Acts that are only killed at: the kernel has no such answer for them, or it is nobody's to hear."""


@dataclass
class FailingNode:
    """A node under test, with a container that has run all the time."""

    node: Node
    points: Path
    witness: str = ""
    witness_pid: int = 0

    def lead(self, life: Life, plan: Plan | None = None) -> Kubelet:
        """Lead a life with a plan to the end."""
        kubelet = Kubelet(self.node, self.points, plan)
        life(kubelet)
        kubelet.revive()  # a kill may have come after the last answer
        (self.points / "plan").unlink(missing_ok=True)
        return kubelet

    def wrong(self, before: "Counter[str]") -> list[str]:
        """Say what is not as it was, and what records say that is not so."""
        deadline = time.monotonic() + patient(_SETTLE_S)
        while (found := inventory.compare(before, inventory.take(self.node.daemon))) and time.monotonic() < deadline:
            time.sleep(patient(0.2))
        found += inventory.lies(self.node)
        status = self.node.status(self.witness)
        if status["state"] != "CONTAINER_RUNNING" or not Path(f"/proc/{self.witness_pid}").exists():
            found.append(f"lost: the container that ran is {status}")
        return found


@contextlib.contextmanager
def failing_node(directory: Path) -> Iterator[FailingNode]:
    """Run a failing daemon in a network namespace of its own; at its end nothing is left."""
    points, layouts = directory / "points", directory / "layouts"
    points.mkdir(parents=True)
    build_busybox(layouts / "busybox", BUSYBOX)
    large = [Entry(path=f"extra{number}", content=random.Random(number).randbytes(1 << 20)) for number in range(4)]
    build_busybox(layouts / "two", TWO, extra=[Entry(path="bin/.wh.nc"), *large])
    build_busybox(layouts / "volumes", VOLUMES, ImageConfig(volumes=("/data",)))
    former = build_busybox(directory / "other", FORMER, extra=[Entry(path="former", content=large[0].content)])
    write_containerd(directory / "former", {FORMER: former})
    bridge = f"crt{secrets.token_hex(3)}"
    write_conflist(directory / "net.d", bridge, "10.89.3.0/24", directory / "ipam")
    with network_namespace.held() as network, cgroup_namespace.held() as prefix:
        prefix = (*network.prefix, *prefix)
        config = configuration(layouts, "127.0.0.1:1", directory / "net.d")
        tests = str(Path(__file__).parents[1])
        environment = {VARIABLE: str(points), "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', tests)}"}
        daemon = ForkedDaemon(directory / "daemon", config, prefix, environment=environment)
        try:
            daemon.start()
            node = Node(daemon, layouts, RunningRegistry("127.0.0.1:1"), bridge, directory / "logs")
            for handler in ("runc-host-overlay", "crun-host-native"):
                for image in (BUSYBOX, VOLUMES):
                    node.call("PullImage", image={"image": image, "runtime_handler": handler})
            for handler in ("runc-cni-overlay", "crun-bridge-native"):  # what the first pod of a network makes, stays
                node.call("RemovePodSandbox", pod_sandbox_id=node.run_pod("first", handler))
            pod = node.run_pod("witness", "crun-bridge-overlay")
            witness = node.run_container(pod, "sleep", "100000", name="witness")
            yield FailingNode(node, points, witness, _pid(node, witness))
            node.remove_pods()
            daemon.clean()
            assert daemon.leftovers() == []
        finally:
            daemon.end()


def _pid(node: Node, container: str) -> int:
    import json

    return int(json.loads(node.call("ContainerStatus", container_id=container, verbose=True)["info"]["info"])["pid"])


def enumerate_points(hits: list[str], act: str) -> list[Plan]:
    """Name the points of a life: the first, the second and the last act of each name, before and after it."""
    plans = []
    for name, count in Counter(hits).items():
        if act == FAIL and name.startswith(_NEVER_FAILS):
            continue
        for number in sorted({1, min(2, count), count}):
            plans += [Plan(name, number, when, act) for when in ((BEFORE,) if act == FAIL else (BEFORE, AFTER))]
    return plans


def try_point(table: FailingNode, life: Life, plan: Plan, before: "Counter[str]") -> tuple[bool, list[str]]:
    """Lead a life with one failure; return whether it came, and what is wrong afterwards."""
    try:
        kubelet = table.lead(life, plan)
        try:
            found = table.wrong(before)
        except Exception:
            if not kubelet.revive():  # what is removed in the background may be what kills, while the host is looked at
                raise
            found = table.wrong(before)
    except Exception as error:  # noqa: BLE001  # whatever it is, the next point is to be tried as well
        (table.points / "plan").unlink(missing_ok=True)
        where = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]
        return True, [f"the life did not go on: {type(error).__name__} in {where}: {str(error)[:1500]}"]
    unclear = [f"unclear: {code} {text}" for code, text in kubelet.errors if code == "UNKNOWN" or _UNCLEAR in text]
    if unclear:
        unclear.append(table.node.daemon.log.read_text(errors="replace").rpartition("Traceback")[2][:3000])
    return kubelet.reached, found + unclear


@dataclass(frozen=True)
class Choice:
    """Which points are tried: ``act`` at each, ``only`` those whose name has these words, at most ``most`` a life."""

    act: str
    only: str = ""
    most: int = 0
    workers: int = 1

    def plans(self, hits: list[str]) -> list[Plan]:
        """Those of the points of a life."""
        plans = [plan for plan in enumerate_points(hits, self.act) if self.only in plan.name]
        if self.most and len(plans) > self.most:
            plans = plans[:: -(-len(plans) // self.most)]
        return plans


def run(names: list[str], choice: Choice, results: Results) -> int:
    """Lead all lives; print what is wrong, and return how many points were."""
    with tempfile.TemporaryDirectory(prefix="crinoid-chaos-", dir="/var/tmp") as directory:
        return sum(_run_life(Path(directory), name, choice, results) for name in names)


def list_points(names: list[str], choice: Choice) -> None:
    """Name the points, and try none."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="crinoid-chaos-", dir="/var/tmp") as directory:
            hits = _hits(Path(directory), name)
            print(f"{name}: {len(hits)} acts of {len(set(hits))} names", *choice.plans(hits), sep="\n  ")


def take_before(table: FailingNode, *lives: Life) -> "Counter[str]":
    """The inventory between two lives. The first of each kind has more to do: things that stay."""
    for life in lives:
        table.lead(life)
    time.sleep(patient(1))  # the kernel removes links in the background, and only then their addresses are given back
    return inventory.take(table.node.daemon)


def _hits(directory: Path, name: str) -> list[str]:
    """Learn the acts of a life, which without any failure leaves nothing."""
    with failing_node(directory / secrets.token_hex(2)) as table:
        before = take_before(table, LIVES[name])
        hits = table.lead(LIVES[name]).hits()
        if unstable := table.wrong(before):
            raise AssertionError(f"{name}: without any failure it leaves {unstable}")
    return hits


def _run_life(directory: Path, name: str, choice: Choice, results: Results) -> int:
    """Try the points of a life that have no result yet, each worker on nodes of its own; count what is wrong."""
    if results.interrupted.is_set():
        return 0
    hits = _hits(directory, name)
    points = [Point(name, plan, results) for plan in choice.plans(hits)]
    known = [point.known for point in points if point.known]
    open_points = queue.SimpleQueue[Point]()
    for point in points:
        if not point.known and not results.interrupted.is_set():
            open_points.put(point)
    began = time.monotonic()
    with ThreadPoolExecutor(choice.workers) as threads:
        working = [threads.submit(_work, directory, name, open_points) for _ in range(choice.workers)]
    tried = [result for one in working for result in one.result()]
    found = [*known, *tried]
    bad = sum(bool(result["wrong"]) for result in found)
    print(
        f"{name}: {len(hits)} acts of {len(set(hits))} names; {len(found)} of {len(points)} {choice.act} points tried,"
        f" {sum(not result['reached'] for result in found)} not met, {bad} wrong;"
        f" {len(tried)} of them now, in {time.monotonic() - began:.0f} s; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return bad


@dataclass(frozen=True)
class Point:
    """One failure in one life, and its place in the results."""

    life: str
    plan: Plan
    results: Results

    @property
    def known(self) -> Result | None:
        """What came of it in an earlier run."""
        return self.results.known.get((self.life, str(self.plan)))

    def note(self, reached: bool, wrong: list[str]) -> Result:
        """Keep what came of it."""
        return self.results.add(self.life, str(self.plan), reached, wrong)


def _work(directory: Path, name: str, points: "queue.SimpleQueue[Point]") -> list[Result]:
    """Try one point after the other on a node; on another node where one could not be put in order."""
    tried: list[Result] = []
    for _ in range(_NODES):
        try:
            with failing_node(directory / secrets.token_hex(3)) as table:
                _work_on(table, LIVES[name], points, tried)
        except Exception as error:  # noqa: BLE001  # the others are to be tried as well
            print(f"      {name}: a node is given up: {type(error).__name__}: {str(error)[:3000]}", flush=True)
        if points.empty():
            break
    return tried


def _work_on(table: FailingNode, life: Life, points: "queue.SimpleQueue[Point]", tried: list[Result]) -> None:
    before = take_before(table, life)
    while True:
        try:
            point = points.get_nowait()
        except queue.Empty:
            return
        if point.results.interrupted.is_set():
            continue
        reached, wrong = try_point(table, life, point.plan, before)
        tried.append(point.note(reached, wrong))
        if not reached:  # acts at the same time come in another order at times, or fewer
            print(f"      not met in {point.life}: {point.plan}", flush=True)
        if wrong:
            print(f"WRONG {point.life}: {point.plan}", *wrong[:12], sep="\n      ", flush=True)
            _start_over(table, life, before)


def _start_over(table: FailingNode, life: Life, before: "Counter[str]") -> None:
    """Put a node in order after something went wrong, so that the next point is judged by itself."""
    if table.node.daemon.process is not None and table.node.daemon.process.poll() is not None:
        table.node.daemon.start()
    for pod in table.node.call("ListPodSandbox")["items"]:
        if pod["metadata"]["name"] != "witness":
            table.node.call("RemovePodSandbox", pod_sandbox_id=pod["id"])
    for image in (TWO, FORMER):
        table.node.call("RemoveImage", image={"image": image})
    table.node.daemon.restart()
    table.lead(life)
    left = inventory.compare(before, inventory.take(table.node.daemon))
    before.clear()
    before.update(inventory.take(table.node.daemon))
    if left:
        print("      still there after a restart and another life:", *left[:8], sep="\n        ", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--life", default="", help="lives whose name has these words")
    arguments.add_argument("--point", default="", help="points whose name has these words")
    arguments.add_argument("--fail", action="store_true", help="acts fail in place of kills")
    arguments.add_argument("--alone", action="store_true", help="kill the daemon, and no program that it runs")
    arguments.add_argument("--most", type=int, default=0, help="at most so many points of each life")
    arguments.add_argument("--workers", type=int, default=2, help="how many nodes at a time")
    arguments.add_argument("--results", type=Path, help="a file of results, by which a run is gone on with later")
    arguments.add_argument("--list", action="store_true", help="only name the points")
    options = arguments.parse_args()
    names = [name for name in LIVES if options.life in name]
    act = FAIL if options.fail else KILL_ALONE if options.alone else KILL
    choice = Choice(act, options.point, options.most, options.workers)
    if options.list:
        list_points(names, choice)
        return
    results = Results(options.results)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: results.interrupted.set())
    wrong = run(names, choice, results)
    sys.exit(1 if wrong or results.interrupted.is_set() else 0)


if __name__ == "__main__":
    main()
