"""The verbs of figures: stats and statsp, what containers and pods use, from two readings some time apart; metricsp and
metricdescs, the metrics that the kubelet passes on."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from crinoid.core.cli.ctl.completion import CONTAINER, POD
from crinoid.core.cli.ctl.directory import read_directory
from crinoid.core.cli.ctl.durations import DURATION
from crinoid.core.cli.ctl.figures import format_size, shorten_id
from crinoid.core.cli.ctl.flags import JSON, TABLE, YAML, flag, gather, labels, output
from crinoid.core.cli.ctl.json_documents import print_answer
from crinoid.core.cli.ctl.session import Json, Session, in_session
from crinoid.core.cli.tables import make_table, print_table

_CONTAINER_TITLES = ("CONTAINER", "NAME", "CPU %", "MEM", "DISK", "INODES", "SWAP")
_POD_TITLES = ("POD", "POD ID", "CPU %", "MEM", "RX", "TX", "PIDS")
Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measuring:
    """How to measure: seconds between the two readings, again and again if ``watch``."""

    output: str = TABLE
    seconds: float = 1.0
    watch: bool = False


_measuring = gather(
    "measuring",
    Measuring,
    output(),
    click.option("--seconds", "-s", type=DURATION, default=1.0, help="Time over which the use of CPUs is taken."),
    flag("--watch", "-w", help="Measure until it is interrupted."),
)


@click.command()
@click.argument("container", type=CONTAINER, default="")
@click.option("--id", "container_id", default="", metavar="CONTAINER", help="Only this container.")
@click.option("--pod", "-p", default="", metavar="POD", help="Only containers of this pod.")
@labels()
@flag("--all", "-a", help="Those that don't run too.")
@_measuring
@in_session
async def stats(session: Session, container: str, measuring: Measuring, **wanted: Any) -> None:
    """Show what containers use."""
    directory = await read_directory(session)
    chosen: Json = {"label_selector": dict(wanted["label"])}
    if reference := container or wanted["container_id"]:
        chosen["id"] = directory.find_container(reference)["id"]
    if wanted["pod"]:
        chosen["pod_sandbox_id"] = directory.find_pod(wanted["pod"])["id"]

    async def read() -> list[Json]:
        answer = await session.ask("ListContainerStats", {"filter": chosen})
        return sorted(answer["stats"], key=lambda one: one["attributes"]["id"])

    def write(before: Json, now: Json) -> Row | None:
        return _make_container_row(before, now, wanted["all"])

    await _measure(read, write, _CONTAINER_TITLES, measuring)


@click.command()
@click.argument("pod", type=POD, default="")
@click.option("--id", "pod_id", default="", metavar="POD", help="Only this pod.")
@labels()
@_measuring
@in_session
async def statsp(session: Session, pod: str, measuring: Measuring, **wanted: Any) -> None:
    """Show what pods use."""
    chosen: Json = {"label_selector": dict(wanted["label"])}
    if reference := pod or wanted["pod_id"]:
        chosen["id"] = (await read_directory(session)).find_pod(reference)["id"]

    async def read() -> list[Json]:
        answer = await session.ask("ListPodSandboxStats", {"filter": chosen})
        return sorted(answer["stats"], key=lambda one: one["attributes"]["id"])

    await _measure(read, _make_pod_row, _POD_TITLES, measuring)


@click.command()
@output(JSON, (JSON, YAML))
@click.option("--seconds", "-s", type=DURATION, default=1.0, help="With --watch, the time between two answers.")
@flag("--watch", "-w", help="Show them until it is interrupted.")
@in_session
async def metricsp(session: Session, output: str, seconds: float, watch: bool) -> None:
    """Show the metrics of all pods."""
    print_answer(await session.ask("ListPodSandboxMetrics"), output)
    while watch:
        await asyncio.sleep(seconds)
        print_answer(await session.ask("ListPodSandboxMetrics"), output)


@click.command()
@output(JSON, (JSON, YAML))
@in_session
async def metricdescs(session: Session, output: str) -> None:
    """Show which metrics there are."""
    print_answer(await session.ask("ListMetricDescriptors"), output)


VERBS = (stats, statsp, metricsp, metricdescs)

Read = Callable[[], Awaitable[list[Json]]]
Write = Callable[[Json, Json], Row | None]


async def _measure(read: Read, write: Write, titles: Sequence[str], measuring: Measuring) -> None:
    if measuring.output != TABLE:
        await _print_documents(read, measuring)
    elif measuring.watch:
        await _watch(read, write, titles, measuring.seconds)
    else:
        before = await read()
        await asyncio.sleep(measuring.seconds)
        print_table(titles, _make_rows(write, before, await read()))


async def _print_documents(read: Read, measuring: Measuring) -> None:
    print_answer({"stats": await read()}, measuring.output)
    while measuring.watch:
        await asyncio.sleep(measuring.seconds)
        print_answer({"stats": await read()}, measuring.output)


async def _watch(read: Read, write: Write, titles: Sequence[str], seconds: float) -> None:
    """Draw the table in place until the user has seen enough."""
    from rich.console import Console
    from rich.live import Live

    before = await read()
    with Live(make_table(titles, []), console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(seconds)
            now = await read()
            live.update(make_table(titles, _make_rows(write, before, now)), refresh=True)
            before = now


def _make_rows(write: Write, before: list[Json], now: list[Json]) -> list[Row]:
    """Make a row of each object that is in both readings."""
    older = {one["attributes"]["id"]: one for one in before}
    pairs = ((older[one["attributes"]["id"]], one) for one in now if one["attributes"]["id"] in older)
    return [row for old, new in pairs if (row := write(old, new)) is not None]


def _make_container_row(before: Json, now: Json, with_idle: bool) -> Row | None:
    memory = _number(now, "memory", "working_set_bytes")
    if not with_idle and not memory and not _number(now, "cpu", "usage_core_nano_seconds"):
        return None  # it does not run
    return (
        shorten_id(now["attributes"]["id"]),
        now["attributes"]["metadata"]["name"],
        _tell_cpu(before, now),
        format_size(memory),
        format_size(_number(now, "writable_layer", "used_bytes")),
        str(_number(now, "writable_layer", "inodes_used")),
        format_size(_number(now, "swap", "swap_usage_bytes")),
    )


def _make_pod_row(before: Json, now: Json) -> Row | None:
    linux = now.get("linux", {})
    interface = linux.get("network", {}).get("default_interface", {})
    return (
        now["attributes"]["metadata"]["name"],
        shorten_id(now["attributes"]["id"]),
        _tell_cpu(before.get("linux", {}), linux),
        format_size(_number(linux, "memory", "working_set_bytes")),
        format_size(_number(interface, "rx_bytes")),
        format_size(_number(interface, "tx_bytes")),
        str(_number(linux, "process", "process_count")),
    )


def _tell_cpu(before: Json, now: Json) -> str:
    """Return the use of CPU between two readings, in percent of one CPU."""
    passed_ns = int(now.get("cpu", {}).get("timestamp", 0)) - int(before.get("cpu", {}).get("timestamp", 0))
    used_ns = _number(now, "cpu", "usage_core_nano_seconds") - _number(before, "cpu", "usage_core_nano_seconds")
    return f"{used_ns / passed_ns * 100:.2f}" if passed_ns > 0 else "0.00"


def _number(reading: Mapping[str, Any], *path: str) -> int:
    """Return a wrapped number of a reading, 0 where it was not taken."""
    value: Any = reading
    for name in (*path, "value"):
        value = (value or {}).get(name)
    return int(value or 0)
