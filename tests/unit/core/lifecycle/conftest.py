"""A node over fake drivers and a fake host: real services, records and ledger; nothing of the machine changes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import NoOptions
from crinoid.core.api.testing.fakes import (
    FakeExtension,
    FakeNetwork,
    FakeRegistry,
    FakeRuntime,
    FakeSnapshotter,
    Recorder,
    fake_host,
)
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata, ContainerSecurity
from crinoid.core.api.values.pod import NamespaceMode, NamespaceOptions, PodConfig, PodMetadata
from crinoid.core.cli.trace.machine import FakeMachine
from crinoid.core.config.models import Config, ExtensionSlotConfig, PodsConfig, RuntimeSlotConfig, SlotConfig
from crinoid.core.daemon.composition import Composition, compose
from crinoid.core.slots.binding import adopt, assemble
from crinoid.core.slots.calls import Binding
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.state.records import ImageRecord
from crinoid.core.state.store import Store

IMAGE = ImageRecord(id="sha256:" + "1" * 64, tags=("docker.io/test/img:1",), config='{"config": {"Cmd": ["/run"]}}')


@dataclass
class FakeNode:
    """Services over fakes; ``restart`` makes new ones over the same state and the same drivers, as after kill -9."""

    directory: Path
    machine: FakeMachine
    runtime: FakeRuntime
    network: FakeNetwork
    snapshotter: FakeSnapshotter
    extension: FakeExtension
    services: Composition | None = None
    cgroup_driver: Literal["cgroupfs", "systemd"] = "cgroupfs"

    @property
    def config(self) -> Config:
        """A node with one slot of each kind."""
        root, run = self.directory / "root", self.directory / "run"
        root.mkdir(exist_ok=True)
        (run / "pods").mkdir(parents=True, exist_ok=True)
        pods = PodsConfig(init_binary="/bin/true", kill_timeout_s=0.2, cgroup_driver=self.cgroup_driver)
        return Config(root=root, run=run, pods=pods)

    @property
    def drivers(self) -> tuple[Recorder, ...]:
        """Every driver that may be told to fail."""
        return (self.runtime, self.network, self.snapshotter, self.extension)

    @property
    def now(self) -> Composition:
        """The services."""
        assert self.services is not None
        return self.services

    async def start(self) -> Composition:
        """Make services and recover."""
        self.services = compose(self.config, assemble(self.config, self._bindings()), "0", self.machine)
        await self.services.recover()
        return self.services

    async def crash(self) -> None:
        """Leave the services as ``kill -9`` would: no undoing, no closing of anything on the host."""
        current = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not current]
        self.now.resources.undo = _die  # type: ignore[method-assign]
        for table in (self.now.store.pods, self.now.store.containers):
            table.drop = _die_now  # type: ignore[method-assign,assignment]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self.now.store.close()
        self.services = None

    def _bindings(self) -> list[Binding]:
        registry = FakeRegistry(NoOptions(), fake_host(self.directory, "layout"))
        return [
            _bind("runtime", self.runtime, RuntimeSlotConfig(driver="fake")),
            _bind("network", self.network, SlotConfig(driver="fake")),
            _bind("snapshotter", self.snapshotter, SlotConfig(driver="fake")),
            _bind("registry", registry, SlotConfig(driver="fake")),
            _bind("extension", self.extension, ExtensionSlotConfig(driver="fake", on_failure="fail")),
        ]


async def _die(*_: object, **__: object) -> None:
    _die_now()


def _die_now(*_: object) -> None:
    raise asyncio.CancelledError


def _bind(role: str, driver: Recorder, config: SlotConfig) -> Binding:
    installed = InstalledDriver(
        role=role, name="fake", distribution="fakes", version="1", target="x:y", api_version=API_VERSION
    )
    return adopt(driver, installed, config, driver.host)


@pytest.fixture
async def fake_node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    options = NoOptions()
    node = FakeNode(
        tmp_path,
        FakeMachine(),
        FakeRuntime(options, fake_host(tmp_path, "runc")),
        FakeNetwork(options, fake_host(tmp_path, "default")),
        FakeSnapshotter(options, fake_host(tmp_path, "default")),
        FakeExtension(options, fake_host(tmp_path, "watcher")),
    )
    store = Store(node.config.root / "state.db")
    store.images.put(IMAGE)
    store.close()
    await node.start()
    yield node
    if node.services is not None:
        await node.services.close()


def a_pod(name: str = "pod", pid: NamespaceMode = NamespaceMode.CONTAINER) -> PodConfig:
    security = PodConfig(metadata=PodMetadata("x", "y", "z")).security
    security = type(security)(namespaces=NamespaceOptions(pid=pid))
    return PodConfig(metadata=PodMetadata(name, "ns", "uid"), hostname="host", security=security)


def a_container(name: str = "app", pid: NamespaceMode = NamespaceMode.CONTAINER) -> ContainerConfig:
    security = ContainerSecurity(namespaces=NamespaceOptions(pid=pid))
    return ContainerConfig(metadata=ContainerMetadata(name), image="test/img:1", security=security)
