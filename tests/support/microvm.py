"""What the tests of examples/crinoid-microvm boot: QEMU, and a kernel with its modules that somebody has unpacked.

``make test-microvm`` installs and names them; of what it has left behind, ``make test`` boots one pod.
"""

import os
import shutil
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crinoid-vm" / "kernel"
IS_WANTED = "CRINOID_MICROVM_KERNEL" in os.environ
"""Whether all of it is to be tested, however long that takes without KVM."""


def find_kernel() -> tuple[Path, Path] | None:
    """Return a kernel's image and the directory of its modules; ``None`` where there is none, or no QEMU."""
    if shutil.which("qemu-system-x86_64") is None or shutil.which("cc") is None:
        return None
    if IS_WANTED:
        return Path(os.environ["CRINOID_MICROVM_KERNEL"]), Path(os.environ["CRINOID_MICROVM_MODULES"])
    modules = next((CACHE / "lib/modules").glob("*"), None)
    return None if modules is None else (CACHE / "vmlinux", modules)


def guests(run: Path) -> list[int]:
    """Return the QEMU processes of a daemon, by its run directory: each stands in its pod's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(run) and "qemu" in (process / "exe").readlink().name:
                found.append(int(process.name))
        except OSError:
            continue
    return found
