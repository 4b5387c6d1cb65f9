"""What is read off the machine: time of calls, memory and CPU of processes, and what the rest of the machine did."""

import contextlib
import os
import secrets
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUPS = Path("/sys/fs/cgroup")


def cpu_of(pids: Iterable[int]) -> dict[int, float]:
    """Return the CPU seconds that each process and its reaped children took so far; those that are gone are left out.

    A process's own time is exact to the nanosecond (its CPU clock, clock_getcpuclockid(3)), its children's to a tick.
    """
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = time.clock_gettime((~pid << 3) | 2) + (int(fields[13]) + int(fields[14])) / _TICK
    return found


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Return the CPU seconds between two answers of ``cpu_of``; who ended meanwhile counts with who reaped it."""
    return sum(value - before.get(pid, 0.0) for pid, value in after.items())


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU time that processes and their reaped children took so far."""
    return sum(cpu_of(pids).values())


def memory_mib(pids: Iterable[int]) -> float:
    """Return the memory that is mapped by processes, each page counted once.

    That is the sum of their PSS as it were without anybody else: PSS itself gets less with every other process that
    maps the same files, such as a second daemon of one program, or this one. Without the right to see pages it is PSS.
    """
    frames: set[int] = set()
    known = list(pids)
    for pid in known:
        with contextlib.suppress(OSError):
            frames |= _frames(pid)
    if not frames - {0}:
        return pss_mib(known)
    return len(frames) * _PAGE / (1 << 20)


def pss_mib(pids: Iterable[int]) -> float:
    """Return the proportional set size of processes; those that ended count nothing."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1024


def _frames(pid: int) -> set[int]:
    """Return the numbers of the page frames that a process maps (proc_pid_pagemap(5))."""
    found: set[int] = set()
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        for start, end in _mapped(pid):
            file.seek(start // _PAGE * 8)
            entries = array("Q", file.read((end - start) // _PAGE * 8))
            found |= {entry & ((1 << 55) - 1) for entry in entries if entry >> 63}
    return found


def _mapped(pid: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of addresses that have pages: runtimes reserve far more than they use."""
    bounds = (0, 0)
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if first == "Rss:" and int(rest.split()[0]) and bounds[1] < 1 << 63:  # above lies vsyscall
            yield bounds
        elif not first.endswith(":"):
            low, _, high = first.partition("-")
            bounds = (int(low, 16), int(high, 16))


@dataclass(frozen=True, slots=True)
class Busy:
    """CPU seconds since the machine's start: of all, of the kernel's threads, of this bench, and stolen by the host."""

    machine: float
    kernel: float
    bench: float
    stolen: float


class Witness:
    """Tells what CPU others took: the bench and all it starts are in cgroups of their own, whose use is subtracted."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def look(self, cgroups: Iterable[str]) -> Busy:
        """Return the CPU taken so far; ``cgroups`` are those of the pods."""
        fields = [int(value) / _TICK for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        ours = [self._directory] if self._directory else []
        ours += [_accounting() / cgroup.lstrip("/") for cgroup in cgroups]
        return Busy(sum(fields[:3]) + sum(fields[5:7]), _kernel_s(), sum(map(_used_s, ours)), fields[7])


@contextlib.contextmanager
def witness() -> Iterator[Witness]:
    """Put this process, and so all it starts, into a cgroup of its own until the context ends."""
    directory = _accounting() / f"bench-{secrets.token_hex(3)}"
    home = _accounting() / _own_cgroup().lstrip("/")
    try:
        directory.mkdir()
        (directory / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        yield Witness(None)
        return
    try:
        yield Witness(directory)
    finally:
        with contextlib.suppress(OSError):
            for pid in (directory / "cgroup.procs").read_text().split():
                (home / "cgroup.procs").write_text(pid)
            directory.rmdir()


def _accounting() -> Path:
    """Return the hierarchy that accounts CPU."""
    first = _CGROUPS / "cpuacct"
    return first if first.exists() else _CGROUPS


def _own_cgroup() -> str:
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    found = [path for _, names, path in lines if "cpuacct" in names.split(",")] or [path for _, _, path in lines]
    return found[-1]


def _used_s(cgroup: Path) -> float:
    with contextlib.suppress(OSError):
        return int((cgroup / "cpuacct.usage").read_text()) / 1e9
    with contextlib.suppress(OSError):
        return int((cgroup / "cpu.stat").read_text().split()[1]) / 1e6
    return 0.0


def _kernel_s() -> float:
    """Return the CPU time of the kernel's own threads, children of its second process."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12]) if fields[1] == "2" else 0
    return total / _TICK


def machine_cpu_s() -> float:
    """Return the CPU time that everything on the machine took so far."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / _TICK


def command_lines() -> dict[int, str]:
    """Return the command line of every process."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(directory.name)] = (
                (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
    return found


def descendants(parent: int) -> set[int]:
    """Return all processes below one."""
    children: dict[int, set[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            above = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(above, set()).add(int(path.parent.name))
    found: set[int] = set()
    left = {parent}
    while left:
        left = {child for pid in left for child in children.get(pid, set())} - found
        found |= left
    return found


def settle() -> None:
    """Write out what is dirty and drop the page cache, so that each pull starts alike."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
