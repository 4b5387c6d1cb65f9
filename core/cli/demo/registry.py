"""A real registry for the demo: Debian's ``docker-registry`` on loopback, by plain http, filled by ``skopeo``."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from crinoid.core.api.errors import Unavailable
from crinoid.core.api.linux import process

_LISTENING = re.compile(rb"listening on (127\.0\.0\.1:[0-9]+)")
_START_S = 60.0
_PUSH_S = 120.0


@asynccontextmanager
async def running_registry(directory: Path) -> AsyncIterator[str]:
    """Run a registry over a directory while the context lasts; yield where it listens: the kernel chose the port."""
    log = directory / "registry.log"
    server = _start(directory, log)
    try:
        yield await _find_address(log)
    finally:
        server.kill()
        await server.wait()
        server.close()


async def push(layout: Path, reference: str, target: str) -> None:
    """Copy an image of a layout to the registry."""
    command = ("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false")
    await process.run_checked((*command, f"oci:{layout}:{reference}", f"docker://{target}"), timeout_s=_PUSH_S)


def _start(directory: Path, log: Path) -> process.Process:
    directory.mkdir()
    config = directory / "config.yml"
    document = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
        "http": {"addr": "127.0.0.1:0", "secret": "demo"},
    }
    config.write_text(json.dumps(document))  # JSON is YAML
    with log.open("wb") as output:
        return process.spawn(("docker-registry", "serve", str(config)), fds={1: output.fileno(), 2: output.fileno()})


async def _find_address(log: Path) -> str:
    deadline, said = time.monotonic() + _START_S, b""
    while time.monotonic() < deadline:
        said = await asyncio.to_thread(log.read_bytes)
        if found := _LISTENING.search(said):
            return found[1].decode()
        await asyncio.sleep(0.02)
    raise Unavailable(f"docker-registry did not start within {_START_S:g} s: {said[-1000:].decode()}")
