"""The OCI part asks another monitor than conmon the same, and says nothing to it that only conmon understands."""

import logging
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from crinoid.core.api.host import Host
from crinoid.core.api.values.checkpoint import RestoreRequest
from crinoid.core.api.values.runtime import ContainerHandle, ContainerRequest
from crinoid.plugins.runtimes.binaries.binary import Binary
from crinoid.plugins.runtimes.binaries.bundle import Bundle, Processes
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.monitor.monitor import Monitor
from crinoid.plugins.runtimes.oci import adoption
from crinoid.plugins.runtimes.runc import RuncRuntime

ID = "c1" * 32


class OtherMonitor(Monitor):
    """Starts nothing, and notes what it was asked."""

    name = "other"
    files = ("other.pid",)

    def __init__(self, options: OciOptions, binary: Binary) -> None:
        self.binary = binary
        self.asked: list[tuple[Bundle, ContainerRequest, Path | None]] = []

    async def create(self, bundle: Bundle, request: ContainerRequest, checkpoint: Path | None = None) -> Processes:
        self.asked.append((bundle, request, checkpoint))
        return Processes(0, 0, 0, 0)

    def find(self, bundle: Bundle, is_in_container: Any) -> None:
        return None


OtherMonitor.__abstractmethods__ = frozenset()  # the rest is not asked here


class OtherRuntime(RuncRuntime):
    Monitor = OtherMonitor

    async def check_checkpoint(self) -> None:
        """criu need not work here."""


async def test_another_monitor_restores_from_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "adopt", lambda *_: None)  # it would move this process to the container's cgroup
    runtime = OtherRuntime(OciOptions(), Host("slot", tmp_path, tmp_path, logging.getLogger("slot")))
    monitor = cast(OtherMonitor, runtime._monitor)
    container = ContainerRequest(handle=ContainerHandle(ID, "p1", tmp_path / "bundle", f"/pods/{ID}"), spec={})
    images = tmp_path / "images"
    process = await runtime.restore(RestoreRequest(container=container, images=images, timeout_s=60, former_cgroup=""))
    assert monitor.asked == [(Bundle(container.handle.bundle), container, images)]
    assert process.pid == 0


@pytest.mark.skipif(not shutil.which("runc"), reason="wants runc")
async def test_a_preview_tells_what_the_binary_does_for_a_monitor_that_tells_nothing(tmp_path: Path) -> None:
    runtime = OtherRuntime(OciOptions(shortcuts=False), Host("slot", tmp_path, tmp_path, logging.getLogger("slot")))
    bundle = tmp_path / "bundle"
    (line,) = await runtime.preview(ContainerRequest(handle=ContainerHandle(ID, "p1", bundle, f"/pods/{ID}"), spec={}))
    assert "/runc --root=" in line
    assert line.endswith(f" create --bundle {bundle} --pid-file {bundle}/pid {ID}")
