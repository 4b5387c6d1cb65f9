"""Odd requests to every RPC of a live daemon, twenty thousand and more, fewer on a slow machine: it answers each with
a status that says what is wrong, leaks nothing, and lives.

The daemon is in a network namespace without a way out; ``support.scrambling`` makes the requests, and keeps them
harmless.
"""

import contextlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from crinoid.core.cri.calls import _is_read
from crinoid.core.cri.wire import api_pb2
from integration.conftest import BUSYBOX, write_conflist
from support import network_namespace
from support.cri import RPCS
from support.daemon import Daemon, container_config, pod_config
from support.images import build_busybox
from support.patience import SLOWNESS, patient
from support.scrambling import Confines, Draw, mutate, scramble, tame

EXAMPLES, ODD, DAMAGED = max(4, int(40 / SLOWNESS)), 3, 9
"""Batches of requests for each RPC; a tenth where a machine is ten times as slow, or they would take hours."""
LEAST = 500 * EXAMPLES
PATIENCE_S = 5.0
BAD = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
IDLE = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")


@dataclass
class Target:
    """A daemon with some pods and containers, which are made anew as requests end them."""

    daemon: Daemon
    directory: Path
    sent: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    channel: grpc.Channel = field(init=False)
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(f"unix://{self.daemon.socket}")

    def kind(self, rpc: str) -> type[Message]:
        """Return the class of an RPC's request."""
        found: type[Message] = getattr(api_pb2, RPCS[rpc].input_type.name)
        return found

    def template(self, rpc: str) -> Message:
        """Return a request that is fine, with place holders for ids."""
        fields: dict[str, Any] = {}
        names = RPCS[rpc].input_type.fields_by_name
        name = f"fuzz{secrets.token_hex(3)}"
        logs = {"log_directory": "@directory/logs", "linux": {"cgroup_parent": f"{self.daemon.cgroup}/fuzz"}}
        if "pod_sandbox_id" in names:
            fields["pod_sandbox_id"] = "@pod0"
        if "container_id" in names:
            fields["container_id"] = "@container0"
        if "image" in names:
            fields["image"] = {"image": BUSYBOX}
        if rpc == "RunPodSandbox":
            fields["config"] = pod_config(name, **logs)
        elif rpc == "CreateContainer":
            fields |= {"config": container_config(name, BUSYBOX, *IDLE), "sandbox_config": pod_config(name, **logs)}
        elif "cmd" in names:
            fields["cmd"] = ["true"]
        fields |= {"stdout": True} if "stdout" in names else {}
        return json_format.ParseDict(fields, self.kind(rpc)())

    def tend(self) -> None:
        """See to it that there are two pods with a running container each, and not many more."""
        for _ in range(20):
            with contextlib.suppress(grpc.RpcError):  # a stop that a client gave up on may still be under way
                return self._tend()
            time.sleep(0.1)
        return self._tend()

    def _tend(self) -> None:
        call = self.daemon.cri.call
        pods = call("ListPodSandbox")["items"]
        for pod in pods[6:]:
            call("RemovePodSandbox", pod_sandbox_id=pod["id"])
        ready = [pod["id"] for pod in pods[:6] if pod["state"] == "SANDBOX_READY"]
        while len(ready) < 2:
            config = pod_config(f"live{secrets.token_hex(4)}", log_directory=str(self.directory / "logs"))
            ready.append(call("RunPodSandbox", config=config)["pod_sandbox_id"])
        for number, pod_id in enumerate(ready[:2]):
            self.ids[f"@pod{number}"] = pod_id
            self.ids[f"@container{number}"] = self._container(pod_id)

    def _container(self, pod: str) -> str:
        call = self.daemon.cri.call
        running = {"pod_sandbox_id": pod, "state": {"state": "CONTAINER_RUNNING"}}
        for one in call("ListContainers", filter=running)["containers"]:
            return str(one["id"])
        config = container_config(f"live{secrets.token_hex(4)}", BUSYBOX, *IDLE)
        container = str(call("CreateContainer", pod_sandbox_id=pod, config=config)["container_id"])
        call("StartContainer", container_id=container)
        return container

    def send_all(self, rpc: str, requests: list[bytes]) -> None:
        """Send requests at the same time; each has to end in a status that is no fault of ours."""
        calls = [(request, self._send(rpc, request)) for request in requests]
        self.sent[rpc] += len(calls)
        created: list[str] = []
        for request, call in calls:
            code = self._outcome(rpc, call)
            self.codes[code.name] += 1
            if rpc == "CreateContainer" and code is grpc.StatusCode.OK:
                created.append(api_pb2.CreateContainerResponse.FromString(call.result()).container_id)
            if code.name in BAD:
                fault = f"{rpc}: {code.name}: {call.details()}\n{request!r:.1000}"
                self.faults.setdefault(fault[:100], fault)
        if created:  # what was asked for oddly has to start, too, and to go
            ids = [api_pb2.StartContainerRequest(container_id=one).SerializeToString() for one in created]
            self.send_all("StartContainer", ids)
            self.send_all("RemoveContainer", ids)

    def _send(self, rpc: str, request: bytes) -> Any:
        path = f"/{RPCS[rpc].containing_service.full_name}/{rpc}"
        if RPCS[rpc].server_streaming:
            return self.channel.unary_stream(path)(request, timeout=PATIENCE_S)
        return self.channel.unary_unary(path).future(request, timeout=PATIENCE_S)

    def _outcome(self, rpc: str, call: Any) -> grpc.StatusCode:
        if rpc == "GetContainerEvents":  # it has no end
            call.cancel()
        try:
            for _ in call if RPCS[rpc].server_streaming else [call.result()]:
                pass
        except grpc.FutureCancelledError:
            return grpc.StatusCode.CANCELLED
        except grpc.RpcError:
            pass
        code: grpc.StatusCode = call.code()
        return code

    def size(self) -> tuple[int, int]:
        """Return how many descriptors and threads the daemon has."""
        assert self.daemon.process is not None
        directory = Path(f"/proc/{self.daemon.process.pid}")
        return len(os.listdir(directory / "fd")), len(os.listdir(directory / "task"))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("fuzz")
    build_busybox(directory / "layouts" / "busybox", BUSYBOX)
    write_conflist(directory / "net.d", "fuzz0", "10.86.0.0/16", directory / "ipam")
    config = (
        "[network]\ndriver = 'host'\n"
        f"[networks.cni]\ndriver = 'cni'\noptions = {{ conf_dir = '{directory / 'net.d'}' }}\n"
        "[runtimes.0]\ndriver = 'runc'\nnetwork = 'cni'\n"
        "[images]\nsources = ['layout']\n"
        f"[registries.layout]\ndriver = 'layout'\noptions = {{ directory = '{directory / 'layouts'}' }}\n"
    )
    with network_namespace.held() as network:
        daemon = Daemon(directory / "daemon", config, network.prefix)
        try:
            daemon.start()
            daemon.cri.call("PullImage", image={"image": BUSYBOX})
            (directory / "inside").mkdir()
            target = Target(daemon, directory / "inside")
            target.tend()
            yield target
            target.channel.close()
        finally:
            daemon.end()


