#!/usr/bin/env python3
"""Run a command in a throw-away virtual machine with a kernel of Debian's own: for what this machine's kernel lacks.

    python tests/vm/run.py [--systemd] [--mem 3G] [--cpus 2] [--accel kvm] [--timeout 600] [--out DIR] -- COMMAND...

The guest is this machine as another kernel sees it: pure cgroup v2, AppArmor, every capability, kernel
modules. COMMAND starts where the caller stands, with the caller's environment; what it changes is thrown
away. /tmp, /var/tmp and /var/lib are fresh, on a real ext4 disk (overlay mounts work there); this machine's own files
are at /host, read-only. Standard output, standard error and the exit status come back as they are; what
COMMAND leaves under $VM_OUT appears in DIR. 124 means timed out, 125 that the machine itself failed.
There is no network but the guest's own. It is emulated, ten times as slow as the machine, unless --accel says kvm;
the KVM of virtual machines is often too weak to boot anything. The first use, as root, installs what is missing by
apt-get and keeps the kernel in ${XDG_CACHE_HOME:-~/.cache}/crinoid-vm.

With --systemd the first process is systemd, with dbus and the journal, and COMMAND a service of it. Where the machine
has none, the packages that apt-get would install are unpacked into that same cache, and are seen by guests alone.
"""

import argparse
import ctypes
import errno
import lzma
import mmap
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crinoid-vm"
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "mkfs.ext4": "e2fsprogs",
    "apparmor_parser": "apparmor",
}
BOOT_MODULES = ("virtio_mmio", "virtio_blk", "virtio_console", "9pnet_virtio", "9p", "ext4", "overlay")

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systemd", action="store_true", help="as the guest's first process")
    parser.add_argument("--mem", default="3G")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--accel", default="tcg,thread=multi", help="QEMU's; kvm is fast where it really works")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="boot included")
    parser.add_argument("--out", type=lambda name: Path(name).absolute(), metavar="DIR")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    return parser.parse_args()


def quietly(*command: str, **options: Any) -> str:
    """Run a program; return what it says. Raises SystemError with all of it when it fails."""
    done: subprocess.CompletedProcess[str]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemError(f"{shlex.join(command)}: exit {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def prepare() -> Path:
    """Install what is missing; return the directory of an unpacked Debian kernel that holds `vmlinux` too."""
    missing = [package for tool, package in PACKAGES.items() if not shutil.which(tool)]
    kernel = CACHE / "kernel"
    if missing or not kernel.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        quietly("apt-get", "update")
        quietly("apt-get", "install", "-y", "--no-install-recommends", *missing)
    if not kernel.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            keep(unpack_kernel(Path(directory)), kernel)
    return kernel


def keep(made: Path, place: Path) -> None:
    """Move a directory to its place in the cache, unless another run has been quicker."""
    try:
        made.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def unpack_kernel(directory: Path) -> Path:
    """Get the newest Debian kernel and unpack it below a directory."""
    said = quietly("apt-cache", "depends", "linux-image-amd64")
    (package,) = re.findall(r"Depends: (linux-image-\S+)", said)[:1]
    quietly("apt-get", "download", package, cwd=directory)
    kernel = directory / "kernel"
    quietly("dpkg", "-x", str(next(directory.glob("*.deb"))), str(kernel))
    quietly("depmod", "-b", str(kernel), package.removeprefix("linux-image-"))
    image = next(kernel.glob("boot/vmlinuz-*")).read_bytes()  # unpacked here, or the guest takes seconds to
    offset, length = struct.unpack_from("<II", image, 0x248)  # payload_offset, payload_length: boot protocol 2.08
    start = (image[0x1F1] + 1) * 512 + offset
    (kernel / "vmlinux").write_bytes(lzma.LZMADecompressor().decompress(image[start : start + length]))
    return kernel


def prepare_systemd() -> Path:
    """Return the directory of what the machine lacks of systemd and dbus, as Debian's packages have it."""
    layer = CACHE / "systemd"
    if not layer.exists():
        options = ("--simulate", "--no-upgrade", "--no-install-recommends")
        said = quietly("apt-get", "install", *options, "systemd-sysv", "dbus")
        packages = re.findall(r"^Inst (\S+)", said, re.MULTILINE)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            scratch, root = Path(directory), Path(directory) / "systemd"
            (root / "usr").mkdir(parents=True)
            if packages:
                quietly("apt-get", "download", *packages, cwd=scratch)
            for package in scratch.glob("*.deb"):
                quietly("dpkg", "-x", str(package), str(root))
            for name in ("bin", "lib", "lib64", "sbin"):  # links into usr on the machine, which these would hide
                if (root / name).exists():
                    quietly("cp", "-a", str(root / name), str(root / "usr"))
                    shutil.rmtree(root / name)
            keep(root, layer)
    return layer


def write_initramfs(scratch: Path, kernel: Path, options: argparse.Namespace) -> None:
    """Write what the guest begins with: busybox, the modules to find its disks, and the job."""
    root, modules = scratch / "initramfs", kernel.resolve() / "lib/modules"
    for directory in ("before", "bin", "dev", "disk", "host", "job", "modules", "proc", "root", "sys"):
        (root / directory).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None, "prepare() installs it"
    shutil.copy(busybox, root / "bin/busybox")
    wanted = quietly("modprobe", "-d", str(kernel), "-S", os.listdir(modules)[0], "--show-depends", "-a", *BOOT_MODULES)
    for number, path in enumerate(dict.fromkeys(re.findall(r"^insmod (\S+)", wanted, re.MULTILINE))):
        shutil.copy(path, root / f"modules/{number:02}")
    settings = {"MODULES": str(modules), "DIRECTORY": os.getcwd(), "OUT": str(options.out or "")}
    settings["SYSTEMD"] = "yes" if options.systemd else ""
    (root / "job/settings").write_text("".join(f"{k}={shlex.quote(v)}\n" for k, v in settings.items()))
    environment = os.environ | {"PWD": os.getcwd()}
    passed_on = {k: v for k, v in environment.items() if k.isidentifier() and k not in {"TMPDIR", "VM_OUT", "_"}}
    exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in passed_on.items())
    (root / "job/command").write_text(f'{exports}cd "$PWD" || exit 125\nexec {shlex.join(options.command)}\n')
    shutil.copy(HERE / "init.sh", root / "job/init")
    shutil.copy(HERE / "vm.service", root / "job/vm.service")
    shutil.copy(HERE / "early_init.sh", root / "init")
    quietly("sh", "-c", "chmod 755 init; find . | busybox cpio -o -H newc >../initrd", cwd=root)


