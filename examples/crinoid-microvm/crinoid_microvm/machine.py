"""One pod's virtual machine: a QEMU process that outlives the daemon, its directory, and the way to the agent in it.

    POD/vm.json    process id and start time of QEMU
    POD/console    socket of the guest's console, from which the kernel's last words come
    POD/qemu.log   what QEMU itself says
    POD/shared     what containers' roots and volumes are shown in (containers.py)
    POD/logs       containers' logs, one mounted file each, which the agent writes to

QEMU is in a network namespace of its own, where a tap device leads to the guest's first network namespace, and nowhere
else: whoever wants to reach the agent has to enter it, which takes root on the node. The pod's network is another tap
device, of the pod's namespace, that QEMU gets open.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import CommandFailed, CrinoidError, DeadlineExceeded, FailedPrecondition, Unavailable
from crinoid.core.api.linux import cgroups, files, mount, process, rights
from crinoid.core.api.linux.namespaces import call_in
from crinoid.core.api.linux.threads import call_in_thread, run_in_fresh_thread
from crinoid.plugins.runtimes.processes import pidfds
from crinoid_microvm.boot import BootFiles
from crinoid_microvm.containers import hide
from crinoid_microvm.protocol import Connection, Field, HungUp, encode_request

PORT = 1024
_NODE, _GUEST = "10.0.2.2/24", "10.0.2.15"
_PREPARE = f"ip tuntap add dev agent mode tap vnet_hdr && ip address add {_NODE} dev agent && ip link set dev agent up"
_AGENT_MAC = "52:54:00:c0:ff:ee"
_TAP_FD = 3
_LOOK_S = 0.01
_KILL_S = 10.0
_ANSWER_S, _CONNECT_S = 60.0, 30.0
_SOCKET_OPTIONS = (
    (socket.TCP_NODELAY, 1),
    (socket.TCP_KEEPIDLE, 20),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 6),
)
_READY = b"crinoid-microvm: ready"
_LAST_BYTES = 8192
_WAITS = re.compile("QEMU waiting for connection on: ")
_LAST_WORDS = re.compile(r"Kernel panic - not syncing: (.*)|crinoid-microvm: (.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a machine is made: ``memory_bytes`` of RAM, ``cpus``, the accelerator (``kvm`` or ``tcg``)."""

    qemu: str
    accelerator: str
    memory_bytes: int
    cpus: int
    tsc_khz: int = 0
    mac: str = ""


def command_line(shape: Shape, boot: BootFiles) -> list[str]:
    """Return QEMU's command line; paths of the pod are relative to its directory, descriptor 3 is the tap device."""
    devices = ["virtio-balloon-device,free-page-reporting=on"]
    backends = []
    # Logs are all that a guest writes to of the node's own. What it makes there beside them, if its kernel is no longer
    # its own, are plain files: no devices, links or owners.
    for name, model in (("shared", "passthrough"), ("logs", "mapped-file")):
        backends += ["-fsdev", f"local,id={name},path={name},security_model={model},multidevs=remap"]
        devices.append(f"virtio-9p-device,fsdev={name},mount_tag={name}")
    backends += ["-netdev", "tap,id=agent,ifname=agent,script=no,downscript=no"]
    devices.append(f"virtio-net-device,netdev=agent,mac={_AGENT_MAC}")
    if shape.mac:
        backends += ["-netdev", f"tap,id=pod,fd={_TAP_FD}"]
        devices.append(f"virtio-net-device,netdev=pod,mac={shape.mac}")
    return [
        *_base(shape, boot.kernel),
        *["-initrd", str(boot.initramfs)],
        *["-chardev", "socket,id=console,path=console,server=on,wait=on", "-serial", "chardev:console"],
        *backends,
        *(word for device in devices for word in ("-device", device)),
    ]


def _base(shape: Shape, kernel: Path) -> list[str]:
    words = ["console=ttyS0", "quiet", "panic=-1", "reboot=t", "random.trust_cpu=on", "rcupdate.rcu_expedited=1"]
    if shape.accelerator == "tcg":  # without hardware there is nothing to mitigate
        words += ["mitigations=off", "init_on_alloc=0", "no_timer_check", "tsc=reliable"]
        words.append(f"tsc_early_khz={shape.tsc_khz}")
    return [
        *[shape.qemu, "-machine", "microvm", "-accel", shape.accelerator, "-cpu", "max"],
        *["-smp", str(shape.cpus), "-m", f"{shape.memory_bytes >> 20}M"],
        *["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"],
        *["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"],
        *["-append", " ".join(words), "-kernel", str(kernel)],
    ]


