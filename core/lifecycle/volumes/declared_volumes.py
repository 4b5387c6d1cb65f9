"""The volumes that an image declares: for each a directory of the container's own, outside of its layers.

Called by ``builder`` between mounting the root and building the specification. As with containerd, a volume begins
with what the image has at its path and goes with the container; a mount that the pod asks for there takes its place.
Source: OCI image-spec, config.md, "Volumes".
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.linux import files, rights
from crinoid.core.api.linux.process import run_checked
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.values.container import VolumeMount

MAX_VOLUMES = 256
_KERNELS_OWN = frozenset({"proc", "sys", "dev"})
_COPY_S = 600.0
_SOURCE_FD = 3


def select_paths(declared: Iterable[str], mounts: Iterable[VolumeMount]) -> tuple[str, ...]:
    """Return the volumes to make as absolute paths, in order.

    Left out is where the container mounts something itself, and what belongs to the kernel: images made for systemd
    declare ``/sys/fs/cgroup``. Raises InvalidArgument for the root itself, and for more than anybody has a use for, as
    each is a directory and a copy.
    """
    taken = {_normal(mount.container_path) for mount in mounts}
    wanted = {_normal(path): path for path in declared}
    for path in taken & wanted.keys():
        del wanted[path]
    if "/" in wanted:
        raise InvalidArgument(f"the image's config.Volumes has {wanted['/']!r}: the whole root can't be a volume")
    if len(wanted) > MAX_VOLUMES:
        raise InvalidArgument(f"the image declares {len(wanted)} volumes: a container can have {MAX_VOLUMES} of these")
    return tuple(sorted(path for path in wanted if path.split("/")[1] not in _KERNELS_OWN))


async def fill_volume(rootfs: Path, path: str, directory: Path) -> None:
    """Make ``directory`` and copy into it what the mounted image has at ``path``, with owners, modes and times.

    Raises InvalidArgument where the image has a file there, and what the copying raises (a full disk).
    """
    await asyncio.to_thread(rights.make_directory, directory, rights.SHOWN_DIRECTORY)
    with contextlib.ExitStack() as opened:
        try:
            # By the thread, so that it is closed as well where the caller is cancelled before it has the descriptor.
            source = await call_in_thread(lambda: opened.enter_context(_opened_in_image(rootfs, path)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise InvalidArgument(
                f"volume {path} of the image is no directory in it: {os.strerror(error.errno or 0)}"
            ) from error
        # By the descriptor: no link of the image's is followed a second time.
        command = ("cp", "--archive", "--reflink=auto", f"/proc/self/fd/{_SOURCE_FD}/.", str(directory))
        await run_checked(command, timeout_s=_COPY_S, fds={_SOURCE_FD: source})


@contextlib.contextmanager
def _opened_in_image(rootfs: Path, path: str) -> Iterator[int]:
    """Open a directory as a process of the container would: no link leads out of the image."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = files.open_in_root(root, path, os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(root)
    try:
        yield found
    finally:
        os.close(found)


def _normal(path: str) -> str:
    return os.path.normpath("/" + path.lstrip("/"))
