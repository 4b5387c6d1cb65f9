"""What would stop the start, found before it: for ``crinoid config check``. Nothing on the host is changed.

The services' own checks are asked: the directories, the socket's place and group, the streaming server's address and
certificate, the port of the metrics; then what pods are to get (limits, sysctls, programs, profiles), which would fail
each of them; then each driver is made, in directories that are thrown away (``slots.trial``).
"""

import ipaddress
import os
import shutil
import socket
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError, CrinoidError
from crinoid.core.api.linux import lsm
from crinoid.core.api.linux.sockets import SocketPlace
from crinoid.core.config.loader import ConfigPaths, Loaded, find_overlooked
from crinoid.core.config.models import Config
from crinoid.core.config.origins import Problem
from crinoid.core.config.positions import KeyPath
from crinoid.core.daemon import directories
from crinoid.core.lifecycle.sandbox.pod_sysctls import check_sysctls
from crinoid.core.slots.selection import ValidSlot
from crinoid.core.slots.trial import try_driver

_SYSCTLS = Path("/proc/sys")
_MOST_FILES = Path("/proc/sys/fs/nr_open")


def find_problems(loaded: Loaded, slots: tuple[ValidSlot, ...]) -> tuple[list[Problem], list[str]]:
    """Return what would stop the start, and what is only worth a line.

    Ports that are in use are no problem where a daemon serves the socket: it has them. Without root no driver is made.
    """
    config = loaded.config
    told = (*_problems_of_services(loaded), *_problems_of_pods(config), *_problems_of_roots(slots))
    found = [Problem(key, message, loaded.origins.nearest(key)) for key, message in told]
    notes = list(_notes(config, loaded.files))
    if os.geteuid() != 0:
        return found, [*notes, "drivers were not made, nor their programs looked for: that needs root"]
    for slot in slots:
        trial = try_driver(slot, loaded.origins, config.deadlines)
        found += trial.problems
        notes += trial.notes
    return found, notes


def find_notes(paths: ConfigPaths) -> Iterator[str]:
    """Tell which files beside the configuration are not read."""
    for path in find_overlooked(paths):
        yield f"{path} is not read: drop-ins are files whose names end in .toml"


def _problems_of_services(loaded: Loaded) -> Iterator[tuple[KeyPath, str]]:
    from crinoid.core.cri.server import find_group  # it needs grpc, which takes long to import
    from crinoid.core.cri.streaming.server import StreamingOptions, tls_context

    config = loaded.config
    streaming = StreamingOptions(
        **{name: getattr(config.streaming, name) for name in type(config.streaming).model_fields}
    )
    host, _, port = config.metrics.listen.rpartition(":")
    checks: list[tuple[KeyPath, Callable[[], object]]] = [
        (("server", "socket"), lambda: SocketPlace(config.server.socket).check(taking_over=True)),
        (("server", "group"), lambda: find_group(config.server.group)),
        (("streaming",), lambda: tls_context(streaming)),
    ]
    yield from (((name,), message) for name, message in directories.check(config))
    with ExitStack() as taken:  # all at the same time: two of them may have the same port
        if not _is_served(str(config.server.socket)):
            checks += [
                (("streaming", "port"), lambda: taken.enter_context(_listen(streaming.address, streaming.port))),
                (("metrics", "listen"), lambda: taken.enter_context(_listen(host, int(port))) if port else None),
            ]
        for key, check in checks:
            try:
                check()
            except ConfigurationError as error:
                yield key, error.message


def _problems_of_pods(config: Config) -> Iterator[tuple[KeyPath, str]]:
    """Find what this host would refuse to each pod or container."""
    pods = config.pods
    for name in pods.default_sysctls:
        try:
            (path,) = check_sysctls({name: ""}, ("network", "ipc"))
        except CrinoidError as error:
            yield ("pods", "default_sysctls", name), error.message
            continue
        if not (_SYSCTLS / path).exists() and "/conf/" not in path and "/neigh/" not in path:  # of interfaces to come
            yield ("pods", "default_sysctls", name), f"this kernel has no {_SYSCTLS / path}"
    most = int(_MOST_FILES.read_text())
    for index, text in enumerate(pods.default_ulimits):
        name, _, values = text.partition("=")
        if name == "nofile" and max(map(int, values.split(":"))) > most:
            yield ("pods", "default_ulimits", index), f"no process may have more than {most} files (fs.nr_open)"
    if pods.init_binary and shutil.which(pods.init_binary) is None:
        yield ("pods", "init_binary"), f"{pods.init_binary} is not there or can't be executed"
    if pods.apparmor_profile:
        try:
            is_there = lsm.has_apparmor() and pods.apparmor_profile in lsm.apparmor_profiles()
        except PermissionError:
            is_there = True  # only root may read it
        if not is_there:
            why = (
                "is not loaded (aa-status lists those that are)" if lsm.has_apparmor() else "can't be: no AppArmor here"
            )
            yield ("pods", "apparmor_profile"), f"the profile {pods.apparmor_profile!r} {why}"


def _problems_of_roots(slots: Sequence[ValidSlot]) -> Iterator[tuple[KeyPath, str]]:
    """Find snapshotters that were told to keep their layers in the same place."""
    roots = [
        (slot.selection, os.path.realpath(root))
        for slot in slots
        if slot.selection.role == "snapshotter" and (root := getattr(slot.options, "root", None)) is not None
    ]
    counts = Counter(root for _, root in roots)
    for selection, root in roots:
        if counts[root] > 1:
            yield (
                (*selection.key, "options", "root"),
                f"{root} is another slot's, too: each needs a directory of its own",
            )


def _notes(config: Config, files: Sequence[Path]) -> Iterator[str]:
    for path in files:
        found = path.stat()
        if found.st_uid != 0 or found.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if found.st_gid else 0)):
            yield f"{path} can be changed by others than root: who writes there becomes root here (chmod, chown)"
    address = ipaddress.ip_address(config.streaming.address)
    if not address.is_loopback and config.streaming.client_ca is None:
        yield (
            f"streaming.address {address} is open to the network without client certificates (streaming.client_ca): "
            "who learns a token gets into a container"
        )
    if not config.images.sources:
        yield "images.sources is empty: no image can be pulled"


def _listen(address: str, port: int) -> socket.socket:
    """Take a port. Raises ConfigurationError."""
    try:
        found = socket.getaddrinfo(address.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        return socket.create_server(place[:2], family=family)
    except (OSError, OverflowError) as error:
        number = error.errno if isinstance(error, OSError) else None
        words = os.strerror(number) if number and number > 0 else str(getattr(error, "strerror", error))
        raise ConfigurationError(f"{address} port {port} can't be had: {words}") from error


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True
