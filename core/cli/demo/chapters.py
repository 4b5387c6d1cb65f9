"""The story itself: each chapter asks the node for something, tells what came back, and shows that it is so."""

import json
import shlex
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from crinoid.core.api.linux import process
from crinoid.core.cli.demo import image as demo_image
from crinoid.core.cli.demo import registry
from crinoid.core.cli.demo.host import call, fetch, listening
from crinoid.core.cli.demo.node import GREETING, POD, Node, Pod, scripts, wait_for
from crinoid.core.cli.demo.stage import Stage
from crinoid.core.cli.demo.story import Story
from crinoid.core.cli.demo.traces import KINDS, Traces

Statuses = Mapping[str, Mapping[str, Any]]
"""What ContainerStatus tells of each container, by name."""

LAYOUT_IMAGE = "demo.example/busybox:1"
_DRIVERS = {"runtime": "demo", "network": "default", "snapshotter": "default"}


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays: the voice, the place, the node, and the book of traces."""

    story: Story
    stage: Stage
    node: Node
    traces: Traces


async def tell(cast: Cast) -> None:
    """Tell the whole story; raise NotAsTold at the first line that is not true."""
    async with registry.running_registry(cast.stage.directory / "registry") as host:
        image = f"{host}/demo/busybox:1"
        await open_node(cast, host)
        await pull_both_ways(cast, image)
        pod = await run_pod(cast, image)
        await let_them_talk(cast, pod)
        await look_inside(cast, pod)
        await kill_the_daemon(cast, pod, image)
        await swap_runtime(cast, pod, image)
        await swap_network(cast, image)
        await swap_snapshotter(cast, image)
    await leave_nothing(cast)


async def open_node(cast: Cast, registry_host: str) -> None:
    """Start the daemon."""
    story, stage, daemon = cast.story, cast.stage, cast.node.daemon
    story.chapter(
        "A node of its own", "A daemon with its own root, socket, pod network and cgroup; defaults otherwise."
    )
    stage.write_files(registry_host)
    story.ask(f"crinoid serve --config {stage.config}")
    await daemon.start()
    version = await daemon.call("Version")
    story.answer(f"{version['runtime_name']} {version['runtime_version']}, CRI {version['runtime_api_version']}")
    story.ask(f"export CRINOID_ENDPOINT=unix://{stage.socket}; alias ctl='crinoid ctl'")
    story.ask("ctl info")
    status = await daemon.call("Status", {"verbose": True})
    conditions = status["status"]["conditions"]
    story.answer(", ".join(f"{each['type']}: {each['status']}" for each in conditions))
    story.answer(f"drivers: {_tell_drivers(status)}")
    story.show("the node is ready", all(each["status"] for each in conditions), conditions)


async def pull_both_ways(cast: Cast, image: str) -> None:
    """Make the image, and pull it from a registry and from a directory."""
    story, stage, node = cast.story, cast.stage, cast.node
    story.chapter("One image, from two sources", "Debian's busybox in one layer, as an OCI layout on disk.")
    size = demo_image.write_layout(stage.layouts / "busybox", LAYOUT_IMAGE)
    story.answer(f"{stage.layouts}/busybox: one layer of {size} bytes")
    story.ask(f"skopeo copy oci:{stage.layouts}/busybox docker://{image}")
    await registry.push(stage.layouts / "busybox", LAYOUT_IMAGE, image)
    ids = {}
    for reference, source in (
        (image, "docker-registry on loopback"),
        (LAYOUT_IMAGE, "the directory, without any server"),
    ):
        story.ask(f"ctl pull {reference}")
        ids[reference] = await node.pull(reference)
        story.answer(f"{ids[reference][:19]} from {source}")
    names = sorted(name for each in await node.images() for name in each["repo_tags"])
    story.show("both names are one image", len(set(ids.values())) == 1 and names == sorted(ids), names)


async def run_pod(cast: Cast, image: str) -> Pod:
    """Run the pod."""
    story, stage = cast.story, cast.stage
    story.chapter("A pod with two containers", "No pause container: the pod's namespaces are pinned by mounts.")
    for name, script in scripts(stage.port).items():
        story.answer(f"{name}: sh -c {shlex.quote(script)}")
    pod = await _run_pod(cast, image)
    story.show("the pod has an address of its network", ip_address(pod.address) in stage.subnet, pod.address)
    counts = cast.traces.note()
    story.answer("on the host now: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    story.show("the demo finds all that by itself", all(counts.values()), counts)
    return pod


async def let_them_talk(cast: Cast, pod: Pod) -> None:
    """Talk over loopback in the pod, from the host to the pod and from the pod to the host."""
    story, node, stage = cast.story, cast.node, cast.stage
    story.chapter("They talk")
    url = f"http://127.0.0.1:{stage.port}/"
    story.ask(f"ctl exec client wget -q -O - {url}")
    heard = await node.execute(pod.containers["client"], "wget", "-q", "-O", "-", url)
    story.answer(heard.output)
    story.show("the containers reach each other over loopback", heard.output == GREETING, heard)
    story.ask(f"curl http://{pod.address}:{stage.port}/")
    page = await fetch(pod.address, stage.port)
    story.answer(page)
    story.show("the host reaches the pod at its address", page == GREETING, page)
    async with listening(str(stage.gateway)) as port:
        url = f"http://{stage.gateway}:{port}/"
        story.ask(f"ctl exec client wget -q -O - {url}")
        heard = await node.execute(pod.containers["client"], "wget", "-q", "-O", "-", url)
    story.answer(heard.output)
    story.show("the pod reaches the host, which sees the pod's address", pod.address in heard.output, heard)


async def look_inside(cast: Cast, pod: Pod) -> None:
    """Exec, logs, stats."""
    story, node = cast.story, cast.node
    story.chapter("Looking inside")
    web = pod.containers["web"]
    script = "cat /www/index.html; hostname; exit 3"
    story.ask(f"ctl exec web sh -c '{script}'")
    done = await node.execute(web, "sh", "-c", script)
    story.answer([*done.output.splitlines(), f"(exit code {done.exit_code})"])
    told = done.output.splitlines() == [GREETING, POD] and done.exit_code == 3
    story.show("it sees the container's files and the pod's host name; its exit code comes back", told, done)
    story.ask("ctl logs client")
    lines = await node.log(pod.containers["client"])
    story.answer(line.split(" ", 3)[3] for line in lines)
    in_format = [line.split(" ", 1)[1] for line in lines] == [f"stdout F {GREETING}"]
    story.show(f"its file is in the CRI's format: {lines[0]}", in_format, lines)
    story.ask("ctl stats web")
    stats = (await node.daemon.call("ContainerStats", {"container_id": web}))["stats"]
    cpu = int(stats["cpu"]["usage_core_nano_seconds"]["value"])
    memory = int(stats["memory"]["working_set_bytes"]["value"])
    written = int(stats["writable_layer"]["used_bytes"]["value"])
    story.answer(f"CPU {cpu / 1e6:.1f} ms, memory {memory / 1024:.0f} KiB, written {written / 1024:.0f} KiB")
    story.show("it used processor, memory and disk", min(cpu, memory, written) > 0, stats)


async def kill_the_daemon(cast: Cast, pod: Pod, image: str) -> None:
    """Kill the daemon, let a container end meanwhile, and start again."""
    story, node, stage = cast.story, cast.node, cast.stage
    story.chapter("The daemon is killed, the pod is not", "A third container, brief, ends with 7 once it was called.")
    script = f"echo bye | nc -l -p {stage.call_port}; echo called; exit 7"
    brief = await node.run_container(pod.id, "brief", image, script)
    before = await _statuses(node, pod)
    story.ask(f"kill -9 {node.daemon.pid}")
    await node.daemon.kill()
    page = await fetch(pod.address, stage.port)
    story.show("with no daemon the pod serves on", page == GREETING, page)
    story.ask(f"nc {pod.address} {stage.call_port}")
    story.answer(await wait_for("calling brief", lambda: call(pod.address, stage.call_port)))
    story.ask(f"crinoid serve --config {stage.config}")
    await node.daemon.start()
    await _show_survival(cast, pod, brief, before)
    done = await node.execute(pod.containers["client"], "hostname")
    story.show("exec works as before", done.output == POD, done)
    cast.traces.note()


async def _show_survival(cast: Cast, pod: Pod, brief: str, before: Statuses) -> None:
    """Show that the containers are those of before, and that what happened while no daemon ran is known."""
    story, node = cast.story, cast.node
    ended = await wait_for("the end of brief", lambda: _ended(node, brief))
    after = await _statuses(node, pod)
    story.ask("ctl ps --all")
    story.answer(f"{name:8}{each['state']}" for name, each in after.items())
    story.answer(f"{'brief':8}{ended['state']} {ended['exit_code']}")
    kept = all(
        each["state"] == "CONTAINER_RUNNING" and each["started_at"] == before[name]["started_at"]
        for name, each in after.items()
    )
    story.show("the containers never stopped", kept, after)
    log = [line.split(" ", 3)[3] for line in await node.log(brief)]
    known = (ended["exit_code"], log) == (7, ["called"])
    story.show("the one that ended meanwhile has its exit code and its log", known, (ended, log))


async def swap_runtime(cast: Cast, pod: Pod, image: str) -> None:
    """Run the same pod with crun."""
    story, node = cast.story, cast.node
    story.chapter("The same pod with another runtime", "One line of the configuration, and a restart.")
    story.ask("ctl stop --timeout 10 web client")
    for each in pod.containers.values():
        await node.stop(each)
    codes = {name: (await node.status(each))["exit_code"] for name, each in pod.containers.items()}
    story.show("the containers ended politely", set(codes.values()) == {0}, codes)
    await _restart_with(cast, 'driver = "runc"', 'driver = "crun"')
    other = await _run_pod(cast, image)
    programs = _runtimes_of(other.containers["web"])
    story.show("its containers were made by crun", programs == {"crun"}, programs)
    await _check_pod(cast, other)


async def swap_network(cast: Cast, image: str) -> None:
    """Run the same pod on the host's network."""
    story, node = cast.story, cast.node
    story.chapter("The same pod on another network")
    await _restart_with(cast, 'network = "default"', 'network = "host"')
    pod = await _run_pod(cast, image)
    inside = (await node.execute(pod.containers["web"], "readlink", "/proc/self/ns/net")).output
    host = str(_host_namespace())
    story.show("it has the host's network namespace", inside == host, (inside, host))
    await _check_pod(cast, pod)


