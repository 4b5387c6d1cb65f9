"""What needs no guest: what is told to the agent, what QEMU is started with, what a guest boots from, streams."""

import asyncio
import gzip
import lzma
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from crinoid_microvm import MicrovmOptions, MicrovmRuntime, boot, network
from crinoid_microvm.boot import BootFiles, Kernel
from crinoid_microvm.containers import limits, translate
from crinoid_microvm.machine import Machine, Shape, command_line
from crinoid_microvm.protocol import CREDIT, Connection, HungUp, encode_frame, encode_request
from crinoid_microvm.sessions import GuestAttach, GuestExec, Relay
from crinoid_microvm.usage import read_usage
from pydantic import ValidationError

from crinoid.core.api.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RuntimeRefused,
    Unsupported,
)
from crinoid.core.api.host import Host
from crinoid.core.api.testing.fakes import fake_host
from crinoid.core.api.testing.patience import patient
from crinoid.core.api.testing.runtimes import minimal_process, minimal_spec
from crinoid.core.api.values.pod import (
    LinuxResources,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSecurity,
)
from crinoid.core.api.values.runtime import ContainerHandle, ContainerRequest, PodSandbox
from crinoid.core.api.values.snapshot import Mount

ELF = b"\x7fELF and all that a kernel is"
BOOT = BootFiles(Path("/boot/vmlinux"), Path("/boot/initramfs"), Path("/boot/agent"))
SHAPE = Shape(qemu="/usr/bin/qemu", accelerator="tcg", memory_bytes=256 << 20, cpus=2, tsc_khz=2100000)


def request(tmp_path: Path, **changes: Any) -> ContainerRequest:
    """A container whose bundle is there; ``changes`` are parts of its specification."""
    (tmp_path / "bundle").mkdir(exist_ok=True)
    handle = ContainerHandle("c1", "p1", tmp_path / "bundle", "/pod/c1")
    spec = {**minimal_spec(tmp_path / "root", "/pod/c1", minimal_process("sh", "-c", "true")), **changes}
    root = (Mount("bind", "/somewhere", ("rbind",)),)
    return ContainerRequest(handle=handle, spec=spec, log_path=tmp_path / "log", root_mounts=root)


def pod(**options: Any) -> PodSandbox:
    """A pod with namespace options."""
    security = PodSecurity(namespaces=NamespaceOptions(**options))
    return PodSandbox("p1", PodConfig(metadata=PodMetadata("a", "b", "c"), security=security), {}, "/pod")


class TestRequests:
    def test_fields(self) -> None:
        frame = encode_request("create", {"id": "c1", "arg": ["sh", "a=b\n"], "stdin": True, "uid": 7, "mount": ()})
        assert frame[:1] == b"Q"
        assert int.from_bytes(frame[1:5], "big") == len(frame) - 5
        assert frame[5:].split(b"\0") == [b"op=create", b"id=c1", b"arg=sh", b"arg=a=b\n", b"stdin=1", b"uid=7", b""]

    def test_what_no_text_is_comes_through(self) -> None:
        assert b"arg=\xff\0" in encode_request("exec", {"arg": [b"\xff".decode(errors="surrogateescape")]})

    def test_a_zero_byte_would_be_another_field(self) -> None:
        with pytest.raises(InvalidArgument, match="env has a zero byte"):
            encode_request("create", {"env": ["A=1\0uid=0"]})

    def test_more_than_the_agent_takes(self) -> None:
        with pytest.raises(ResourceExhausted, match="more than the agent takes"):
            encode_request("create", {"arg": ["x" * 2_000_000]})


