"""What a guest boots from: the node's kernel, and an initramfs of the modules it takes and the agent as its ``/init``.

Both are made once for each kernel, agent and list of modules, and kept in the slot's state directory.
"""

import gzip
import hashlib
import io
import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from crinoid.core.api.errors import Unsupported
from crinoid.core.api.linux import files

MODULES = ("virtio_mmio", "virtio_net", "9pnet_virtio", "9p", "virtio_balloon")
"""What a guest needs of the kernel; what is built in is not loaded."""
_SOURCE = Path(__file__).with_name("agent.c")
_BUILT = Path(__file__).with_name("agent")
_ELF = b"\x7fELF"
_COMPILE_S = 120.0
# linux/Documentation/arch/x86/boot.rst: setup_sects, the magic HdrS, payload_offset and payload_length (2.08 and later)
_SETUP_SECTORS, _MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
_DIRECTORY, _FILE = 0o40755, 0o100755


@dataclass(frozen=True, slots=True)
class BootFiles:
    """A kernel that QEMU starts without unpacking it (``vmlinux``), its initramfs, and the agent as a program."""

    kernel: Path
    initramfs: Path
    agent: Path


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel's image (``vmlinuz``) and the directory of its modules, which has the kernel's version for a name."""

    image: Path
    modules: Path


def find_kernel(image: Path | None, modules: Path | None, root: Path = Path("/")) -> Kernel:
    """Return the kernel that was configured, or else the node's newest that has modules. Raises Unsupported."""
    if image is not None or modules is not None:
        if image is None or modules is None:
            raise Unsupported("the options kernel and modules go together: an image, and the directory of its modules")
        for path in (image, modules / "modules.dep"):
            if not path.is_file():
                raise Unsupported(f"{path} is not there: see the options kernel and modules")
        return Kernel(image, modules)
    found = [
        Kernel(one, root / "lib/modules" / one.name.removeprefix("vmlinuz-")) for one in root.glob("boot/vmlinuz-*")
    ]
    usable = [one for one in found if (one.modules / "modules.dep").is_file()]
    if not usable:
        raise Unsupported(
            f"there is no kernel for guests: no {root}boot/vmlinuz-* has its {root}lib/modules/*/modules.dep; install "
            "one (Debian: linux-image-amd64), or name one by the options kernel and modules"
        )
    return max(usable, key=lambda one: (one.image.stat().st_mtime, one.image.name))


def find_agent(directory: Path) -> Path:
    """Return the agent that came with the distribution, or else compile it into ``directory``, once. Blocks.

    Raises Unsupported.
    """
    if _BUILT.is_file():
        return _BUILT
    built = directory / f"agent-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]}"
    if not built.is_file():
        compile_agent(built)
    return built


def compile_agent(target: Path) -> None:
    """Compile the agent, statically, as the guest has no libraries. Raises Unsupported where that can't be done."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unsupported(
            "the guest's agent is not built and there is no C compiler to build it with: install a wheel of "
            "crinoid-microvm, or gcc and libc6-dev"
        )
    new = target.with_name(f"{target.name}.{os.getpid()}")
    command = [compiler, "-std=gnu11", "-Os", "-Wall", "-static", "-s", "-o", str(new), str(_SOURCE), "-lpthread"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMPILE_S, check=False
    )
    if done.returncode:
        raise Unsupported(f"the guest's agent can't be compiled: {' '.join(command)}: {done.stderr[-2000:]}")
    new.rename(target)


def make_boot_files(kernel: Kernel, agent: Path, directory: Path) -> BootFiles:
    """Return what a guest boots from, made in ``directory`` unless it is there. Blocks, for seconds when it is made.

    Raises Unsupported for a kernel that is in no known form, or lacks a module.
    """
    about = kernel.image.stat()
    words = (kernel.image, about.st_mtime_ns, about.st_size, kernel.modules, agent.stat().st_mtime_ns, *MODULES)
    name = hashlib.sha256(repr(words).encode()).hexdigest()[:16]
    made = BootFiles(directory / f"vmlinux-{name}", directory / f"initramfs-{name}", agent)
    if not made.initramfs.is_file():
        for former in (*directory.glob("vmlinux-*"), *directory.glob("initramfs-*")):
            former.unlink(missing_ok=True)  # a guest that runs has read them
        files.write_atomically(made.kernel, unpack_kernel(kernel.image.read_bytes(), kernel.image))
        files.write_atomically(made.initramfs, make_initramfs(agent, module_files(kernel.modules)))
    return made


def unpack_kernel(image: bytes, path: Path) -> bytes:
    """Return the ELF file in a bzImage: a guest without KVM takes seconds to unpack it itself. Raises Unsupported."""
    if image.startswith(_ELF):
        return image
    if image[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise Unsupported(f"{path} is no kernel for x86: neither a bzImage nor an ELF file")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (image[_SETUP_SECTORS] + 1) * 512 + offset
    payload = image[start : start + length]
    try:
        if payload.startswith(b"\x28\xb5\x2f\xfd"):
            unpacked = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(payload)).read()
        elif payload.startswith(b"\x1f\x8b"):
            unpacked = gzip.decompress(payload[:-4])  # the last four bytes are the size, once more
        else:
            unpacked = lzma.LZMADecompressor().decompress(payload)
    except (OSError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise Unsupported(f"{path} can't be unpacked ({error}): name a vmlinux by the option kernel") from error
    if not unpacked.startswith(_ELF):
        raise Unsupported(f"{path} holds no ELF file: name a vmlinux by the option kernel")
    return bytes(unpacked)


def module_files(modules: Path) -> list[bytes]:
    """Return the modules that a guest loads, each after those it depends on (modules.dep(5)). Raises Unsupported."""
    depends: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        depends[_module_name(path)] = (path, needed.split())
    built_in = {_module_name(line) for line in _lines(modules / "modules.builtin")}
    order: list[str] = []
    for name in MODULES:
        if name in depends:
            path, below = depends[name]
            order += [one for one in (*reversed(below), path) if one not in order]
        elif name not in built_in:
            raise Unsupported(f"{modules} has no module {name}, which guests need: name another kernel by the options")
    return [_read_module(modules / path) for path in order]


def make_initramfs(agent: Path, modules: list[bytes]) -> bytes:
    """Return a cpio archive (form ``newc``) of the agent as ``/init`` and the modules in their order."""
    entries = [("init", _FILE, agent.read_bytes()), ("dev", _DIRECTORY, b""), ("modules", _DIRECTORY, b"")]
    entries += [(f"modules/{number:02}", _FILE, content) for number, content in enumerate(modules)]
    return b"".join(_cpio([*entries, ("TRAILER!!!", 0, b"")]))


def _cpio(entries: list[tuple[str, int, bytes]]) -> Iterator[bytes]:
    for number, (name, mode, content) in enumerate(entries, 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _read_module(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read()
    return gzip.decompress(content) if path.suffix == ".gz" else content