async def swap_snapshotter(cast: Cast, image: str) -> None:
    """Run the same pod on plain copies."""
    story, node = cast.story, cast.node
    story.chapter("The same pod with another snapshotter")
    await _restart_with(cast, 'snapshotter = "default"', 'snapshotter = "native"')
    pod = await _run_pod(cast, image)
    mounted = (await node.execute(pod.containers["web"], "grep", " / ", "/proc/mounts")).output.splitlines()[-1]
    story.show("its root is a plain copy, no overlay", "overlay" not in mounted, mounted)
    await _check_pod(cast, pod)


async def leave_nothing(cast: Cast) -> None:
    """Remove all, and look for what is left."""
    story, node, stage = cast.story, cast.node, cast.stage
    story.chapter("Nothing is left")
    story.ask("ctl rmp --all --force; ctl rmi --all")
    await node.remove_all()
    await node.remove_images()
    story.show("no pod and no image", not await node.images(), await node.images())
    story.ask(f"kill {node.daemon.pid}")
    code = await node.daemon.stop()
    story.show("the daemon ends with 0", code == 0, code)
    ledger = _read_ledger(stage.root / "state.db")
    story.show("its ledger of host resources is empty", not ledger, ledger)
    story.ask(f"ip link delete {stage.bridge}")
    story.answer("CNI's bridge plugin leaves its bridge to the node; here the demo is the node")
    await process.run_checked(("ip", "link", "delete", stage.bridge), timeout_s=10)
    left = cast.traces.left()
    for kind in KINDS:
        ever = {trace.name for trace in cast.traces.seen if trace.kind == kind}
        still = [trace for trace in left if trace.kind == kind]
        story.show(f"{kind}: {len(ever)} seen, none left", not still and bool(ever), still)
    held = stage.held_addresses()
    story.show("addresses of the pod network: none is taken", not held, held)