@pytest.mark.timeout(600)
def test_odd_requests(target: Target) -> None:
    """One test of all RPCs, so that what one leaves behind meets the others; then the count, and the bill."""
    confines = Confines(target.directory, target.daemon.cgroup, lambda: target.ids)
    before = target.size()
    for rpc in RPCS:
        _fuzz(target, confines, rpc)
    assert not target.faults, "\n\n".join(target.faults.values())
    assert sum(target.sent.values()) >= LEAST
    assert min(target.sent[rpc] for rpc in RPCS) >= LEAST // len(RPCS)
    assert set(target.codes) >= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    _check_size(target, before)
    log = target.daemon.log.read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    target.daemon.clean()
    assert target.daemon.query("SELECT owner, kind, key FROM ledger") == []
    assert target.daemon.leftovers() == []
    assert target.daemon.process is not None
    assert target.daemon.process.returncode == 0


def _fuzz(target: Target, confines: Confines, rpc: str) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def send_odd(data: st.DataObject) -> None:
        odd = [_odd_message(target, data.draw, rpc) for _ in range(ODD)]
        seed = data.draw(st.integers(0, 1 << 40))
        damaged = [mutate(odd[number % ODD], seed + number) for number in range(DAMAGED)]
        if not _is_read(rpc):  # which ends nothing
            target.tend()
        target.send_all(rpc, [tame(target.kind(rpc), one, confines) for one in (*odd, *damaged)])

    target.tend()
    send_odd()


def _odd_message(target: Target, draw: Draw, rpc: str) -> bytes:
    """Mostly a good request with a fault or two, which goes deepest; sometimes nothing but faults."""
    good = draw(st.integers(0, 7))
    message = target.template(rpc) if good else target.kind(rpc)()
    scramble(draw, message, draw(st.integers(0, 2)) if good else 4)
    return message.SerializeToString()


def _check_size(target: Target, before: tuple[int, int]) -> None:
    """Once all pods are gone, the daemon is about as large as it was."""
    target.daemon.cri.call("Version")
    for pod in target.daemon.cri.call("ListPodSandbox")["items"]:
        target.daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod["id"])
    deadline = time.monotonic() + patient(60)
    while (now := target.size())[0] > before[0] + 8 or now[1] > before[1] + 40:
        assert time.monotonic() < deadline, f"descriptors and threads grew from {before} to {now}"
        time.sleep(0.1)
