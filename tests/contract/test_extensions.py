"""The contract of the open role, applied to NRI with plugins and without, to policy, and to stand-ins for others.

What the contract finds is shown by extensions that break it.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import DriverError, InvalidArgument, Refused
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView, PodView
from crinoid.core.api.host import Host
from crinoid.core.api.testing.extensions import BoundExtension, ExtensionContract, Life
from crinoid.core.api.testing.fakes import FakeExtension, FakeKernel, fake_host
from crinoid.core.api.testing.noops import NoopExtension
from crinoid.core.api.values.adjustment import OciHook
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.slots.isolation.proxy import Proxy
from crinoid.plugins.extensions.nri import NriExtension
from crinoid.plugins.extensions.nri.options import NriOptions
from crinoid.plugins.extensions.nri.wire import nri_pb2
from crinoid.plugins.extensions.policy import PolicyExtension
from crinoid.plugins.extensions.policy.options import PolicyOptions
from support.nri_plugin import NriPlugin, PluginError
from support.patience import patient


def make_nri(host: Host, deadline_s: float = 30, **options: Any) -> NriExtension:
    return NriExtension(
        NriOptions(
            socket=host.run_dir / "nri.sock",
            plugin_dir=host.state_dir / "plugins",
            plugin_config_dir=host.state_dir / "conf",
            deadline_s=deadline_s,
            **options,
        ),
        host,
    )


class NriContract(ExtensionContract):
    """A killed daemon's socket is dead: a live one would be left alone."""

    async def killed(self, driver: object) -> None:
        if isinstance(driver, Proxy):
            driver.process.end_now()
            return
        assert isinstance(driver, NriExtension)
        assert driver._listener is not None
        driver._listener.close()


class TestNriWithoutPlugins(NriContract):
    def make_driver(self, host: Host) -> object:
        return make_nri(host)


class TestPolicy(ExtensionContract):
    def make_driver(self, host: Host) -> object:
        return PolicyExtension(PolicyOptions(default="allow"), host)


class WithPlugins(NriContract):
    """Plugins in threads, which hang up at the end of each test."""

    handlers: dict[str, Callable[[Any], Any]] = {}  # noqa: RUF012  # replaced, never changed
    unwilling: dict[str, Callable[[Any], Any]] = {}  # noqa: RUF012  # the same
    """What they do where the test is about an unwilling driver: plugins are in the test's process, drivers may be in
    another."""

    @pytest.fixture(autouse=True)
    def plugins(self) -> Iterator[list[NriPlugin]]:
        self._plugins: list[NriPlugin] = []
        self._over = threading.Event()
        yield self._plugins
        self._over.set()
        for plugin in self._plugins:
            plugin.close()

    async def connected(self, extension: BoundExtension, host: Host) -> None:
        for name, index in (("watcher", "10"), ("wants", "20")):
            plugin = NriPlugin(name, index, self.handlers if name == "wants" else {})
            self._plugins.append(plugin)
            await asyncio.to_thread(plugin.connect, host.run_dir / "nri.sock")

    async def test_one_that_is_unwilling(self, host: Host, kernel: FakeKernel) -> None:
        self.handlers = self.unwilling
        await super().test_one_that_is_unwilling(host, kernel)


_BEGINS = ("RunPodSandbox", "UpdatePodSandbox", "CreateContainer", "StartContainer", "UpdateContainer")
_ENDS = ("StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer")


def adjust(request: Any) -> Any:
    wanted = {"env": [{"key": "WHO", "value": request.container.id}], "annotations": {"seen.by/nri": "yes"}}
    update = nri_pb2.ContainerUpdate(container_id="gone", linux={"resources": {"cpu": {"shares": {"value": 5}}}})
    eviction = nri_pb2.ContainerEviction(container_id="gone too")
    return nri_pb2.CreateContainerResponse(adjust=wanted, update=[update], evict=[eviction])


def update(request: Any) -> Any:
    limits = {"resources": {"cpu": {"shares": {"value": 55}}}}
    return nri_pb2.UpdateContainerResponse(update=[{"container_id": request.container.id, "linux": limits}])


def refuse(_request: Any) -> None:
    raise PluginError("I don't like it")


class TestNriWithPluginsThatWantMuch(WithPlugins):
    handlers = {"CreateContainer": adjust, "UpdateContainer": update}  # noqa: RUF012
    unwilling = dict.fromkeys((*_BEGINS, *_ENDS), refuse)

    def make_driver(self, host: Host) -> object:
        return make_nri(host)

    def make_unwilling_driver(self, host: Host) -> object:
        return make_nri(host)


class TestNriWithPluginsThatFail(WithPlugins):
    """One hangs up in the middle of its first call; where the site says so, what it was asked about fails with that."""

    @pytest.fixture(autouse=True)
    def faults(self) -> None:
        self.handlers = {"CreateContainer": lambda _request: self._plugins[-1].close()}
        self.unwilling = {"CreateContainer": lambda _request: self._over.wait()}

    def make_driver(self, host: Host) -> object:
        return make_nri(host)

    def make_unwilling_driver(self, host: Host) -> object:
        return make_nri(host, deadline_s=patient(2), on_failure="fail")


class TestNoop(ExtensionContract):
    def make_driver(self, host: Host) -> object:
        return NoopExtension(NoOptions(), host)


class TestFake(ExtensionContract):
    test_it_keeps_nothing_of_what_has_gone = None  # type: ignore[assignment]  # it is there to tell what it was told

    def make_driver(self, host: Host) -> object:
        driver = FakeExtension(NoOptions(), host)
        driver.adjustment = ContainerAdjustment(args=("other",))
        driver.resources = LinuxResources(cpu_shares=3)
        return driver

    def make_unwilling_driver(self, host: Host) -> object:
        driver = FakeExtension(NoOptions(), host)
        driver.fail("pod_starting", Refused("never"))
        driver.fail("container_started", DriverError("broken"))
        return driver


# What the contract finds


class Bad(NoopExtension):
    """An extension with one fault, which ``fault`` names."""

    fault = ""

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> Any:
        match self.fault:
            case "type":
                return {"envs": ()}
            case "nonsense":
                return ContainerAdjustment(oci_hooks=(OciHook("later", "/x"),))
            case "meddles":
                container.spec["process"]["args"].append("more")
            case "sleeps":
                await asyncio.sleep(100)
        return None

    @hookimpl
    async def container_removed(self, container: ContainerView) -> None:
        if self.fault == "prevents":
            raise DriverError("no")

    @hookimpl
    async def pod_started(self, pod: PodView) -> None:
        if self.fault == "refuses":
            raise Refused("too late")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("type", r"adjust_container returned \{'envs'"),
        ("nonsense", "oci_hooks: stage 'later'"),
        ("meddles", "adjust_container has changed what it was told"),
        ("sleeps", r"adjust_container had no answer after 0\.1 s"),
        ("prevents", "container_removed raised .*: an end can't be prevented"),
        ("refuses", "pod_started can't refuse"),
    ],
)
async def test_a_fault_is_found(tmp_path: Path, fault: str, words: str) -> None:
    driver = Bad(NoOptions(), fake_host(tmp_path))
    driver.fault, driver.deadline_s = fault, 0.1  # type: ignore[attr-defined]  # as a driver may have it
    assert driver.api_version == API_VERSION
    with pytest.raises((AssertionError, InvalidArgument), match=words):
        await Life(BoundExtension(driver), FakeKernel()).run()
