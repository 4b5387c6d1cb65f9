"""A real registry on loopback for tests: Debian's ``docker-registry``, filled by ``skopeo`` from an OCI layout."""

import ctypes
import ctypes.util
import json
import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.images import DOCKER_LIST, DOCKER_MANIFEST, read_blob, read_named
from support.patience import patient

_READY = re.compile(rb"listening on (127\.0\.0\.1:[0-9]+)")


@dataclass(frozen=True, slots=True)
class Certificates:
    """A private authority, a server's pair for 127.0.0.1 and localhost, and a client's pair, as PEM files."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path


@dataclass(frozen=True, slots=True)
class RunningRegistry:
    """A registry that listens at ``host`` (``127.0.0.1:PORT``), by http unless it was given certificates."""

    host: str
    user: str = ""
    password: str = ""
    log: Path = Path()

    def push(self, layout: Path, reference: str, name: str) -> str:
        """Copy an image, an index with all it lists, to ``name`` (``repository:tag``); return its full reference."""
        target = f"{self.host}/{name}"
        login = [f"--dest-creds={self.user}:{self.password}"] if self.user else []
        options = ["--all", "--dest-tls-verify=false", "--preserve-digests", *login]
        with _source(layout, reference) as source:
            _run("skopeo", "--insecure-policy", "copy", "-q", *options, source, f"docker://{target}")
        return target


@contextmanager
def running_registry(
    directory: Path,
    users: Mapping[str, str] | None = None,
    certificates: Certificates | None = None,
    port: int = 0,
) -> Iterator[RunningRegistry]:
    """Run a registry with its storage, configuration and log in ``directory``; end it when the context ends.

    ``users`` (name to password) turns basic authentication on; ``push`` uses the first of them. Without a ``port`` it
    takes a free one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config, log = directory / "config.yml", directory / "registry.log"
    config.write_text(json.dumps(_config(directory, users, certificates, port)))  # JSON is YAML
    with log.open("wb") as output:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=output, stderr=output)
    try:
        host = _wait_for_address(process, log)
        user, password = next(iter((users or {"": ""}).items()))
        yield RunningRegistry(host, user, password, log)
    finally:
        process.kill()
        process.wait()


@contextmanager
def _source(layout: Path, reference: str) -> Iterator[str]:
    """Name the image for skopeo, which finds no Docker media type in an OCI layout: those go by its ``dir`` form."""
    blob = read_named(layout, reference)
    if blob.media_type not in (DOCKER_MANIFEST, DOCKER_LIST):
        yield f"oci:{layout}:{reference}"
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "version").write_text("Directory Transport Version: 1.1\n")
        (directory / "manifest.json").write_bytes(read_blob(layout, blob.digest))
        for path in (layout / "blobs/sha256").iterdir():
            (directory / path.name).symlink_to(path)
            (directory / f"{path.name}.manifest.json").symlink_to(path)
        yield f"dir:{directory}"


def make_certificates(directory: Path) -> Certificates:
    """Make a private authority and the pairs it signed, by ``openssl``."""
    directory.mkdir(parents=True, exist_ok=True)
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    _make_pair(ca, ca_key, "/CN=test authority", "basicConstraints=critical,CA:TRUE")
    signed = ("-CA", str(ca), "-CAkey", str(ca_key))
    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    _make_pair(directory / "server.pem", directory / "server.key", "/CN=localhost", names, *signed)
    _make_pair(directory / "client.pem", directory / "client.key", "/CN=client", "extendedKeyUsage=clientAuth", *signed)
    return Certificates(ca, *(directory / name for name in ("server.pem", "server.key", "client.pem", "client.key")))


def _make_pair(cert: Path, key: Path, subject: str, extension: str, *signed: str) -> None:
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    _run(
        *("openssl", "req", "-x509", *new, "-keyout", str(key), "-out", str(cert)),
        *("-subj", subject, "-addext", extension, *signed),
    )


def _config(
    directory: Path, users: Mapping[str, str] | None, certificates: Certificates | None, port: int
) -> dict[str, object]:
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}", "secret": "test"}
    if certificates:
        http["tls"] = {"certificate": str(certificates.server_cert), "key": str(certificates.server_key)}
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}, "delete": {"enabled": True}},
        "http": http,
        "validation": {"manifests": {"urls": {"allow": ["^http://127[.]0[.]0[.]1:"]}}},
    }
    if users:
        passwords = directory / "htpasswd"
        passwords.write_text("".join(f"{user}:{_bcrypt(password)}\n" for user, password in users.items()))
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(passwords)}}
    return config


def _bcrypt(password: str) -> str:
    """Hash as ``htpasswd -B`` does, by the C library: Python's own ``crypt`` ended with 3.12."""
    library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    salt = f"$2y$05${secrets.token_hex(11)}"
    hashed: bytes | None = library.crypt(password.encode(), salt.encode())
    if not hashed or not hashed.startswith(b"$2y$"):
        raise RuntimeError("libcrypt has no bcrypt")
    return hashed.decode()


def _wait_for_address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait until the registry tells where it listens: the kernel chose the port."""
    deadline = time.monotonic() + patient(15)
    while time.monotonic() < deadline and process.poll() is None:
        if found := _READY.search(log.read_bytes()):
            return found[1].decode()
        time.sleep(0.01)
    raise RuntimeError(f"docker-registry did not start: {log.read_text()[-2000:]}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60), check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
