"""Another configuration for a daemon that runs: by ``crinoid reload``, SIGHUP and ``crinoid log-level``."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import BUSYBOX, Node
from integration.own_nodes import own_node
from integration.pods import refused, until
from support import programs
from support.images import build_busybox
from support.patience import patient

SECOND = "example.com/second:1"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    policy = '[extensions.policy]\ndriver = "policy"\n[extensions.policy.options]\ndefault = "allow"\n'
    with own_node(tmp_path_factory.mktemp("reload"), policy) as node:
        yield node


@pytest.fixture
def changes(node: Node) -> Iterator[Path]:
    """A drop-in for what a test changes; at the end all is as before."""
    file = node.daemon.config_file.parent / "conf.d/zz.toml"
    yield file
    file.unlink(missing_ok=True)
    crinoid(node, "reload")


def crinoid(node: Node, *arguments: str, code: int = 0) -> str:
    """Run a command with the daemon's configuration; return what it prints."""
    command = [sys.executable, "-m", "crinoid", *arguments, "--config", str(node.daemon.config_file)]
    done = programs.run(command, capture_output=True, text=True, timeout=patient(60), check=False)
    assert done.returncode == code, done.stderr
    return str(done.stdout or done.stderr)


def is_pinned(node: Node) -> bool:
    (image,) = (one for one in node.call("ListImages")["images"] if BUSYBOX in one["repo_tags"])
    return bool(image["pinned"])


def test_what_can_change_at_once_does_and_the_rest_is_named(node: Node, changes: Path, tmp_path: Path) -> None:
    container = node.run_container(node.run_pod(), "sleep", "1000")
    build_busybox(tmp_path / "second", SECOND)
    assert not is_pinned(node)
    changes.write_text(
        f"[images]\npinned = ['{BUSYBOX}']\n[pods]\npids_limit = 7\n"
        f"[registries.layout]\noptions = {{ directory = '{tmp_path}' }}\n"
    )
    pid = node.daemon.serving_pid()
    assert crinoid(node, "reload").splitlines() == [
        "changed: images.pinned, registries.layout.options.directory",
        "image sources have read their files anew",
        "not changed, as it takes a takeover (crinoid upgrade) or a restart: pods.pids_limit",
    ]
    assert is_pinned(node)
    assert node.call("PullImage", image={"image": SECOND})
    assert crinoid(node, "reload").splitlines()[0] == "nothing has changed that can change at once"
    assert "pods.pids_limit" in crinoid(node, "reload").splitlines()[2]
    assert node.daemon.serving_pid() == pid
    assert node.status(container)["state"] == "CONTAINER_RUNNING"


def test_a_mistake_changes_nothing(node: Node, changes: Path) -> None:
    changes.write_text(f"[images]\npinned = ['{BUSYBOX}']\n[log]\nlevl = 'debug'\n")
    assert 'zz.toml:4: log.levl: unknown key; did you mean "level"?' in crinoid(node, "reload", code=78)
    signal_daemon(node)
    until(lambda: "nothing is reloaded" in node.daemon.log.read_text())
    assert not is_pinned(node)
    changes.write_text("[networks.x]\ndriver = 'bridg'\n")
    assert "networks.x.driver" in crinoid(node, "reload", code=78)


def test_rules_of_an_extension_and_deadlines_change_at_once(node: Node, changes: Path, tmp_path: Path) -> None:
    changes.write_text(
        "[extensions.policy]\ndeadline_s = 50\n[extensions.policy.options]\ndefault = 'deny'\n"
        "[deadlines]\ngrace_s = 6\n[deadlines.runtime]\ncreate = 100\n"
    )
    changed, _, kept = crinoid(node, "reload").splitlines()
    assert "deadlines.runtime.create" in changed
    assert "extensions.policy.options.default" in changed
    assert "extensions.policy.deadline_s" in changed
    assert kept.endswith("restart: deadlines.grace_s")
    with refused("FAILED_PRECONDITION", "the default is to deny"):
        node.pull()
    changes.write_text("[[extensions.policy.options.rules]]\naction = 'signed'\nkeys = ['/nowhere.pub']\n")
    assert "/nowhere.pub can't be read" in crinoid(node, "reload", code=78)
    with refused("FAILED_PRECONDITION", "the default is to deny"):
        node.pull()
    changes.write_text("[deadlines.runtime]\ncreate = 0.000001\n")
    assert "extensions.policy.options.default" in crinoid(node, "reload")
    pod = node.run_pod("slow")
    with refused("DEADLINE_EXCEEDED", "create"):
        node.create(pod, "true")
    changes.unlink()
    crinoid(node, "reload")
    assert node.create(pod, "true")


def test_sighup_reloads(node: Node, changes: Path) -> None:
    changes.write_text(f"[images]\npinned = ['{BUSYBOX}']\n")
    signal_daemon(node)
    until(lambda: is_pinned(node))


def test_the_log_level_is_changed_until_the_next_reload(node: Node, changes: Path) -> None:
    def is_logged() -> bool:
        before = len(node.daemon.log.read_text())
        node.call("Version")
        return "Version" in node.daemon.log.read_text()[before:]

    assert is_logged()  # the tests' daemons log at the level debug
    assert "the log's level is error" in crinoid(node, "log-level", "error")
    assert not is_logged()
    crinoid(node, "reload")
    assert is_logged()


def test_without_a_daemon_there_is_nothing_to_reload(node: Node, tmp_path: Path) -> None:
    node.daemon.config_file.with_name("other.toml").write_text(f"run = '{tmp_path}/run'\nroot = '{tmp_path}/root'\n")
    command = [sys.executable, "-m", "crinoid", "reload", "-c", str(node.daemon.config_file.with_name("other.toml"))]
    done = programs.run(command, capture_output=True, text=True, timeout=patient(60), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no daemon that knows this runs over" in done.stderr


def signal_daemon(node: Node) -> None:
    pid = node.daemon.serving_pid()
    assert pid is not None
    os.kill(pid, signal.SIGHUP)
