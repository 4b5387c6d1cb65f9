"""A container that writes lines as fast as it can; every one must be in the log."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.client import container_request, forget_pod
from bench.endpoints import Endpoint
from bench.scenarios.node import Bench
from crinoid.core.cri.wire import api_pb2 as cri

LINE = b"7".rjust(99, b"0")
_BLOCK_MB = 4
_SCRIPT = """
yes $(printf %099d 7) | head -c {bytes} > /tmp/lines
for n in $(seq {times}); do dd if=/tmp/lines bs=64k 2>/dev/null; done
"""


def turns(bench: Bench) -> Iterator[Any]:
    """One container a turn; the first turn is small, and warms up."""
    yield partial(write_lines, megabytes=_BLOCK_MB, warming=True)
    for _ in range(1 if bench.quick else 3):
        yield partial(write_lines, megabytes=bench.log_mb)


def write_lines(bench: Bench, endpoint: Endpoint, megabytes: int, warming: bool = False) -> None:
    """Time from StartContainer until the container is said to have ended; then read the log."""
    request = bench.request(endpoint)
    pod = bench.run(endpoint, request)
    script = _SCRIPT.format(bytes=_BLOCK_MB * 1_000_000, times=megabytes // _BLOCK_MB)
    creation = container_request(pod[0], request, bench.images["busybox"], "sh", "-c", script)
    container = endpoint.client.call("CreateContainer", creation).container_id
    with bench.results.ignored(warming), bench.results.timed("logging", endpoint.name):
        endpoint.client.call("StartContainer", cri.StartContainerRequest(container_id=container))
        status = wait_exit(endpoint, container)
    log = Path(status.log_path)
    found, wanted = count_lines(log), megabytes * 10_000
    bench.remove(endpoint, pod)
    log.unlink(missing_ok=True)
    forget_pod(request)
    if status.exit_code or found != wanted:
        bench.results.samples.get("logging", {}).pop(endpoint.name, None)
        raise AssertionError(f"exit code {status.exit_code}, {found:,} of {wanted:,} lines are in the log")


def wait_exit(endpoint: Endpoint, container: str, timeout_s: float = 120) -> Any:
    """Wait until a container has ended; return its status."""
    request, deadline = cri.ContainerStatusRequest(container_id=container), time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = endpoint.client.call("ContainerStatus", request).status
        if status.state == cri.CONTAINER_EXITED:
            return status
        time.sleep(0.01)
    raise TimeoutError(f"container {container} runs on after {timeout_s:g} s")


def count_lines(log: Path) -> int:
    """Count the lines of a log after partial ones (tag P) are joined; each must be what was written."""
    count, pending = 0, b""
    with log.open("rb") as file:
        for line in file:
            _, _, tag, text = line.rstrip(b"\n").split(b" ", 3)
            pending += text
            if tag == b"F":
                if pending != LINE:
                    raise AssertionError(f"a line was {pending[:200]!r}")
                count, pending = count + 1, b""
    return count
