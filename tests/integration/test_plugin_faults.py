"""A stranger's extension that misbehaves, in a real daemon: every request is answered, and names who is at fault."""

import contextlib
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from support import programs
from support.daemon import Daemon, pod_config
from support.distributions import QUIET, QUIET_ENTRIES, Site
from support.patience import patient

NAUGHTY = """\
import asyncio, builtins, os, sys, time
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.testing.noops import NoopExtension

class Custom(BaseException):
    pass

class Driver(NoopExtension):
    async def act(self, what):
        if what == "block":
            time.sleep(2.5)
        elif what == "swallow":
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    pass
        elif what == "wait":
            print("waiting", flush=True)
            await asyncio.sleep(60)
        elif what == "leave a task":
            self.left = asyncio.create_task(self.act("swallow"))
            await asyncio.sleep(0)
            raise RuntimeError("no policy")
        elif what == "lost task":
            work = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(work.cancel)
            await work
        elif what == "background exit":
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            asyncio.create_task(self.act("SystemExit"))
            await asyncio.sleep(0.1)
        elif what:
            raise {"CancelledError": asyncio.CancelledError, "Custom": Custom}.get(what) or getattr(builtins, what)

    @hookimpl
    async def connect(self, kernel):
        await self.act(os.environ.get("CONNECT"))

    @hookimpl
    async def pod_starting(self, pod):
        await self.act(pod.config.annotations.get("starting"))

    @hookimpl
    async def pod_stopped(self, pod):
        await self.act(pod.config.annotations.get("stopped"))

    @hookimpl
    async def pod_removed(self, pod):
        await self.act(pod.config.annotations.get("removed"))
"""
CONFIG = """\
pods.default_runtime = "quiet"
images.sources = ["quiet"]
deadlines.grace_s = 0.5
watchdog.stall_s = 0.5
metrics.listen = "127.0.0.1:{port}"
[runtimes.runc]
enabled = false
[runtimes.quiet]
driver = "quiet"
[network]
driver = "quiet"
[snapshotter]
driver = "quiet"
[registries.quiet]
driver = "quiet"
[extensions.strict]
driver = "naughty"
on_failure = "fail"
deadline_s = 0.5
"""


@pytest.fixture(scope="module")
def naughty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("naughty")
    site = Site(directory / "site")
    site.directory.mkdir()
    site.install("quiet", QUIET_ENTRIES, QUIET)
    site.install("naughty-policy", "[crinoid.extensions]\nnaughty = naughty_policy:Driver\n", NAUGHTY)
    port = free_port()
    daemon = Daemon(
        directory / "d", CONFIG.format(port=port), ("env", f"PYTHONPATH={site.directory}", f"METRICS={port}")
    )
    try:
        yield daemon.start()
        daemon.clean()
        assert daemon.leftovers() == []
    finally:
        daemon.end()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def get(daemon: Daemon, path: str) -> tuple[int, str]:
    port = daemon.prefix[-1].partition("=")[2]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=patient(10)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def run_pod(daemon: Daemon, name: str, **annotations: str) -> str:
    config = pod_config(name, annotations=annotations)
    return str(daemon.cri.call("RunPodSandbox", config=config, timeout_s=20)["pod_sandbox_id"])


def refusal(daemon: Daemon, name: str, **annotations: str) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        run_pod(daemon, name, **annotations)
    return caught.value.code().name, caught.value.details()


RAISED = ("CancelledError", "KeyboardInterrupt", "SystemExit", "GeneratorExit", "Custom", "lost task", "ValueError")


@pytest.mark.parametrize("what", RAISED)
def test_whatever_it_raises_is_answered_by_its_name(naughty: Daemon, what: str) -> None:
    code, text = refusal(naughty, "raises", starting=what)
    assert (code, text.partition(" pod_starting: ")[0]) == ("INTERNAL", 'extension "strict" (naughty)')
    pod = run_pod(naughty, "ends", stopped=what, removed=what)
    naughty.cri.call("StopPodSandbox", pod_sandbox_id=pod, timeout_s=20)
    naughty.cri.call("RemovePodSandbox", pod_sandbox_id=pod, timeout_s=20)
    assert "the client has gone away" not in naughty.log.read_text()


def test_what_raises_outside_every_request_does_not_end_the_daemon(naughty: Daemon) -> None:
    run_pod(naughty, "background", starting="background exit")
    assert naughty.cri.call("Version", timeout_s=5)
    assert naughty.log.read_text().count("outside every request tried to end the daemon") == 2


def test_a_hook_that_swallows_its_cancellation_is_left_behind(naughty: Daemon) -> None:
    code, text = refusal(naughty, "swallows", starting="swallow")
    assert code == "DEADLINE_EXCEEDED"
    assert text.startswith('extension "strict" (naughty) pod_starting: no answer after 0.5 s; it was cancelled')
    assert naughty.cri.call("Version", timeout_s=5)
    well, text = get(naughty, "/healthz")
    assert (well, 'left behind: extension "strict" (naughty) pod_starting' in text) == (200, True)
    assert "crinoid_hooks_left_behind 1.0" in get(naughty, "/metrics")[1]
    started = time.monotonic()
    naughty.restart()  # nobody waits for it at the end
    assert time.monotonic() - started < patient(10)