class TestConnections:
    @pytest.fixture
    async def ends(self) -> AsyncIterator[tuple[Connection, socket.socket]]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        connection = Connection(ours)
        yield connection, theirs
        connection.close()
        theirs.close()

    async def test_frames_in_pieces(self, ends: tuple[Connection, socket.socket]) -> None:
        connection, agent = ends
        whole = encode_frame("o", b"x" * 300) + encode_frame("x", b"\x07")
        receiving = asyncio.ensure_future(connection.receive())
        for piece in (whole[:3], whole[3:100], whole[100:]):
            agent.sendall(piece)
            await asyncio.sleep(0)
        assert await receiving == ("o", b"x" * 300)
        assert await connection.receive() == ("x", b"\x07")

    @pytest.mark.parametrize(
        ("word", "error"),
        [("notfound", NotFound), ("precondition", FailedPrecondition), ("refused", RuntimeRefused)],
    )
    async def test_errors(self, ends: tuple[Connection, socket.socket], word: str, error: type[Exception]) -> None:
        ends[1].sendall(encode_frame("E", f"{word}\0it is so".encode()))
        with pytest.raises(error, match="container 1: it is so"):
            await ends[0].answer("container 1")

    @pytest.mark.parametrize("sent", [b"", b"A\0\0", b"A\xff\xff\xff\xff", b"o\0\0\0\0"])
    async def test_what_is_no_answer(self, ends: tuple[Connection, socket.socket], sent: bytes) -> None:
        """An agent that ended, and one that somebody in the guest has taken over."""
        ends[1].sendall(sent)
        ends[1].shutdown(socket.SHUT_WR)
        with pytest.raises(HungUp):
            await ends[0].answer("container 1")

    async def test_the_end_of_qemu_is_that_of_its_connections(self, ends: tuple[Connection, socket.socket]) -> None:
        """A guest that is gone closes nothing."""
        qemu = await asyncio.create_subprocess_exec("sleep", "1000")
        ends[0].end_with(os.pidfd_open(qemu.pid))
        receiving = asyncio.ensure_future(ends[0].receive())
        await asyncio.sleep(0.01)
        assert not receiving.done()
        qemu.kill()
        with pytest.raises(HungUp):
            await receiving
        await qemu.wait()

    async def test_an_exec(self, ends: tuple[Connection, socket.socket]) -> None:
        connection, agent = ends
        session = GuestExec(Relay(connection, True, True, True))
        assert session.stdin is not None and session.stdout is not None and session.stderr is not None
        await session.stdin.write(b"in")
        await session.stdin.close()
        assert agent.recv(100) == encode_frame("i", b"in") + encode_frame("e")
        agent.sendall(encode_frame("o", b"out") + encode_frame("r", b"err") + encode_frame("x", b"\xff"))
        assert [await session.stdout.read(), await session.stderr.read()] == [b"out", b"err"]
        assert [await session.stdout.read(), await session.wait()] == [b"", 255]

    async def test_no_more_input_is_sent_than_the_agent_has_room_for(
        self, ends: tuple[Connection, socket.socket]
    ) -> None:
        connection, agent = ends
        session = GuestExec(Relay(connection, True, False, False))
        assert session.stdin is not None
        agent.setblocking(False)
        writing = asyncio.ensure_future(session.stdin.write(b"x" * (CREDIT + 10)))
        got = await _receive(agent, CREDIT + 5)
        await asyncio.sleep(0.01)
        assert not writing.done()
        with pytest.raises(BlockingIOError):
            agent.recv(1)
        agent.sendall(encode_frame("a", (10).to_bytes(4, "big")))
        await writing
        assert len(got) == CREDIT + 5
        agent.sendall(encode_frame("b"))
        await asyncio.sleep(0.01)
        with pytest.raises(BrokenPipeError):
            await session.stdin.write(b"more")

    async def test_a_guest_that_has_gone(self, ends: tuple[Connection, socket.socket]) -> None:
        session = GuestExec(Relay(ends[0], False, True, False))
        ends[1].close()
        assert session.stdout is not None
        assert await session.stdout.read() == b""
        with pytest.raises(Exception, match="the guest has gone"):
            await session.wait()

    async def test_a_session_that_was_too_slow(self, ends: tuple[Connection, socket.socket]) -> None:
        session = GuestAttach(Relay(ends[0], False, True, False))
        assert session.stdout is not None
        ends[1].sendall(encode_frame("o", b"some") + encode_frame("l"))
        assert await session.stdout.read() == b"some"
        with pytest.raises(ResourceExhausted):
            await session.stdout.read()
        await session.close()