async def _run_pod(cast: Cast, image: str) -> Pod:
    """Run the pod of the story, and tell of it."""
    story, node = cast.story, cast.node
    story.ask(f"ctl runp, create and start: pod {POD}, containers web and client")
    pod = await node.run_pod(image)
    await wait_for("the greeting in the log of client", lambda: node.log(pod.containers["client"]))
    states = {name: status["state"] for name, status in (await _statuses(node, pod)).items()}
    story.answer(f"pod {pod.id[:13]} at {pod.address}")
    story.answer(f"container {each[:13]} {name}: {states[name]}" for name, each in pod.containers.items())
    story.show("both containers run", set(states.values()) == {"CONTAINER_RUNNING"}, states)
    return pod


async def _check_pod(cast: Cast, pod: Pod) -> None:
    """Show that a swapped pod does as the first one did, and remember its traces."""
    story, node, stage = cast.story, cast.node, cast.stage
    lines = [line.split(" ", 3)[3] for line in await node.log(pod.containers["client"])]
    story.show("the containers reach each other over loopback", lines == [GREETING], lines)
    page = await fetch(pod.address, stage.port)
    story.show(f"the host reaches the pod at {pod.address}", page == GREETING, page)
    cast.traces.note()


async def _restart_with(cast: Cast, old: str, new: str) -> None:
    """Remove the pods, change one line of the configuration, and start the daemon anew."""
    story, stage, node = cast.story, cast.stage, cast.node
    await node.remove_all()
    await node.daemon.stop()
    number = stage.change_line(old, new)
    story.ask(f"edit {stage.config.name}, line {number}")
    story.answer((f"- {old}", f"+ {new}"))
    await node.daemon.start()


