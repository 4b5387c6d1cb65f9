"""Drivers in processes of their own: all roles of a node at once, and ones that block, leak, end or talk rubbish."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from support import cgroup_namespace
from support.daemon import Daemon, container_config, pod_config
from support.distributions import QUIET, QUIET_ENTRIES, Site
from support.examples import declare
from support.images import build_busybox
from support.patience import patient

pytestmark = pytest.mark.integration

IMAGE = "registry.test/busybox:1"
ALL_ROLES = """\
images.sources = ["layout"]
pods.default_runtime = "runc"
[runtimes.runc]
driver = "runc"
isolation = true
[network]
driver = "host"
isolation = {{ unresponsive_s = 20 }}
[snapshotter]
driver = "native"
isolation = {{ memory_bytes = 268435456 }}
[registries.layout]
driver = "layout"
options = {{ directory = "{layouts}" }}
isolation = {{ user = "nobody", memory_bytes = 268435456 }}
[extensions.guard]
driver = "guard"
on_failure = "fail"
deadline_s = 30
options = {{ allow = ["registry.test/*"], inject = [{{ environment = {{ SITE = "here" }} }}] }}
isolation = true
[extensions.policy]
driver = "policy"
options.default = "allow"
isolation = true
"""
PLAIN = Path(__file__).parents[1] / "support" / "plain_driver.py"
NAUGHTY = """\
import asyncio, os, sys, time
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.testing.noops import NoopNetwork

class Driver(NoopNetwork):
    @hookimpl
    async def attach(self, request, plan):
        what = request.annotations.get("what")
        if what == "block":
            time.sleep(3600)
        elif what == "leak":
            hoard = []
            while True:
                hoard.append(bytearray(1 << 20))
                await asyncio.sleep(0)
        elif what == "exit":
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        elif what == "rubbish":
            os.write(3, b"HTTP/1.1 200 OK\\r\\n" * 100)
        elif what == "no JSON":
            os.write(3, b"\\0\\0\\0\\4\\0\\0\\0\\0nope")
        elif what == "wrong":
            return {"addresses": 5}
        elif what == "raise":
            raise ValueError("of its own")
        return await super().attach(request, plan)
"""
FAULTS = """\
pods.default_runtime = "quiet"
images.sources = ["quiet"]
deadlines.grace_s = 0.5
deadlines.network.attach = {attach_s}
watchdog.stall_s = {stall_s}
[runtimes.runc]
enabled = false
[runtimes.quiet]
driver = "quiet"
[runtimes.bad]
driver = "quiet"
network = "bad"
[network]
driver = "quiet"
[runtimes.plain]
driver = "quiet"
network = "plain"
[networks.plain]
driver = "whatever it calls itself"
options = {{ mtu = 9000 }}
isolation = {{ program = ["{python}", "{plain}"] }}
[networks.bad]
driver = "naughty"
isolation = {{ memory_bytes = 134217728, unresponsive_s = {unresponsive_s} }}
[snapshotter]
driver = "quiet"
[registries.quiet]
driver = "quiet"
"""


def children(daemon: Daemon) -> dict[str, int]:
    """The plugins' processes of a daemon, by role and slot."""
    return dict(processes(daemon))


def processes(daemon: Daemon) -> list[tuple[str, int]]:
    """The same, also where a slot has two."""
    assert daemon.process is not None
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "plugin-host" in words and words[-2] == str(daemon.process.pid):
            role, slot = words[words.index("plugin-host") + 1 :][:2]
            found.append((f"{role} {slot}", int(path.parent.name)))
    return found


def until(condition: Any, limit_s: float = 30) -> Any:
    deadline = time.monotonic() + patient(limit_s)
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(patient(0.05))
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("isolated")
    layouts = Path("/run") / f"layouts-{os.getpid()}"  # where another user can read
    layouts.mkdir()
    build_busybox(layouts / "busybox", IMAGE)
    subprocess.run(["chmod", "-R", "a+rX", str(layouts)], check=True)
    path = declare(directory / "site", "crinoid-extension-guard")
    with cgroup_namespace.held() as prefix:
        daemon = Daemon(directory / "d", ALL_ROLES.format(layouts=layouts), (*prefix, "env", f"PYTHONPATH={path}"))
        try:
            yield daemon.start()
            daemon.clean()
            assert daemon.leftovers() == []
        finally:
            daemon.end()
            subprocess.run(["rm", "-r", str(layouts)], check=True)


def start_pod(daemon: Daemon, name: str, *command: str) -> tuple[str, str]:
    """Run a pod with one container; return both ids."""
    config = pod_config(name, log_directory=str(daemon.directory / "logs" / name))
    pod = daemon.cri.call("RunPodSandbox", config=config)["pod_sandbox_id"]
    container = daemon.cri.call(
        "CreateContainer", pod_sandbox_id=pod, sandbox_config=config, config=container_config("c", IMAGE, *command)
    )["container_id"]
    daemon.cri.call("StartContainer", container_id=container)
    return pod, container