def tsc_khz() -> int:
    """The rate of the time-stamp counter, which TCG hands through: the guest's own measuring fails under load."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl rdx, 32; or rax, rdx; ret
    counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    ticks, began = counter(), time.monotonic_ns()
    time.sleep(0.05)
    return int(counter() - ticks) * 1_000_000 // (time.monotonic_ns() - began)


def machine(scratch: Path, options: argparse.Namespace, disk: int, ports: list[int]) -> list[str]:
    """QEMU's command line; `ports` are descriptors for output, error and exit status.

    Code is translated once for each address it runs at: so addresses are not random. The features left out are those
    that cost most to emulate; all in all processes start in a sixth of the time.
    """
    append = (
        "console=ttyS0 quiet panic=-1 psi=1 mitigations=off init_on_alloc=0 rcupdate.rcu_expedited=1 "
        f"apparmor=1 security=apparmor no_timer_check tsc=reliable tsc_early_khz={tsc_khz()} norandmaps"
    )
    devices = ["virtio-serial-device", "virtio-blk-device,drive=disk", "virtio-9p-device,fsdev=host,mount_tag=host"]
    backends = ["-drive", f"file=/proc/self/fd/{disk},if=none,id=disk,format=raw,cache=unsafe"]
    backends += ["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]
    for number, descriptor in enumerate(ports, 1):
        backends += ["-chardev", f"file,id=port{number},path=/proc/self/fd/{descriptor}"]
        devices += [f"virtserialport,chardev=port{number},nr={number}"]
    if options.systemd:
        append += " systemd.unit=vm.service systemd.show_status=no fstab=no"
        backends += ["-fsdev", f"local,id=systemd,path={CACHE}/systemd,security_model=none,readonly=on,multidevs=remap"]
        devices += ["virtio-9p-device,fsdev=systemd,mount_tag=systemd"]
    if options.out:
        path = str(options.out).replace(",", ",,")
        backends += ["-fsdev", f"local,id=out,path={path},security_model=none,multidevs=remap"]
        devices += ["virtio-9p-device,fsdev=out,mount_tag=out"]
    cpu = "max,la57=off,pku=off,smap=off,smep=off,umip=off,xsave=off"
    fixed = f"-machine microvm -cpu {cpu} -nodefaults -no-user-config -nographic -no-reboot"
    command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *fixed.split(), "-accel", options.accel]
    command += ["-smp", str(options.cpus), "-m", options.mem, "-serial", f"file:{scratch}/console"]
    command += ["-kernel", f"{CACHE}/kernel/vmlinux", "-initrd", f"{scratch}/initrd", "-append", append]
    return [*command, *backends, *(argument for device in devices for argument in ("-device", device))]


def relay(source: int, target: int) -> None:
    """Pass on what the guest writes."""
    while data := os.read(source, 1 << 16):
        try:
            while data:
                data = data[os.write(target, data) :]
        except OSError:  # the caller went away, but the guest must not block
            target = os.open(os.devnull, os.O_WRONLY)


def boot(scratch: Path, options: argparse.Namespace, disk: int) -> int:
    """Run the guest to its end; return the command's exit status."""
    pipes = [os.pipe() for _ in range(3)]
    sources, ports = [pipe[0] for pipe in pipes], [pipe[1] for pipe in pipes]
    relays = [threading.Thread(target=relay, args=(sources[n], n + 1), daemon=True) for n in (0, 1)]
    guest = subprocess.Popen(
        machine(scratch, options, disk, ports), stdin=subprocess.DEVNULL, stdout=sys.stderr, pass_fds=[disk, *ports]
    )
    try:
        for port in ports:
            os.close(port)
        for thread in relays:
            thread.start()
        guest.wait(options.timeout)
    except subprocess.TimeoutExpired:
        print(f"the virtual machine: no end after {options.timeout:g} s", file=sys.stderr)
        return 124
    finally:
        guest.kill()
        guest.wait()
        for thread in relays:
            thread.join(10)
    if status := os.read(sources[2], 16):
        return int(status)
    raise SystemError(f"the guest ended without a status:\n{(scratch / 'console').read_text(errors='replace')[-4000:]}")


def main() -> int:
    """Prepare, boot, clean up."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        kernel = prepare()
        if options.systemd:
            prepare_systemd()
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory, tempfile.TemporaryFile(dir=CACHE) as disk:
            write_initramfs(Path(directory), kernel, options)
            disk.truncate(20 << 30)  # sparse
            target = f"/proc/self/fd/{disk.fileno()}"
            form = ("-qF", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard")
            quietly("mkfs.ext4", *form, target, pass_fds=[disk.fileno()])
            return boot(Path(directory), options, disk.fileno())
    except SystemError as problem:
        print(f"the virtual machine: {problem}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
