"""The verb top: the processes of a container, as the kernel shows them to this host.

They are those in the cgroup of the container's first process, whose id any runtime tells in its verbose status; no
program in the container is needed.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from crinoid.core.api.errors import FailedPrecondition, Unsupported
from crinoid.core.cli.ctl.completion import CONTAINER
from crinoid.core.cli.ctl.directory import find_container
from crinoid.core.cli.ctl.figures import format_size
from crinoid.core.cli.ctl.flags import TABLE, output
from crinoid.core.cli.ctl.json_documents import print_document, unfold
from crinoid.core.cli.ctl.session import Session, in_session
from crinoid.core.cli.tables import print_table

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its id on the host and in the container, its owner on the host, and what it has used so far."""

    pid: int
    container_pid: int
    user: int
    threads: int
    memory_bytes: int
    cpu_s: float
    age_s: float
    command: str


@click.command()
@click.argument("container", type=CONTAINER)
@output()
@in_session
async def top(session: Session, container: str, output: str) -> None:
    """Show the processes of a container; `stats` shows what it uses as a whole."""
    found = await find_container(session, container)
    answer = await session.ask("ContainerStatus", {"container_id": found["id"], "verbose": True})
    if answer["status"]["state"] != "CONTAINER_RUNNING":
        raise FailedPrecondition(f"container {found['id']} does not run")
    details: Any = {name: unfold(text) for name, text in answer["info"].items()}
    pid = details.get("pid") or (details.get("info") or {}).get("pid")
    if not pid:
        raise Unsupported("the endpoint does not say which process is the container's first")
    processes = await asyncio.to_thread(list_processes, int(pid))
    if output != TABLE:
        print_document([{name: getattr(one, name) for name in Process.__slots__} for one in processes], output)
        return
    titles = ("PID", "IN CONTAINER", "USER", "THREADS", "MEM", "CPU TIME", "AGE", "COMMAND")
    print_table(titles, [_make_row(one) for one in processes])


VERBS = (top,)


def list_processes(pid: int, proc: Path = _PROC) -> list[Process]:
    """Return the processes of the cgroup that one is in, and of those below. Raises FailedPrecondition without one."""
    cgroups = _cgroups(proc / str(pid))
    if not cgroups:
        raise FailedPrecondition(f"process {pid} is not on this host: `top` works where the container runs")
    uptime_s = float((proc / "uptime").read_text().split()[0])
    return [one for entry in _entries(proc) if _is_below(_cgroups(entry), cgroups) and (one := _read(entry, uptime_s))]


def _entries(proc: Path) -> Iterator[Path]:
    yield from sorted((entry for entry in proc.iterdir() if entry.name.isdecimal()), key=lambda entry: int(entry.name))


def _cgroups(entry: Path) -> dict[str, str]:
    """Return the path of each hierarchy, but for the root, which everybody is in; nothing for one that is gone."""
    try:
        lines = (line.split(":", 2) for line in (entry / "cgroup").read_text().splitlines())
        return {hierarchy: path for hierarchy, _, path in lines if path != "/"}
    except OSError:
        return {}


def _is_below(mine: dict[str, str], theirs: dict[str, str]) -> bool:
    return all(f"{mine.get(hierarchy, '')}/".startswith(f"{path}/") for hierarchy, path in theirs.items())


def _read(entry: Path, uptime_s: float) -> Process | None:
    """Read one process; ``None`` when it has gone meanwhile."""
    try:
        status = dict(
            line.split(":\t", 1)
            for line in (entry / "status").read_text(errors="replace").splitlines()
            if ":\t" in line
        )
        fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    command = " ".join(words).strip() or f"[{status['Name'].strip()}]"
    return Process(
        pid=int(entry.name),
        container_pid=int(status["NSpid"].split()[-1]),
        user=int(status["Uid"].split()[0]),
        threads=int(status["Threads"]),
        memory_bytes=int(status.get("VmRSS", "0").split()[0]) * 1024,
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
        age_s=uptime_s - int(fields[19]) / _TICKS,
        command="".join(letter if letter.isprintable() else "?" for letter in command),
    )


def _make_row(process: Process) -> tuple[str, ...]:
    return (
        str(process.pid),
        str(process.container_pid),
        str(process.user),
        str(process.threads),
        format_size(process.memory_bytes),
        _format_clock(process.cpu_s),
        _format_clock(process.age_s),
        process.command,
    )


def _format_clock(seconds: float) -> str:
    """Tell a time as ``H:MM:SS``."""
    clock = time.gmtime(max(0.0, seconds))
    return f"{int(seconds) // 3600}:{clock.tm_min:02}:{clock.tm_sec:02}"