def test_a_hook_that_blocks_the_loop_is_named_while_it_does(naughty: Daemon) -> None:
    assert get(naughty, "/healthz") == (200, "ok\n")
    pod = threading.Thread(target=run_pod, args=(naughty, "blocks"), kwargs={"starting": "block"})
    pod.start()
    deadline = time.monotonic() + patient(10)
    while (answer := get(naughty, "/healthz"))[0] == 200:
        assert time.monotonic() < deadline
    assert answer[0] == 503
    assert 'extension "strict" (naughty) pod_starting holds it' in answer[1]
    pod.join()
    log = naughty.log.read_text()
    assert "the event loop has stood still for" in log
    assert "time.sleep(2.5)" in log  # the line of the stack
    assert "the event loop goes on: it has stood still for" in log
    assert get(naughty, "/healthz") == (200, "ok\n")
    metrics = dict(line.rsplit(" ", 1) for line in get(naughty, "/metrics")[1].splitlines() if line[0] != "#")
    counts = [float(metrics[f'crinoid_loop_lag_seconds_bucket{{le="{bound}"}}']) for bound in ("1.0", "+Inf")]
    assert counts[0] < counts[1]


def test_nobody_locks_the_state_while_the_daemon_lives(naughty: Daemon) -> None:
    script = (
        f"import sqlite3; sqlite3.connect({str(naughty.root / 'state.db')!r}, timeout=0.1).execute('BEGIN IMMEDIATE')"
    )
    refused = subprocess.run([naughty.python, "-c", script], capture_output=True, text=True, check=False)
    assert "database is locked" in refused.stderr
    run_pod(naughty, "unlocked")


def test_a_locked_state_is_refused_at_the_start_and_left_as_it_is(naughty: Daemon) -> None:
    pod = run_pod(naughty, "kept")
    naughty.kill()
    with contextlib.closing(sqlite3.connect(naughty.root / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        naughty.launch()
        assert naughty.process is not None
        assert naughty.process.wait(patient(30)) == 75  # so that the unit tries again
        assert "state.db is locked: another process has had it open" in naughty.tail()
        other.execute("ROLLBACK")
    naughty.start()
    assert pod in {each["id"] for each in naughty.cri.call("ListPodSandbox")["items"]}
    assert not list(naughty.root.glob("*.broken-*"))


@pytest.fixture
def other(naughty: Daemon, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon whose extension does at the start what the parameter says."""
    config = CONFIG.format(port=free_port()).replace("deadline_s = 0.5\n", "deadline_s = 60\n")
    daemon = Daemon(tmp_path / "d", config, (*naughty.prefix, f"CONNECT={request.param}"))
    daemon.launch()
    yield daemon
    daemon.end()


@pytest.mark.parametrize("other", ["wait"], indirect=True)
def test_a_signal_is_obeyed_while_the_daemon_starts(other: Daemon) -> None:
    deadline = time.monotonic() + patient(30)
    while "waiting" not in other.tail():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    assert other.stop() == 0
    assert time.monotonic() - began < patient(10)


@pytest.mark.parametrize("other", ["leave a task"], indirect=True)
def test_a_start_that_fails_says_so_whatever_does_not_end(other: Daemon) -> None:
    assert other.process is not None
    assert other.process.wait(patient(30)) == 1
    assert 'extension "strict" (naughty) connect: RuntimeError: no policy' in other.tail()


def test_a_forgotten_mark_is_refused_by_serve_and_by_check(naughty: Daemon, tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    site.directory.mkdir()
    site.install("quiet", QUIET_ENTRIES, QUIET)
    module = NAUGHTY.replace("@hookimpl\n    async def pod_starting", "async def pod_starting")
    site.install("naughty-policy", "[crinoid.extensions]\nnaughty = naughty_policy:Driver\n", module)
    daemon = Daemon(tmp_path / "d", CONFIG.format(port=free_port()), ("env", f"PYTHONPATH={site.directory}"))
    message = (
        'extension driver "naughty" of distribution naughty-policy 1.0 does not fit its hooks, report it to its'
        " authors: naughty_policy.Driver.pod_starting has the name of a hook but no @hookimpl"
    )
    try:
        daemon.launch()
        assert daemon.process is not None
        assert daemon.process.wait(patient(30)) == 78
        assert message in daemon.tail()
        for command in (("config", "check"), ("plugins",)):
            words = [*daemon.prefix, daemon.python, "-m", "crinoid", *command, "--config", str(daemon.config_file)]
            told = programs.run(words, capture_output=True, text=True, check=False)
            assert message in told.stdout + told.stderr
            assert (told.returncode, command) in ((78, ("config", "check")), (0, ("plugins",)))
    finally:
        daemon.end()
