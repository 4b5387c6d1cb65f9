"""A node over fake drivers and a fake host: real services, records and ledger; nothing of the machine changes."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import AlreadyExists
from crinoid.core.api.linux import cgroups, mount, namespaces
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
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.config.models import Config, ExtensionSlotConfig, PodsConfig, RuntimeSlotConfig, SlotConfig
from crinoid.core.daemon.composition import Composition, compose
from crinoid.core.lifecycle.pods import pods
from crinoid.core.slots.binding import adopt, assemble
from crinoid.core.slots.calls import Binding
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.state.records import ImageRecord
from crinoid.core.state.store import Store

IMAGE = ImageRecord(id="sha256:" + "1" * 64, tags=("docker.io/test/img:1",), config='{"config": {"Cmd": ["/run"]}}')


@dataclass
class FakeMachine:
    """What the host would hold."""

    pins: set[Path] = field(default_factory=set)
    mounts: list[Path] = field(default_factory=list)
    cgroups: set[str] = field(default_factory=set)
    marks: dict[str, str] = field(default_factory=dict)
    """The cgroups that crinoid has made, and for whom."""
    killed: list[str] = field(default_factory=list)
    """The cgroups whose processes were killed."""

    def pin(self, kinds: Mapping[str, Path], **_settings: object) -> None:
        for path in kinds.values():
            path.touch()
            self.pins.add(path)

    def unpin(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.pins.discard(path)

    def mount(self, _mount: Mount, target: Path) -> None:
        self.mounts.append(target)

    def bind(self, _source: Path, target: Path) -> None:
        self.pins.add(target)

    def unmount(self, target: Path) -> None:
        self.mounts = [path for path in self.mounts if path != target]

    def make_cgroup(self, path: str, owner: str = "-") -> None:
        parts = path.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            level = "/" + "/".join(parts[:count])
            if level not in self.cgroups:
                self.cgroups.add(level)
                self.marks[level] = owner if level == path else "-"

    def make_new_cgroup(self, path: str, owner: str) -> None:
        if path in self.cgroups:
            raise AlreadyExists(f"cgroup {path} is there already")
        self.make_cgroup(path, owner)

    def remove_cgroup(self, path: str) -> None:
        gone = {one for one in self.cgroups if f"{one}/".startswith(f"{path}/")}
        self.cgroups -= gone
        self.marks = {one: owner for one, owner in self.marks.items() if one not in gone}

    def remove_marked_cgroup(self, path: str) -> bool:
        if path in self.marks and not any(one.startswith(f"{path}/") for one in self.cgroups):
            self.remove_cgroup(path)
        return path not in self.cgroups

    def owns_cgroup(self, path: str, owner: str) -> bool:
        named = len(owner) == 64 and cgroups.owner_in_name(path) == owner
        return path in self.cgroups and (named or self.marks.get(path) == owner)

    @property
    def is_empty(self) -> bool:
        """Return whether nothing of any pod is left."""
        return not (self.pins or self.mounts or self.cgroups)


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
        self.services = compose(self.config, assemble(self.config, self._bindings()), "0")
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
async def fake_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeNode]:
    machine = FakeMachine()
    monkeypatch.setattr(namespaces, "pin", machine.pin)
    monkeypatch.setattr(namespaces, "unpin", machine.unpin)
    monkeypatch.setattr("crinoid.core.lifecycle.node.recovery.is_pinned", machine.pins.__contains__)
    monkeypatch.setattr(mount, "mount", machine.mount)
    monkeypatch.setattr(mount, "bind", machine.bind)
    monkeypatch.setattr(mount, "unmount", machine.unmount)
    monkeypatch.setattr(cgroups, "exists", machine.cgroups.__contains__)
    monkeypatch.setattr(cgroups, "make", machine.make_cgroup)
    monkeypatch.setattr(cgroups, "make_new", machine.make_new_cgroup)
    monkeypatch.setattr(cgroups, "belongs_to", machine.owns_cgroup)
    monkeypatch.setattr(cgroups, "is_marked", lambda path: path in machine.marks)
    monkeypatch.setattr(cgroups, "remove", machine.remove_cgroup)
    monkeypatch.setattr(cgroups, "remove_marked", machine.remove_marked_cgroup)
    monkeypatch.setattr(cgroups, "kill", machine.killed.append)
    monkeypatch.setattr(pods, "write_sysctls_in", lambda _pins, _values: None)
    monkeypatch.setattr(cgroups, "warm_up", lambda: None)
    options = NoOptions()
    node = FakeNode(
        tmp_path,
        machine,
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
