"""The contract of crinoid's runtime role, applied to this driver, with real guests, and what is its own.

Slow without KVM, so it is asked for: ``CRINOID_MICROVM_KERNEL`` names a kernel, ``CRINOID_MICROVM_MODULES`` the
directory of its modules. crinoid's ``make test-microvm`` does that.
"""

import asyncio
import dataclasses
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from crinoid_microvm import MicrovmOptions, MicrovmRuntime, boot
from crinoid_microvm.machine import try_boot

from crinoid.core.api.errors import CrinoidError, DeadlineExceeded, Unavailable
from crinoid.core.api.host import Host
from crinoid.core.api.linux import cgroups, mount
from crinoid.core.api.testing.patience import patient
from crinoid.core.api.testing.runtimes import BoundRuntime, RuntimeContract, Workbench
from crinoid.core.api.values.pod import PodConfig, PodMetadata
from crinoid.core.api.values.runtime import PodSandbox

KERNEL, MODULES = (os.environ.get(f"CRINOID_MICROVM_{name}") for name in ("KERNEL", "MODULES"))
QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.timeout(900)
real = pytest.mark.skipif(
    not (KERNEL and MODULES and QEMU), reason="wants QEMU and CRINOID_MICROVM_KERNEL and …_MODULES"
)


def options(**changes: object) -> MicrovmOptions:
    """Without KVM: that of virtual machines is often too weak to boot anything."""
    kernel = {"kernel": KERNEL, "modules": MODULES, "acceleration": "tcg", "boot_s": 400.0}
    return MicrovmOptions.model_validate(kernel | changes)


@dataclasses.dataclass
class Place:
    """Where all tests have their guests: the boot files are made once, and one guest serves whoever does not end it."""

    host: Host
    pod: PodSandbox | None = None

    def lasting(self, bench: Workbench) -> PodSandbox:
        """Return a pod that is up, made at the first call."""
        if self.pod is None:
            self.pod = dataclasses.replace(bench.make_pod(), cgroup_parent="/crinoid-microvm-contract")
            asyncio.run(bench.runtime.start_pod(self.pod))
        return self.pod


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    state, run = (tmp_path_factory.mktemp(name) for name in ("state", "run"))
    place = Place(Host("contract", state, run, logging.getLogger("contract")))
    yield place
    if place.pod is not None:
        asyncio.run(MicrovmRuntime(options(), place.host).stop_pod(place.pod))
        cgroups.remove(place.pod.cgroup_parent)
    assert list(place.host.run_dir.iterdir()) == [], "stop_pod leaves something"
    assert mount.mountpoints(place.host.run_dir) == ()


@real
class TestMicrovm(RuntimeContract):
    has_host_process = False
    has_cgroup = False
    has_seccomp = False
    has_user_namespaces = False
    has_guests = True

    def make_driver(self, host: Host) -> object:
        return MicrovmRuntime(options(), host)

    def end_guest(self, host: Host, pod: PodSandbox) -> None:
        os.kill(json.loads((host.run_dir / pod.pod_id / "vm.json").read_text())[0], signal.SIGKILL)

    @pytest.fixture
    def host(self, request: pytest.FixtureRequest, tmp_path: Path, place: Place) -> Host:
        if "bench" in request.fixturenames:
            return place.host
        return dataclasses.replace(place.host, state_dir=tmp_path, run_dir=tmp_path)

    @pytest.fixture
    def bench(
        self, request: pytest.FixtureRequest, runtime: BoundRuntime, tmp_path: Path, place: Place
    ) -> Iterator[Workbench]:
        """As in the contract, but for those tests that end no guest: a boot takes seconds."""
        parent = f"/crinoid-contract-{uuid.uuid4().hex[:12]}"
        cgroups.make(parent)
        bench = Workbench(runtime, tmp_path, self.build_rootfs(tmp_path / "rootfs"), parent)
        ends_it = "guests" in getattr(request.function, "abilities", ())
        if not ends_it:
            bench.pod = place.lasting(bench)
        try:
            if ends_it:
                asyncio.run(runtime.start_pod(bench.pod))
            yield bench
            for handle in bench.made:
                asyncio.run(runtime.delete(handle))
            if not ends_it:
                left = asyncio.run(runtime.pod_stats(bench.pod))
                assert left.pids == 0, "processes are left in the guest"
        finally:
            if ends_it:
                asyncio.run(runtime.stop_pod(bench.pod))
            cgroups.kill(parent)
            cgroups.remove(parent)


# Guests that do not come up, or stop answering: by another program in the place of the agent.

POD = PodSandbox("guest", PodConfig(metadata=PodMetadata("guest", "test", "uid")), {}, "/crinoid-microvm-bad")
TSC = 'if (count > 1) { puts("2000000"); return 0; }'


