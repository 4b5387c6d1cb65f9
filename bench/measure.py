"""Samples: time of calls, memory and CPU of processes, and what the rest of the machine did meanwhile."""

import os
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Samples:
    """Values of one figure of one endpoint, in the figure's unit."""

    values: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Return least, median and 95th percentile."""
        ordered = sorted(self.values)
        last = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        return {"min": ordered[0], "median": statistics.median(ordered), "p95": last, "n": len(ordered)}


@contextmanager
def timed(samples: Samples, unit_s: float = 0.001) -> Iterator[None]:
    """Add the time that the block takes, in milliseconds unless told otherwise."""
    began = time.perf_counter()
    yield
    samples.values.append((time.perf_counter() - began) / unit_s)


def pss_mib(pids: Iterable[int]) -> float:
    """Return the proportional set size of processes, shared pages counted once; those that ended count nothing."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU time that processes and their reaped children took so far."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(fields[index]) for index in (11, 12, 13, 14))
    return total / _TICK


def machine_cpu_s() -> float:
    """Return the CPU time that everything on the machine took so far."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / _TICK


def command_lines() -> dict[int, str]:
    """Return the command line of every process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def settle() -> None:
    """Write out what is dirty and drop the page cache, so that each pull starts alike."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
