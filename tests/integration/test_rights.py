"""What a local user without rights finds of crinoid's on the host after real work: nothing to list, read or execute.

The node lies in a directory that everybody may enter, unlike pytest's own; containers' logs lie elsewhere, as they are
for whoever the site lets read them (0640, as conmon makes them). What programs of others keep for themselves, such as
addresses of CNI plugins, is theirs.
"""

import contextlib
import fnmatch
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from crinoid.core.api.linux import rights
from crinoid.core.daemon.directories import RULES
from crinoid.core.slots.roles import ROLES
from integration.conftest import BUSYBOX, Node, write_conflist
from integration.own_nodes import own_node
from integration.pods import Json, Pod, confined
from integration.test_user_namespaces import in_user_namespace, mapped
from support.daemon import cgroup_directories
from support.images import ImageConfig, build_busybox
from support.strangers import NOBODY, look, run_as_stranger
from support.subnets import third_octet

VOLUMES = "docker.io/test/volumes:1"
HANDLERS = ("runc-bridge-native", "crun-cni-overlay")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that everybody may enter."""
    directory = Path("/var/tmp") / f"crt{secrets.token_hex(3)}"
    directory.mkdir()
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def busy(place: Path) -> Iterator[Node]:
    """A node with something of everything: runtimes, networks, snapshotters, NRI, image volumes, user namespaces."""
    bridge = f"crt{secrets.token_hex(3)}"
    write_conflist(place / "net.d", bridge, f"10.88.{third_octet()}.0/24", place / "ipam")
    build_busybox(place / "node/layouts/volumes", VOLUMES, ImageConfig(volumes=("/etc", "/fresh")))
    config = f"""
