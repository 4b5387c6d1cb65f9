"""What the agent reads of a cgroup in the guest, as crinoid's figures: the files of cgroup v2, each below its name."""

import re
import time

from crinoid.core.api.values.stats import CgroupUsage

_SECTION = re.compile(r"^\[([a-z.]+)\]\n", re.MULTILINE)


def read_usage(text: str) -> CgroupUsage:
    """Read ``[cpu.stat]``, ``[memory.current]`` … What the guest's kernel does not tell counts nothing."""
    parts = _SECTION.split(text)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    cpu, memory = _figures(found.get("cpu.stat", "")), _figures(found.get("memory.stat", ""))
    used = _number(found.get("memory.current", "")) or 0
    return CgroupUsage(
        timestamp_ns=time.time_ns(),
        cpu_ns=cpu.get("usage_usec", 0) * 1000,
        memory_usage_bytes=used,
        memory_working_set_bytes=max(used - memory.get("inactive_file", 0), 0),
        memory_rss_bytes=memory.get("anon", 0),
        memory_limit_bytes=_number(found.get("memory.max", "")),
        page_faults=memory.get("pgfault", 0),
        major_page_faults=memory.get("pgmajfault", 0),
        swap_usage_bytes=_number(found.get("memory.swap.current", "")),
        pids=_number(found.get("pids.current", "")) or 0,
    )


def _figures(lines: str) -> dict[str, int]:
    words = (line.split() for line in lines.splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None
