"""The files of a pod on the host: the pins of its namespaces, and what its containers find below ``/etc``."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.files import read_regular
from crinoid.core.api.linux.idmaps import IdMaps
from crinoid.core.api.values.pod import DnsConfig, NamespaceMode, PodConfig
from crinoid.core.lifecycle.spec.mounts import PodFiles

NAMESPACE_KINDS = ("user", "network", "ipc", "uts")
_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_MAX_HOST_FILE_BYTES = 16 << 20  # a hosts file that blocks advertisements has several megabytes
_HOST_SHM = Path("/dev/shm")  # noqa: S108  # the host's shared memory, which is meant


@dataclass(frozen=True, slots=True)
class PodDirectory:
    """``run/pods/<id>``: all of a pod that a reboot takes away."""

    path: Path

    def pin(self, kind: str) -> Path:
        """Where the namespace of this kind is pinned."""
        return self.path / "ns" / kind

    @property
    def shm(self) -> Path:
        """The mount point of the pod's own shared memory."""
        return self.path / "shm"

    @property
    def init_root(self) -> Path:
        """The root of the pod's init process."""
        return self.path / "init"

    def files(self, config: PodConfig) -> PodFiles:
        """Return what is mounted into each container."""
        host_ipc = config.security.namespaces.ipc is NamespaceMode.NODE
        shm = _HOST_SHM if host_ipc else self.shm
        return PodFiles(self.path / "hostname", self.path / "hosts", self.path / "resolv.conf", shm)


def hostname_of(config: PodConfig, host_network: bool) -> str:
    """Return the pod's host name: its own, or the host's where it has none or uses the host's network."""
    return socket.gethostname() if host_network or not config.hostname else config.hostname


def write_files(directory: PodDirectory, config: PodConfig, hostname: str, host_network: bool) -> None:
    """Write host name, resolver configuration and hosts file; on the host's network the last is the host's own."""
    write_small(directory.path / "hostname", f"{hostname}\n")
    if config.dns is None:
        _copy(Path("/etc/resolv.conf"), directory.path / "resolv.conf")
    else:
        write_small(directory.path / "resolv.conf", resolv_conf(config.dns))
    # Copies, as a bind of the host's own file would keep the old one when an editor, or systemd-resolved, replaces it.
    if host_network:
        _copy(Path("/etc/hosts"), directory.path / "hosts")
    else:
        write_hosts(directory, hostname, ())


def give_files(directory: PodDirectory, maps: IdMaps) -> None:
    """Make the files belong to the root of the pod's user namespace; a tmpfs has id-mapped mounts only since 6.3."""
    for name in ("hostname", "resolv.conf", "hosts"):
        maps.chown(directory.path / name)


def write_hosts(directory: PodDirectory, hostname: str, addresses: Iterable[str]) -> None:
    """Write the pod's hosts file, with its own name for each address."""
    own = [f"{address}\t{hostname}\n" for address in addresses]
    write_small(directory.path / "hosts", _HOSTS + "".join(own))


def resolv_conf(dns: DnsConfig) -> str:
    """Write resolv.conf(5). Raises InvalidArgument for a value that would be lines of its own."""
    for value in (*dns.servers, *dns.searches, *dns.options):
        if len(value.splitlines()) > 1:
            raise InvalidArgument(f"dns_config: {value!r} is more than one line")
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)


def write_small(path: Path, text: str) -> None:
    """Write a file of the run directory, which needs no sync: it does not outlive the kernel."""
    rights.write_file(path, text, rights.SHOWN_FILE)


def _copy(source: Path, target: Path) -> None:
    try:
        content = read_regular(source, _MAX_HOST_FILE_BYTES)
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise FailedPrecondition(f"{source} of the host can't be read for the pod: {error.strerror}") from error
    rights.write_file(target, content, rights.SHOWN_FILE)