[networks]
cni = {{ driver = "cni", options = {{ conf_dir = "{place}/net.d" }} }}
bridge = {{ driver = "bridge", options = {{ subnets = ["10.87.{third_octet()}.0/24"] }} }}
[snapshotters]
native = {{ driver = "native" }}
[runtimes]
runc-bridge-native = {{ driver = "runc", network = "bridge", snapshotter = "native" }}
crun-cni-overlay = {{ driver = "crun", network = "cni" }}
[extensions.nri]
driver = "nri"
options = {{ socket = "{place}/nri/nri.sock", plugin_dir = "{place}/none" }}
"""
    try:
        with own_node(place / "node", config) as node:
            node.pull(VOLUMES)
            for handler in HANDLERS:
                work(node, handler, place)
            yield node
    finally:
        subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)


def work(node: Node, handler: str, place: Path) -> None:
    """Run pods of all kinds, and leave them running."""
    tools = {"host_path": "/usr/bin", "container_path": "/host", "readonly": True}
    image = {"container_path": "/image", "image": {"image": BUSYBOX}, "readonly": True}
    script = "cp /host/id /suid && chown 0:0 /suid && chmod 4755 /suid && sleep 1000"
    for number, linux in enumerate((None, in_user_namespace(), shared())):
        config: Json = {} if linux is None else {"linux": linux}
        pod = Pod(node, node.run_pod(f"{handler}-{number}", handler, **config))
        container = pod.start("sh", "-c", script, mounts=[tools, image], image=VOLUMES, stdin=True)
        assert node.execute(container, "sh", "-c", "until test -u /suid; do sleep 0.05; done")[0] == 0
        node.wait_exit(pod.start("true", tty=True))
        pod.create("sleep", "1", mounts=[mapped(place / "node/volume", "/data")])
    if handler.startswith("runc"):
        with contextlib.suppress(grpc.RpcError):  # criu or the kernel can't; the archive is not the subject
            node.call("CheckpointContainer", container_id=container, location=str(place / "node/checkpoint.tar"))


def shared() -> Json:
    """A pod with an init of its own."""
    return {"security_context": {"namespace_options": {"pid": "POD"}}}


def test_a_stranger_finds_nothing(busy: Node, place: Path) -> None:
    daemon = busy.daemon
    seen = look(daemon.root, daemon.run, place / "nri", prefix=daemon.prefix)
    assert len(seen.paths) > 1000
    found = seen.found
    assert {path: able for path, able in found.items() if able} == {}
    ways = (daemon.run, daemon.run / "pods", daemon.run / "containers")
    assert {path for path in map(Path, found) if path.parent not in ways} == {daemon.root, daemon.run, place / "nri"}
    assert {path for path in map(Path, found) if path.parent in ways[1:]} == {
        *(daemon.run / "pods").iterdir(),
        *(daemon.run / "containers").iterdir(),
    }


def test_root_of_a_container_gives_nobody_its_rights(busy: Node) -> None:
    """CVE-2021-41103 and CVE-2024-25621: a set-user-ID file, executed from the host by one of its paths there."""
    daemon = busy.daemon
    paths = [path for path in look(daemon.root, daemon.run, prefix=daemon.prefix).paths if path.endswith("/suid")]
    assert sum(path.endswith("/rootfs/suid") for path in paths) == 3 * len(HANDLERS)
    assert len(paths) >= 2 * 3 * len(HANDLERS)  # each is in a snapshot, too
    for path in paths:
        refused = run_as_stranger(path, "-u", prefix=daemon.prefix)
        assert (refused.stdout, refused.returncode) == ("", 99), path
    assert run_as_stranger("/usr/bin/id", "-u", prefix=daemon.prefix).stdout == f"{NOBODY}\n"


def test_everything_has_its_stated_mode(busy: Node) -> None:
    """Down to where containers' and drivers' own directories begin; there is nothing that no rule names."""
    tops = {"root": busy.daemon.root, "run": busy.daemon.run}
    drivers = [f"{role.directory}/*/*" for role in ROLES.values()]
    closed = {"root": ("containers/*/volumes/*", "plugins/*/*/*"), "run": ("pods/*/*", "containers/*/*", *drivers)}
    for name, top in tops.items():
        rules = [rule for rule in RULES if rule.top == name]
        for path in (top, *top.rglob("*")):
            place = str(path.relative_to(top))
            if path == busy.daemon.socket or any(_is_below(place, pattern) for pattern in closed[name]):
                continue
            stated = [rule for rule in rules if _is(place, rule.pattern)]
            assert stated, f"no rule states the mode of {path}"
            allowed = {stated[0].mode, rights.GATE if stated[0].gated else stated[0].mode}
            mode = stat.S_IMODE(path.lstat().st_mode)
            assert mode in allowed, f"{path} has {mode:o}, and {stated[0].mode:o} is stated"


def _is(place: str, pattern: str) -> bool:
    return place.count("/") == pattern.count("/") and fnmatch.fnmatchcase(place, pattern)


def _is_below(place: str, pattern: str) -> bool:
    return _is("/".join(place.split("/")[: pattern.count("/") + 1]), pattern) and "process.json" not in place


def test_what_containers_and_the_site_see_is_as_without_a_umask(busy: Node, tmp_path: Path) -> None:
    """The daemon's own umask reaches neither containers, nor their cgroups, nor directories and logs of the site."""
    for handler in HANDLERS:
        logs = tmp_path / handler / "made" / "logs"
        pod = Pod(busy, busy.run_pod(f"{handler}-seen", handler, log_directory=str(logs)))
        script = (
            "umask; stat -c %a / /etc /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /fresh /absent;"
            "cat /etc/hosts >/dev/null && test -x /sys/fs/cgroup/memory -o -r /sys/fs/cgroup/cgroup.procs"
        )
        volume = {"host_path": str(tmp_path / handler / "absent/volume"), "container_path": "/absent"}
        container = pod.start(
            "sh", "-c", script, image=VOLUMES, mounts=[volume], linux=confined(run_as_user={"value": 1000})
        )
        assert busy.wait_exit(container)["exit_code"] == 0
        out = busy.log(container).split()
        assert out == ["0022", "755", "755", "644", "644", "644", "1777", "755", "755"]
        for path in (
            tmp_path / handler / "made",
            logs,
            tmp_path / handler / "absent",
            tmp_path / handler / "absent/volume",
        ):
            assert stat.S_IMODE(path.stat().st_mode) == 0o755, path
        log = Path(busy.status(container)["log_path"])
        made_by_conmon = stat.S_IMODE(log.stat().st_mode)
        assert made_by_conmon in (0o600, 0o640)  # 2.1.6 and later ones
        directories = cgroup_directories(busy.daemon.name)
        assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o755}


def test_an_installation_of_an_earlier_version_is_closed_at_start(busy: Node) -> None:
    """With one line in the log; pods with user namespaces get further containers as before."""
    daemon = busy.daemon
    pods: list[Any] = [one for one in busy.call("ListPodSandbox")["items"] if one["metadata"]["name"].endswith("-1")]
    daemon.stop()
    _open_up(daemon.root, daemon.run)
    assert look(daemon.root / "state.db").found == {str(daemon.root / "state.db"): ["read"]}
    before = daemon.log.stat().st_size
    daemon.start()
    said = daemon.log.read_text(errors="replace")[before:]
    assert len([line for line in said.splitlines() if "were open to others: closed" in line]) == 1
    test_everything_has_its_stated_mode(busy)
    for pod in pods:
        assert Pod(busy, pod["id"]).sh("id -u", name="later") == "0\n"
    before = daemon.log.stat().st_size
    daemon.restart()
    assert "were open to others" not in daemon.log.read_text(errors="replace")[before:]


def _open_up(root: Path, run: Path) -> None:
    """Give what the rules name the modes that it had in version 0.1."""
    for rule in RULES:
        top = {"root": root, "run": run}[rule.top]
        for path in [top] if rule.pattern == "." else top.glob(rule.pattern):
            if path.is_dir():
                path.chmod(0o711 if rule.gated or rule.pattern in (".", "pods") else 0o755)
            else:
                path.chmod(0o644)