async def try_boot(shape: Shape, kernel: Path, limit_s: float) -> str:
    """Boot a kernel with nothing to run, which ends as soon as it finds that; return why it did not come so far, or
    nothing.

    Hardware that is there may be of no use: in virtual machines ``/dev/kvm`` can be opened and its guests stand still.
    """
    try:
        done = await process.run([*_base(shape, kernel), "-serial", "stdio"], timeout_s=limit_s)
    except CrinoidError as error:
        return error.message
    if b"Kernel panic" in done.stdout:
        return ""
    words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return f"QEMU has ended with {done.exit_code}: {words[-1] if words else 'no word'}"


class Machine:
    """The machine of a pod, by its directory and cgroup: enough to find it after a restart of the daemon."""

    def __init__(self, directory: Path, pod_id: str) -> None:
        self.directory = directory
        self.shared, self.logs = directory / "shared", directory / "logs"
        self._pod_id = pod_id
        self._about = directory / "vm.json"

    def is_alive(self) -> bool:
        """Return whether QEMU runs."""
        known = self._process()
        return known is not None and pidfds.start_time(known[0]) == known[1]

    @property
    def pid(self) -> int:
        """QEMU's process id; 0 where there is none."""
        known = self._process()
        return known[0] if known is not None else 0

    async def start(self, command: Sequence[str], cgroup: str, tap: int | None, boot_s: float) -> None:
        """Start QEMU in a cgroup and wait until the agent is ready. What was begun is there when it raises."""
        await call_in_thread(self._make_directory)
        log = await call_in_thread(lambda: rights.open_file(self.directory / "qemu.log"))
        try:
            started = await process.spawn_in_cgroup(
                ["unshare", "--net", "sh", "-c", f'{_PREPARE} && exec "$@"', "sh", *command],
                env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
                fds={1: log, 2: log, **({} if tap is None else {_TAP_FD: tap})},
                cwd=self.directory,
                cgroup=cgroup,
            )
        finally:
            os.close(log)
        try:
            about = json.dumps([started.pid, pidfds.start_time(started.pid)])
            await call_in_thread(lambda: files.write_atomically(self._about, about.encode()))
            await self._until_ready(boot_s)
        finally:
            started.close()

    async def stop(self, cgroup: str) -> None:
        """End QEMU and remove all that ``start`` has made, whole or in part. Idempotent."""
        known = self._process()
        for one in [known] if known is not None else await call_in_thread(self._unrecorded):
            with pidfds.opened(*one) as fd:
                if fd is not None:
                    pidfds.send(fd, signal.SIGKILL)
                    if not await pidfds.wait_for(fd, _KILL_S):
                        raise DeadlineExceeded(f"QEMU, process {pidfds.describe(one[0])}, can't be killed")
        await call_in_thread(lambda: self._remove(cgroup))

    async def ask(self, op: str, what: str, **fields: Field) -> str:
        """Ask the agent something and return its answer. Raises what it says, Unavailable, DeadlineExceeded."""
        connection, text = await self.open(op, what, **fields)
        connection.close()
        return text

    async def open(self, op: str, what: str, **fields: Field) -> tuple[Connection, str]:
        """As ``ask``; the connection is the caller's to use and to close. Only ``wait`` has no deadline."""
        request = encode_request(op, {**fields, "now": time.time_ns()})
        timeout_s = None if op == "wait" else _ANSWER_S
        connection = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connect()
                await connection.send(request)
                return connection, await connection.answer(what)
        except TimeoutError:
            self._hang_up(connection)
            raise DeadlineExceeded(
                f"{what}: the agent in the guest of pod {self._pod_id} has not answered {op!r} within {_ANSWER_S:g} s"
            ) from None
        except HungUp as error:
            self._hang_up(connection)
            raise Unavailable(f"{what}: the guest of pod {self._pod_id} does not answer {op!r}: {error}") from error
        except BaseException:
            self._hang_up(connection)
            raise

    async def wait(self) -> str:
        """Wait for the machine's end, and say why it came, as far as its console told while somebody listened."""
        known = self._process()
        if known is None:
            return "its virtual machine is not there"
        heard = bytearray()
        listening = asyncio.create_task(self._listen(heard))
        try:
            with pidfds.opened(*known) as fd:
                if fd is not None:
                    await pidfds.wait(fd)
            await asyncio.wait([listening], timeout=1.0)  # what is in the socket still
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        return f"its virtual machine has ended{self._last_words(bytes(heard))}"

    async def until_gone(self) -> None:
        """Wait until QEMU has ended."""
        known = self._process()
        if known is not None:
            with pidfds.opened(*known) as fd:
                if fd is not None:
                    await pidfds.wait(fd)

    def require(self, what: str) -> None:
        """Raise FailedPrecondition unless the machine runs."""
        if not self.is_alive():
            raise FailedPrecondition(f"{what}: pod {self._pod_id} has no virtual machine that runs")

    def _process(self) -> tuple[int, int] | None:
        try:
            pid, started = json.loads(self._about.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid, started

    def _unrecorded(self) -> list[tuple[int, int]]:
        """Find what a daemon has started that was killed before it wrote that down: it stands in the directory."""
        found = []
        for link in Path("/proc").glob("[0-9]*/cwd") if self.directory.is_dir() else ():
            with contextlib.suppress(OSError):
                if link.readlink() == self.directory:
                    pid = int(link.parent.name)
                    found.append((pid, pidfds.start_time(pid)))
        return found

    def _make_directory(self) -> None:
        for path in (self.directory, self.shared, self.logs):
            rights.make_directories(path)

    async def _connect(self) -> Connection:
        """Connect to the agent. A guest that ends says no good-bye: the connection ends with QEMU, or by its probes."""
        known = self._process()
        fd = None if known is None else pidfds.open_pidfd(*known)
        if known is None or fd is None:
            raise HungUp("its virtual machine has ended")

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            for option, value in _SOCKET_OPTIONS:
                made.setsockopt(socket.IPPROTO_TCP, option, value)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            made.setblocking(False)
            return made

        try:
            made = await run_in_fresh_thread(lambda: call_in(Path(f"/proc/{known[0]}/ns/net"), make))
        except OSError as error:
            os.close(fd)
            raise HungUp(str(error)) from error
        except BaseException:
            os.close(fd)
            raise
        connection = Connection(made)
        connection.end_with(fd)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.get_running_loop().sock_connect(made, (_GUEST, PORT))
        except (OSError, TimeoutError) as error:
            connection.close()
            raise HungUp(f"no connection: {error}") from error
        except BaseException:
            connection.close()
            raise
        return connection

    async def _until_ready(self, boot_s: float) -> None:
        heard = bytearray()
        listening = asyncio.create_task(self._listen(heard, until=_READY))
        gone = asyncio.create_task(self.until_gone())
        try:
            await asyncio.wait([listening, gone], timeout=boot_s, return_when=asyncio.FIRST_COMPLETED)
            if _READY in heard:
                return
            if listening.done():  # the console was closed: QEMU is about to end
                await asyncio.wait([gone], timeout=_KILL_S)
            said = self._last_words(bytes(heard))
            if gone.done():
                raise CommandFailed(("qemu",), 1, f"the virtual machine has ended before the agent was ready{said}")
            raise DeadlineExceeded(
                f"the guest's agent was not ready after {boot_s:g} s{said}; where KVM is too weak to boot, "
                'the option acceleration = "tcg" does without, and boot_s gives it more time'
            )
        finally:
            for task in (listening, gone):
                task.cancel()
            await asyncio.gather(listening, gone, return_exceptions=True)

    async def _listen(self, heard: bytearray, until: bytes | None = None) -> None:
        """Read the console to its end, keeping the last of it; one that nobody listens to is discarded by QEMU."""
        directory = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as console:
                console.setblocking(False)
                loop = asyncio.get_running_loop()
                while True:
                    try:  # by this way, as the path itself may be longer than a socket's can be
                        await loop.sock_connect(console, f"/proc/self/fd/{directory}/console")
                        break
                    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                        if not self.is_alive():
                            return
                        await asyncio.sleep(_LOOK_S)
                with contextlib.suppress(OSError):
                    while piece := await loop.sock_recv(console, _LAST_BYTES):
                        heard += piece
                        del heard[:-_LAST_BYTES]
                        if until is not None and until in heard:
                            return
        finally:
            os.close(directory)

    def _last_words(self, heard: bytes) -> str:
        """Find what the kernel or the agent said of its end, or else what QEMU did."""
        text = heard.decode(errors="replace")
        found = [one or other for one, other in _LAST_WORDS.findall(text)]
        with contextlib.suppress(OSError):
            lines = (self.directory / "qemu.log").read_text(errors="replace")[-2000:].strip().splitlines()
            found += [line for line in lines if not _WAITS.search(line)][-3:]
        if not found:
            found = [line for line in text.splitlines() if line.strip()][-2:]
        return "".join(f": {line.strip()}" for line in found[:3])

    def _remove(self, cgroup: str) -> None:
        cgroups.kill(cgroup)
        cgroups.remove(cgroup)
        for path in (self.shared, self.logs):
            hide(path)
        if mount.mountpoints(self.directory):
            raise Unavailable(f"{self.directory}: something is mounted there")
        files.remove_tree(self.directory)

    @staticmethod
    def _hang_up(connection: Connection | None) -> None:
        if connection is not None:
            connection.close()