async def _receive(end: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += await asyncio.get_running_loop().sock_recv(end, size - len(got))
    return got


class TestContainers:
    def test_a_process(self, tmp_path: Path) -> None:
        process = minimal_process("sh", "-c", "true", terminal=True, rlimits=[_limit("RLIMIT_NOFILE", 64)])
        process["user"] = {"uid": 1000, "gid": 7, "additionalGids": [8, 9], "umask": 0o27}
        process["capabilities"] = {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"]}
        fields, _ = translate(request(tmp_path, process=process))
        wanted = {"arg": ["sh", "-c", "true"], "uid": 1000, "group": ["8", "9"], "umask": 0o27, "terminal": True}
        wanted |= {"bounding": "21", "effective": "20", "permitted": "0", "rlimit": ["7 64 64"], "pidns": True}
        assert {name: fields[name] for name in wanted} == wanted

    def test_mounts(self, tmp_path: Path) -> None:
        """Volumes go by names of ours, are read-only on the node already, and shared memory is the guest's own."""
        (tmp_path / "volume").mkdir()
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            _bind(str(tmp_path / "volume"), "/data", "rbind", "ro", "rprivate"),
            _bind("/pod/shm", "/dev/shm", "rbind"),  # noqa: S108  # the container's own
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "rw"]},
        ]
        fields, binds = translate(request(tmp_path, mounts=mounts))
        assert fields["mount"] == [
            "proc\x1fproc\x1f/proc\x1f2\x1f",
            "bind\x1f/shared/c1/m0\x1f/data\x1f1\x1f",
            "bind\x1f/podshm\x1f/dev/shm\x1f0\x1f",
            "cgroup2\x1fcgroup\x1f/sys/fs/cgroup\x1f0\x1f",
        ]
        assert binds.volumes == {"m0": Mount("bind", str(tmp_path / "volume"), ("rbind", "ro"))}
        assert binds.root == (Mount("bind", "/somewhere", ("rbind",)),)

    def test_what_a_guest_can_not_have(self, tmp_path: Path) -> None:
        linux = request(tmp_path).spec["linux"]
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "socket"))
            for changes, words in (
                ({"linux": {**linux, "namespaces": [{"type": "user"}]}}, "user namespaces"),
                ({"linux": {**linux, "namespaces": [{"type": "pid", "path": "/x"}]}}, "can't join the PID namespace"),
                ({"linux": {**linux, "devices": [{"path": "/dev/kvm"}]}}, "device /dev/kvm is one of the node's"),
                ({"hooks": {"prestart": [{"path": "/x"}]}}, "hooks"),
                ({"mounts": [_bind(str(tmp_path / "socket"), "/socket", "bind")]}, "sockets, pipes and devices"),
                ({"mounts": [{"destination": "/x", "type": "nfs", "source": "x"}]}, "of type 'nfs'"),
            ):
                with pytest.raises(Unsupported, match=words):
                    translate(request(tmp_path, **changes))

    @pytest.mark.parametrize(
        ("process", "words"),
        [
            ({"args": []}, "process.args is empty"),
            ({"user": {"uid": -5, "gid": 0}}, "process.user.uid is -5"),
            ({"capabilities": {"bounding": ["CAP_CHOWNN"]}}, "CAP_CHOWNN"),
            ({"rlimits": [{"type": "RLIMIT_ODD", "soft": 1, "hard": 1}]}, "RLIMIT_ODD"),
        ],
    )
    def test_what_no_kernel_can(self, tmp_path: Path, process: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidArgument, match=words):
            translate(request(tmp_path, process=minimal_process("true", **process)))

    def test_a_source_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeRefused, match="mount /nowhere: no such file"):
            translate(request(tmp_path, mounts=[_bind("/nowhere", "/x", "bind")]))

    @pytest.mark.parametrize(
        ("wanted", "files"),
        [
            (LinuxResources(), []),
            (LinuxResources(memory_limit_bytes=1 << 20), ["memory.max=1048576"]),
            (
                LinuxResources(memory_limit_bytes=1 << 20, memory_swap_limit_bytes=3 << 20),
                ["memory.max=1048576", "memory.swap.max=2097152"],
            ),
            (LinuxResources(memory_limit_bytes=-1), ["memory.max=max"]),
            (LinuxResources(cpu_quota=50_000), ["cpu.max=50000 100000"]),
            (LinuxResources(cpu_quota=-1, cpu_period=20_000), ["cpu.max=max 20000"]),
            (LinuxResources(cpu_shares=2), ["cpu.weight=1"]),
            (LinuxResources(cpu_shares=262144), ["cpu.weight=10000"]),
            (LinuxResources(unified={"memory.high": "5"}), ["memory.high=5"]),
        ],
    )
    def test_limits(self, wanted: LinuxResources, files: list[str]) -> None:
        assert limits(wanted) == files


def _bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": list(options)}


def _limit(kind: str, value: int) -> dict[str, Any]:
    return {"type": kind, "soft": value, "hard": value}