async def _statuses(node: Node, pod: Pod) -> Statuses:
    return {name: await node.status(container) for name, container in pod.containers.items()}


async def _ended(node: Node, container: str) -> dict[str, Any]:
    """Return a container's status once it has ended, before that nothing."""
    status = await node.status(container)
    return status if status["state"] == "CONTAINER_EXITED" else {}


def _tell_drivers(status: Mapping[str, Any]) -> str:
    """Name the drivers behind the slots that the demo's pods use."""
    slots = {(slot["role"], slot["slot"]): slot["driver"] for slot in json.loads(status["info"]["slots"])}
    return ", ".join(f"{role} {slots[role, slot]}" for role, slot in _DRIVERS.items())


def _command_lines() -> list[str]:
    return [
        path.read_bytes().replace(b"\0", b" ").decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline")
    ]


def _runtimes_of(container: str) -> set[str]:
    """Which of the two its monitor was given to run: as a file, or as a sealed copy of it in memory."""
    words = [word for line in _command_lines() if container in line for word in line.split()]
    paths = [Path(word.removeprefix("--runtime-arg=")) for word in words]
    files = [path.readlink() if path.is_symlink() else path for path in paths]
    return {path.name.removeprefix("memfd:").removesuffix(" (deleted)") for path in files} & {"runc", "crun"}


def _host_namespace() -> Path:
    return Path("/proc/self/ns/net").readlink()


def _read_ledger(database: Path) -> list[tuple[str, ...]]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return list(connection.execute("SELECT owner, kind, key FROM ledger"))