def is_executed(daemon: Daemon, container: str, *command: str) -> bool:
    """Execute something; a call that the process's end has caught up with is tried again, as the kubelet does."""
    try:
        return bool(daemon.cri.call("ExecSync", container_id=container, cmd=[*command])["exit_code"] == 0)
    except grpc.RpcError as error:
        assert error.code().name == "UNAVAILABLE", error.details()
        return False


def status_of(daemon: Daemon, container: str) -> Any:
    return daemon.cri.call("ContainerStatus", container_id=container)["status"]


def reload(daemon: Daemon, code: int = 0) -> str:
    """Reload the configuration; return what is printed."""
    command = [*daemon.prefix, sys.executable, "-m", "crinoid", "reload", "--config", str(daemon.config_file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=patient(60))
    assert done.returncode == code, done.stderr
    return done.stdout or done.stderr


class TestAllRoles:
    """runc, host, native, layout as nobody, policy, and the example guard, each in a process of its own."""

    def test_a_pods_life(self, node: Daemon) -> None:
        node.cri.call("PullImage", image={"image": IMAGE})
        pod, container = start_pod(node, "life", "sh", "-c", "echo $SITE; exec sleep 1000")
        assert sorted(children(node)) == [
            "extension guard", "extension policy", "network default", "registry layout", "runtime runc",
            "snapshotter default",
        ]  # fmt: skip
        log = node.directory / "logs" / "life" / "c.log"
        until(lambda: "stdout F here" in log.read_text())
        done = node.cri.call("ExecSync", container_id=container, cmd=["sh", "-c", "echo out; echo err >&2; exit 7"])
        assert (done["exit_code"], done["stdout"], done["stderr"]) == (7, "b3V0Cg==", "ZXJyCg==")
        assert node.cri.call("ContainerStats", container_id=container)["stats"]["memory"]
        node.cri.call("StopContainer", container_id=container, timeout=0)
        status = node.cri.call("ContainerStatus", container_id=container)["status"]
        assert (status["state"], status["exit_code"]) == ("CONTAINER_EXITED", 137)
        with pytest.raises(grpc.RpcError, match="forbidden"):
            node.cri.call("PullImage", image={"image": "forbidden.test/app:1"})
        node.cri.call("RemovePodSandbox", pod_sandbox_id=pod)

    def test_a_user_of_its_own(self, node: Daemon) -> None:
        status = Path(f"/proc/{children(node)['registry layout']}/status").read_text()
        assert re.search(r"^Uid:\t65534\t65534\t65534\t65534$", status, re.MULTILINE)
        assert "CapEff:\t0000000000000000" in status

    def test_streams(self, node: Daemon) -> None:
        """An exec and an attach session, whose streams are in the runtime's process."""
        pod, container = start_pod(node, "streams", "sleep", "1000")
        ctl = [sys.executable, "-m", "crinoid", "ctl", "--runtime-endpoint", f"unix://{node.socket}", "exec", "-i"]
        big = os.urandom(1 << 20)
        done = subprocess.run(
            [*ctl, container, "sh", "-c", "cat; echo err >&2; exit 5"], input=big, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr.splitlines()[:1], done.stdout == big) == (5, [b"err"], True)
        node.cri.call("RemovePodSandbox", pod_sandbox_id=pod)

    def test_containers_outlive_their_runtimes_process_and_their_ends_are_seen(self, node: Daemon) -> None:
        pod, container = start_pod(node, "outlives", "sh", "-c", "while ! [ -e /go ]; do sleep 0.1; done; exit 9")
        former = children(node)
        os.kill(former["runtime runc"], signal.SIGKILL)
        until(lambda: is_executed(node, container, "touch", "/go"))
        until(lambda: status_of(node, container)["state"] == "CONTAINER_EXITED")
        assert status_of(node, container)["exit_code"] == 9
        now = children(node)
        assert now["runtime runc"] != former["runtime runc"]
        assert {**now, "runtime runc": 0} == {**former, "runtime runc": 0}
        assert 'runtime "runc": its process' in node.log.read_text()
        node.cri.call("RemovePodSandbox", pod_sandbox_id=pod)

    def test_it_is_shown(self, node: Daemon) -> None:
        listed = subprocess.run(
            [*node.prefix, sys.executable, "-m", "crinoid", "plugins", "--config", str(node.config_file)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert re.search(r"network +host .* default +default +selected", listed), listed
        assert re.search(r"network +bridge .* - +- +available", listed), listed

    def test_a_slot_has_one_process_also_after_a_reload(self, node: Daemon) -> None:
        former, logged = processes(node), node.log.stat().st_size
        assert len(former) == 6
        reload(node)
        anew = {name: pid for name, pid in former if name in ("registry layout", "extension policy")}
        until(lambda: all(map(is_gone, anew.values())))
        until(lambda: len(processes(node)) == 6)
        node.cri.call("PullImage", image={"image": IMAGE})
        now = processes(node)
        assert len(now) == 6
        assert {**dict(now), **anew} == dict(former)
        assert "is started again" not in node.log.read_text()[logged:]

    def test_an_extension_that_is_replaceable_is_made_anew_by_a_reload(self, node: Daemon) -> None:
        """``policy``, by its rules; what is no rule of it stays, and the next reload says so again."""
        changes = node.config_file.parent / "conf.d/zz.toml"
        changes.write_text("[extensions]\npolicy.options.default = 'deny'\nguard.options.allow = ['*']\n")
        try:
            for _ in range(2):
                changed, _, kept = reload(node).splitlines()
                assert kept.endswith("restart: extensions.guard.options.allow")
                with pytest.raises(grpc.RpcError, match="the default is to deny"):
                    node.cri.call("PullImage", image={"image": IMAGE})
            assert changed == "nothing has changed that can change at once"
        finally:
            changes.unlink()
            assert "extensions.policy.options.default" in reload(node)
        node.cri.call("PullImage", image={"image": IMAGE})

    def test_a_reload_that_fails_leaves_no_process(self, node: Daemon) -> None:
        until(lambda: len(processes(node)) == 6)
        changes, former = node.config_file.parent / "conf.d/zz.toml", sorted(processes(node))
        changes.write_text("[[extensions.policy.options.rules]]\naction = 'signed'\nkeys = ['/nowhere.pub']\n")
        try:
            assert "/nowhere.pub can't be read" in reload(node, code=os.EX_CONFIG)
        finally:
            changes.unlink()
        until(lambda: sorted(processes(node)) == former)

    def test_takeovers(self, node: Daemon) -> None:
        """The successor has processes of its own, and the ones of before end; pods run on, and what comes to their end
        meanwhile is seen."""
        node.cri.call("PullImage", image={"image": IMAGE})
        pod, container = start_pod(node, "takeover", "sh", "-c", "while ! [ -e /go ]; do sleep 0.1; done; exit 9")
        for _ in range(2):
            former, logged = processes(node), node.log.stat().st_size
            before = node.take_over()
            until(lambda pids=[pid for _, pid in former]: all(map(is_gone, pids)))
            assert sorted(name for name, _ in processes(node)) == sorted(name for name, _ in former)
            before.terminate()  # it would pass calls on until its last client has moved
            before.wait(patient(60))
            assert not re.search("is started again|was ended|has ended with", node.log.read_text()[logged:])
        assert is_executed(node, container, "touch", "/go")
        until(lambda: status_of(node, container)["state"] == "CONTAINER_EXITED")
        assert status_of(node, container)["exit_code"] == 9
        node.cri.call("RemovePodSandbox", pod_sandbox_id=pod)

    def test_nothing_outlives_a_daemon_that_is_killed(self, node: Daemon) -> None:
        pids = children(node).values()
        assert len(pids) == 6
        node.kill()
        until(lambda: all(map(is_gone, pids)))
        node.start()
        assert len(children(node)) == 6
        start_pod(node, "after", "true")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("faulty")
    site = Site(directory / "site")
    site.directory.mkdir()
    site.install("quiet", QUIET_ENTRIES, QUIET)
    site.install("naughty-network", "[crinoid.networks]\nnaughty = naughty_network:Driver\n", NAUGHTY)
    seconds = {"attach_s": patient(3), "stall_s": patient(1), "unresponsive_s": patient(2)}
    config = FAULTS.format(**seconds, python=sys.executable, plain=PLAIN)
    daemon = Daemon(directory / "d", config, ("env", f"PYTHONPATH={site.directory}"))
    try:
        yield daemon.start()
        daemon.restart()  # which tries at once what could not be undone
        daemon.clean()
        assert daemon.leftovers() == []
    finally:
        daemon.end()


def run_pod(daemon: Daemon, name: str, handler: str = "bad", **annotations: str) -> str:
    config = pod_config(name, annotations=annotations)
    answer = daemon.cri.call("RunPodSandbox", config=config, runtime_handler=handler, timeout_s=60)
    return str(answer["pod_sandbox_id"])


def waits_of(daemon: Daemon, since: int) -> list[float]:
    """The seconds before each start, as the log has them."""
    return [float(one) for one in re.findall(r"it is started again in ([0-9.]+) s", daemon.log.read_text()[since:])]


class TestFaults:
    """A network that misbehaves, by what a pod's annotation says, beside one that does not."""

    @pytest.mark.parametrize(
        ("what", "code", "words"),
        [
            ("block", "DEADLINE_EXCEEDED|UNAVAILABLE", "has not answered for .* s: something holds its event loop"),
            ("leak", "UNAVAILABLE|DEADLINE_EXCEEDED", "was killed at its memory limit"),
            ("exit", "UNAVAILABLE", r"has ended with exit code 3"),
            ("rubbish", "UNAVAILABLE", "it does not speak the protocol: a frame of 1213486160 bytes of JSON"),
            ("no JSON", "UNAVAILABLE", "it does not speak the protocol: a frame that holds no JSON"),
        ],
    )
    def test_only_its_pods_suffer(self, faulty: Daemon, what: str, code: str, words: str) -> None:
        run_pod(faulty, f"before {what}")
        logged = faulty.log.stat().st_size
        former = children(faulty)["network bad"]
        with pytest.raises(grpc.RpcError) as caught:
            run_pod(faulty, f"suffers {what}", what=what)
        assert re.fullmatch(code, caught.value.code().name), caught.value.details()
        assert 'network "bad" (naughty) attach: ' in caught.value.details()
        run_pod(faulty, f"others {what}", "quiet")
        until(lambda: children(faulty).get("network bad", former) != former)
        until(lambda: 'network "bad": its process was started again' in faulty.log.read_text()[logged:])
        run_pod(faulty, f"after {what}")
        log = faulty.log.read_text()[logged:]
        assert re.search(rf'network "bad": its process {former} .*{words}.*; it is started again in ', log), log
        assert faulty.stalls(logged) == []
        if what == "exit":
            assert "last words" in log

    def test_a_driver_that_uses_nothing_of_crinoid(self, faulty: Daemon) -> None:
        pod = run_pod(faulty, "plain", "plain")
        assert faulty.cri.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["network"]["ip"] == "192.0.2.7"
        faulty.cri.call("RemovePodSandbox", pod_sandbox_id=pod)
        made = f"crinoid.plugins.network.plain.plain: made in {faulty.root}/plugins/network/plain."
        assert made in faulty.log.read_text()

    def test_a_wrong_answer_is_a_failure_of_the_call_alone(self, faulty: Daemon) -> None:
        before = children(faulty)
        for what, words in (("wrong", "returned dict where Attachment is due"), ("raise", "ValueError: of its own")):
            with pytest.raises(grpc.RpcError) as caught:
                run_pod(faulty, what, what=what)
            assert caught.value.code().name == "INTERNAL"
            assert caught.value.details().endswith(f'network "bad" (naughty) attach: {words}')
        assert children(faulty) == before
        assert "crinoid.plugins.network.bad" in faulty.log.read_text()

    @pytest.mark.timeout(300)
    def test_one_that_never_comes_up_again_is_unavailable_and_tried_less_and_less(self, faulty: Daemon) -> None:
        module = Path(faulty.prefix[-1].partition("=")[2]) / "naughty_network.py"
        module.write_text("import os, sys\nprint('no licence', file=sys.stderr, flush=True)\nos._exit(1)\n")
        logged = faulty.log.stat().st_size
        os.kill(children(faulty)["network bad"], signal.SIGKILL)
        until(lambda: len(waits_of(faulty, logged)) > 1 and waits_of(faulty, logged)[-1] > 0.5, 100)
        assert waits_of(faulty, logged) == sorted(waits_of(faulty, logged))
        with pytest.raises(grpc.RpcError) as caught:
            run_pod(faulty, "in vain")
        assert caught.value.code().name == "UNAVAILABLE"
        assert re.search("process can't be started: .*no licence.*; it is started again", caught.value.details())
        run_pod(faulty, "others", "quiet")
        module.write_text(NAUGHTY)
        until(lambda: "its process was started again" in faulty.log.read_text()[logged:], 200)
        run_pod(faulty, "at last")


def test_what_is_wrong_is_found_before_the_start(tmp_path: Path) -> None:
    """A user, an interpreter and options that can't be, all in one run."""
    file = tmp_path / "config.toml"
    file.write_text(
        '[network]\ndriver = "host"\nisolation = { user = "nobody-of-that-name" }\n'
        '[snapshotter]\ndriver = "native"\nisolation = { python = "/nowhere/python" }\n'
        '[registries.layout]\ndriver = "layout"\noptions = { directry = "/x" }\nisolation = true\n'
    )
    checked = subprocess.run(
        [sys.executable, "-m", "crinoid", "config", "check", "--config", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == os.EX_CONFIG
    assert 'there is no user "nobody-of-that-name" on this host' in checked.stderr
    assert "program /nowhere/python can't be run" in checked.stderr
    assert 'options.directry: unknown key; did you mean "directory"?' in checked.stderr