class TestBoot:
    def test_the_newest_kernel_that_has_modules(self, tmp_path: Path) -> None:
        for version in ("6.1.0-1", "6.1.0-2", "6.12.0"):
            (tmp_path / "boot").mkdir(exist_ok=True)
            (tmp_path / f"boot/vmlinuz-{version}").touch()
        with pytest.raises(Unsupported, match="Debian: linux-image-amd64"):
            boot.find_kernel(None, None, tmp_path)
        for version in ("6.1.0-1", "6.1.0-2"):
            (tmp_path / f"lib/modules/{version}").mkdir(parents=True)
            (tmp_path / f"lib/modules/{version}/modules.dep").touch()
        assert boot.find_kernel(None, None, tmp_path).modules.name == "6.1.0-2"

    def test_a_kernel_that_was_named(self, tmp_path: Path) -> None:
        with pytest.raises(Unsupported, match="go together"):
            boot.find_kernel(tmp_path, None)
        with pytest.raises(Unsupported, match="nowhere is not there: see the options"):
            boot.find_kernel(tmp_path / "nowhere", tmp_path)

    @pytest.mark.parametrize(
        "payload",
        [lzma.compress(ELF), zstandard.compress(ELF), gzip.compress(ELF) + struct.pack("<I", len(ELF))],
        ids=["xz", "zstd", "gzip"],
    )
    def test_a_kernel_is_unpacked(self, payload: bytes) -> None:
        assert boot.unpack_kernel(_image(payload), Path("/boot/vmlinuz")) == ELF
        assert boot.unpack_kernel(ELF, Path("/boot/vmlinux")) == ELF

    @pytest.mark.parametrize("image", [b"", b"MZ" * 2000, b"no kernel at all"])
    def test_what_is_no_kernel(self, image: bytes) -> None:
        with pytest.raises(Unsupported, match="/boot/x is no kernel"):
            boot.unpack_kernel(image, Path("/boot/x"))

    @pytest.mark.parametrize("payload", [b"\x28\xb5\x2f\xfd rubbish", b"rubbish", lzma.compress(b"no ELF")])
    def test_a_kernel_that_can_not_be_unpacked(self, payload: bytes) -> None:
        with pytest.raises(Unsupported, match="name a vmlinux by the option kernel"):
            boot.unpack_kernel(_image(payload), Path("/boot/x"))

    def test_modules_come_after_those_they_need(self, tmp_path: Path) -> None:
        lines = ["kernel/9p.ko: kernel/9pnet.ko kernel/netfs.ko", "kernel/9pnet.ko:", "kernel/netfs.ko:"]
        lines += ["kernel/9pnet_virtio.ko.xz: kernel/9pnet.ko", "kernel/virtio_net.ko:", "kernel/virtio-balloon.ko:"]
        (tmp_path / "modules.dep").write_text("\n".join(lines))
        (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio_mmio.ko\n")
        (tmp_path / "kernel").mkdir()
        for line in lines:
            path = tmp_path / line.partition(":")[0]
            content = path.name.partition(".")[0].encode()
            path.write_bytes(lzma.compress(content) if path.suffix == ".xz" else content)
        assert boot.module_files(tmp_path) == [
            b"virtio_net",
            b"9pnet",
            b"9pnet_virtio",
            b"netfs",
            b"9p",
            b"virtio-balloon",
        ]
        (tmp_path / "modules.builtin").unlink()
        with pytest.raises(Unsupported, match="has no module virtio_mmio"):
            boot.module_files(tmp_path)

    @pytest.mark.skipif(shutil.which("busybox") is None, reason="wants busybox")
    def test_the_initramfs_is_an_archive_of_cpio(self, tmp_path: Path) -> None:
        (tmp_path / "agent").write_bytes(b"agent")
        archive = boot.make_initramfs(tmp_path / "agent", [b"first", b"second!"])
        subprocess.run(["busybox", "cpio", "-i", "-d"], input=archive, cwd=tmp_path, check=True, capture_output=True)
        assert (tmp_path / "init").read_bytes() == b"agent"
        assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
        assert [(tmp_path / f"modules/{number:02}").read_bytes() for number in range(2)] == [b"first", b"second!"]

    @pytest.mark.skipif(shutil.which("cc") is None, reason="wants a C compiler")
    def test_the_agent_is_compiled_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        agent = boot.find_agent(tmp_path)
        assert int(subprocess.run([agent, "tsc-khz"], capture_output=True, check=True).stdout) > 100_000
        assert subprocess.run([agent], capture_output=True, check=False).returncode == 2, "it is for guests"
        monkeypatch.setenv("PATH", "/nowhere")
        assert boot.find_agent(tmp_path) == agent
        with pytest.raises(Unsupported, match="there is no C compiler"):
            boot.find_agent(tmp_path / "elsewhere")

    def test_boot_files_are_made_once_for_each_kernel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(boot, "module_files", lambda modules: [b"module"])
        kernel, agent = Kernel(tmp_path / "vmlinux", tmp_path), tmp_path / "agent"
        kernel.image.write_bytes(ELF)
        agent.write_bytes(b"agent")
        state = tmp_path / "state"
        state.mkdir()
        first = boot.make_boot_files(kernel, agent, state)
        inode = first.initramfs.stat().st_ino
        assert boot.make_boot_files(kernel, agent, state) == first
        assert first.initramfs.stat().st_ino == inode
        kernel.image.write_bytes(ELF + b"another")
        second = boot.make_boot_files(kernel, agent, state)
        assert sorted(state.iterdir()) == sorted([second.kernel, second.initramfs]), "the former are removed"


def _image(payload: bytes) -> bytes:
    """A bzImage as the boot protocol describes it."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload


class TestMachine:
    def test_the_command_line(self) -> None:
        command = command_line(replace(SHAPE, mac="02:00:00:00:00:01"), BOOT)
        text = " ".join(command)
        for part in (
            "/usr/bin/qemu -machine microvm -accel tcg -cpu max -smp 2 -m 256M",
            "-kernel /boot/vmlinux -initrd /boot/initramfs",
            "-fsdev local,id=shared,path=shared,security_model=passthrough,multidevs=remap",
            "-fsdev local,id=logs,path=logs,security_model=mapped-file,multidevs=remap",
            "-netdev tap,id=agent,ifname=agent,script=no,downscript=no",
            "-netdev tap,id=pod,fd=3",
            "-device virtio-net-device,netdev=pod,mac=02:00:00:00:00:01",
            "-sandbox on",
        ):
            assert part in text
        assert "tsc_early_khz=2100000" in command[command.index("-append") + 1]

    def test_mitigations_stay_where_there_is_hardware(self) -> None:
        text = " ".join(command_line(replace(SHAPE, accelerator="kvm"), BOOT))
        assert "mitigations=off" not in text
        assert "tsc_early_khz" not in text
        assert "netdev=pod" not in text, "without a network of its own"

    @pytest.mark.parametrize(
        ("script", "accelerator", "words"),
        [
            ("echo '[ 0.1] Kernel panic - not syncing: VFS: Unable to mount root fs'", "kvm", ""),
            ("echo 'failed to set MSR 0x10a' >&2; exit 134", "tcg", "QEMU has ended with 134: failed to set MSR 0x10a"),
            ("exit 0", "tcg", "QEMU has ended with 0: no word"),
            ("sleep 1000", "tcg", "0.5 s"),
        ],
    )
    async def test_the_accelerator_is_what_boots_a_kernel(
        self,
        script: str,
        accelerator: str,
        words: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """``/dev/kvm`` that can be opened is none yet; it is tried once."""
        qemu, tried = tmp_path / "qemu", tmp_path / "tried"
        qemu.write_text(f'#!/bin/sh\necho "$*" >> {tried}\n{script}\n')
        qemu.chmod(0o755)
        driver = MicrovmRuntime(
            MicrovmOptions(qemu=str(qemu), kvm_s=0.5 if "sleep" in script else patient(30)), fake_host(tmp_path, "vm")
        )
        monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/kvm")
        monkeypatch.setattr(shutil, "which", lambda name: name)
        assert await asyncio.gather(*(driver._find_accelerator(BOOT) for _ in range(3))) == [accelerator] * 3
        assert len(tried.read_text().splitlines()) == 1
        assert "-accel kvm" in tried.read_text()
        assert words in caplog.text
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        another = MicrovmRuntime(MicrovmOptions(qemu=str(qemu)), fake_host(tmp_path, "another"))
        assert await another._find_accelerator(BOOT) == "tcg"
        assert len(tried.read_text().splitlines()) == 1

    async def test_without_a_machine(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path / "pod", "pod")
        assert (machine.is_alive(), machine.pid) == (False, 0)
        assert "not there" in await machine.wait()
        with pytest.raises(FailedPrecondition, match="no virtual machine that runs"):
            machine.require("x")

    @pytest.mark.skipif(os.geteuid() != 0, reason="wants root")
    def test_a_process_that_was_not_written_down(self, tmp_path: Path) -> None:
        """A daemon that is killed has no time to."""
        machine = Machine(tmp_path / "pod", "pod")
        machine.directory.mkdir()
        started = subprocess.Popen(["sleep", "1000"], cwd=machine.directory)
        try:
            asyncio.run(machine.stop("/crinoid-microvm-never-made"))
            assert started.wait(10) == -9
        finally:
            started.kill()
        assert list(tmp_path.iterdir()) == []

    def test_a_record_of_a_process_that_was_another(self, tmp_path: Path) -> None:
        (tmp_path / "vm.json").write_text(f"[{os.getpid()}, 1]")
        assert not Machine(tmp_path, "pod").is_alive()


class TestNetwork:
    @pytest.mark.parametrize(
        ("route", "told"),
        [
            ({"dst": "default", "gateway": "10.0.0.1"}, "0.0.0.0/0 10.0.0.1"),
            ({"dst": "default", "gateway": "fe80::1"}, "::/0 fe80::1"),
            ({"dst": "169.254.1.1", "scope": "link"}, "169.254.1.1/32 "),
            ({"dst": "fd00::1"}, "fd00::1/128 "),
            ({"dst": "10.2.0.0/16", "gateway": "10.0.0.1"}, "10.2.0.0/16 10.0.0.1"),
            ({"dst": "10.0.0.0/24", "protocol": "kernel"}, None),
            ({"dst": "ff00::/8", "type": "multicast"}, None),
        ],
    )
    def test_routes(self, route: dict[str, Any], told: str | None) -> None:
        assert network._route(route) == told


class TestUsage:
    def test_figures(self) -> None:
        text = "[cpu.stat]\nusage_usec 7\nuser_usec 5\n[memory.current]\n5000\n[memory.max]\nmax\n"
        text += "[memory.stat]\nanon 3000\ninactive_file 1000\npgfault 12\n[pids.current]\n2\n"
        usage = read_usage(text)
        assert (usage.cpu_ns, usage.memory_usage_bytes, usage.memory_working_set_bytes) == (7000, 5000, 4000)
        assert (usage.memory_limit_bytes, usage.memory_rss_bytes, usage.pids, usage.page_faults) == (None, 3000, 2, 12)

    def test_a_guest_that_tells_nothing(self) -> None:
        assert read_usage("").memory_usage_bytes == 0


class TestHooks:
    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        return fake_host(tmp_path, "microvm")

    @pytest.mark.parametrize(
        "options", [{"cpus": 0}, {"memory_bytes": 1 << 20}, {"acceleration": "hvf"}, {"kernl": "/x"}]
    )
    def test_bad_options(self, options: dict[str, object]) -> None:
        with pytest.raises(ValidationError, match=next(iter(options))):
            MicrovmOptions.model_validate(options)

    async def test_no_qemu(self, host: Host) -> None:
        with pytest.raises(Unsupported, match="/nowhere/qemu is not installed"):
            await MicrovmRuntime(MicrovmOptions(qemu="/nowhere/qemu"), host).probe()

    async def test_a_pod_on_the_nodes_network(self, host: Host) -> None:
        driver = MicrovmRuntime(MicrovmOptions(), host)
        with pytest.raises(Unsupported, match="hostNetwork"):
            await driver.start_pod(pod(network=NamespaceMode.NODE))
        assert list(host.run_dir.iterdir()) == []

    async def test_containers_without_a_guest(self, tmp_path: Path, host: Host) -> None:
        driver, asked = MicrovmRuntime(MicrovmOptions(), host), request(tmp_path)
        with pytest.raises(FailedPrecondition, match="pod p1 has no virtual machine"):
            await driver.create(asked)
        with pytest.raises(NotFound):
            await driver.wait(asked.handle)
        await driver.kill(asked.handle, 9, True)
        await driver.delete(asked.handle)
        assert list(asked.handle.bundle.iterdir()) == []

    async def test_a_preview(self, tmp_path: Path, host: Host) -> None:
        asked = request(tmp_path, mounts=[_bind("/srv/data", "/data", "rbind")])
        lines = await MicrovmRuntime(MicrovmOptions(), host).preview(asked)
        assert lines == (
            "show the guest bind /somewhere as the root",
            "show the guest /srv/data at /data",
            "run in the guest, as user 0: sh -c true",
        )