@pytest.fixture
def own_host(tmp_path: Path) -> Host:
    state, run = tmp_path / "state", tmp_path / "run"
    for directory in (state, run):
        directory.mkdir()
    return Host("bad", state, run, logging.getLogger("bad"))


@pytest.fixture
async def with_agent(own_host: Host, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., MicrovmRuntime]]:
    """Makes a driver whose guests have another agent, which does what some lines of C say."""
    driver: MicrovmRuntime | None = None

    def make(lines: str, **changes: object) -> MicrovmRuntime:
        nonlocal driver
        agent = own_host.state_dir / "agent"
        source = f"#include <stdio.h>\n#include <unistd.h>\nint main(int count, char **w) {{ (void)w; {TSC} {lines} }}"
        subprocess.run(["cc", "-static", "-x", "c", "-o", agent, "-"], input=source.encode(), check=True)
        monkeypatch.setattr(boot, "find_agent", lambda _: agent)
        driver = MicrovmRuntime(options(**changes), own_host)
        return driver

    yield make
    assert driver is not None
    await driver.stop_pod(POD)
    cgroups.remove(POD.cgroup_parent)
    assert list(own_host.run_dir.iterdir()) == []


@real
async def test_a_guest_that_panics(with_agent: Callable[..., MicrovmRuntime]) -> None:
    driver = with_agent("return 3;")
    with pytest.raises(CrinoidError, match="ended before the agent was ready: Attempted to kill init!"):
        await driver.start_pod(POD)


@real
async def test_an_agent_that_does_not_come_up(with_agent: Callable[..., MicrovmRuntime]) -> None:
    driver = with_agent("for (;;) pause();", boot_s=patient(10.0))
    with pytest.raises(DeadlineExceeded, match=r"was not ready after .* s.*option acceleration"):
        await driver.start_pod(POD)


@real
async def test_an_agent_that_nobody_can_talk_to(with_agent: Callable[..., MicrovmRuntime]) -> None:
    """It says that it is ready, and nobody listens."""
    driver = with_agent(r'puts("crinoid-microvm: ready"); fflush(stdout); for (;;) pause();')
    with pytest.raises((Unavailable, DeadlineExceeded), match=r"pod guest: .*(does not answer|has not answered) 'pod'"):
        await driver.start_pod(POD)


@real
async def test_a_kernel_that_boots_is_found_to(own_host: Host) -> None:
    """By what ``auto`` tries KVM with; here without."""
    driver = MicrovmRuntime(options(), own_host)
    files_of_boot = await driver._boot()
    shape = dataclasses.replace(await driver._shape(POD, files_of_boot, None), memory_bytes=256 << 20)
    assert await try_boot(shape, files_of_boot.kernel, patient(100)) == ""


@real
async def test_a_guest_whose_kernel_is_taken_over_makes_plain_files(
    own_host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside its logs, where it may write: devices there would be the node's."""
    source = tmp_path / "agent.c"
    makes = """mknod(LOGS "/disk", S_IFBLK | 0666, 7 << 8); mknod(LOGS "/null", S_IFCHR | 0666, 1 << 8 | 3);
    symlink("/etc/passwd", LOGS "/link"); """
    text = (Path(boot.__file__).parent / "agent.c").read_text()
    assert text.count('say("ready");') == 1
    source.write_text(text.replace('say("ready");', f'{makes} say("ready");'))
    monkeypatch.setattr(boot, "_SOURCE", source)
    monkeypatch.setattr(boot, "_BUILT", tmp_path / "no such agent")
    driver = MicrovmRuntime(options(), own_host)
    try:
        await driver.start_pod(POD)
        logs = own_host.run_dir / POD.pod_id / "logs"
        kinds = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in logs.iterdir() if path.name[0] != "."}
        assert kinds == dict.fromkeys(("disk", "null", "link"), stat.S_IFREG)
        assert {path.lstat().st_uid for path in logs.iterdir()} == {0}
    finally:
        await driver.stop_pod(POD)
        cgroups.remove(POD.cgroup_parent)
    assert list(own_host.run_dir.iterdir()) == []


@real
async def test_what_is_no_kernel(own_host: Host, tmp_path: Path) -> None:
    """QEMU says so, and is heard."""
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"\x7fELF and no more")
    driver = MicrovmRuntime(options(kernel=kernel), own_host)
    with pytest.raises(CrinoidError, match=r"ended before the agent was ready: .*(kernel|ELF|PVH)"):
        await driver.start_pod(POD)
    await driver.stop_pod(POD)
    assert list(own_host.run_dir.iterdir()) == []
    cgroups.remove(POD.cgroup_parent)
