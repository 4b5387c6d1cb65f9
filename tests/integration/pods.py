"""A pod to run short containers in, for tests of what a container finds inside, and requests that are refused."""

import contextlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from integration.conftest import Node
from support.patience import patient

Json = dict[str, Any]
QUICK = {"runc": "runc-host-overlay", "crun": "crun-host-overlay"}
"""For each runtime the handler of pods that need no network to be set up."""


@dataclass
class Pod:
    """One pod; each container gets a name of its own."""

    node: Node
    id: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def sh(self, script: str, **config: Any) -> str:
        """Run a script to its end, which must be a good one; return what it wrote."""
        container = self.start("sh", "-c", script, **config)
        status = self.node.wait_exit(container)
        assert status["exit_code"] == 0, self.node.log(container)
        return self.node.log(container)

    def start(self, *command: str, **config: Any) -> str:
        """Create and start a container."""
        return self.node.run_container(self.id, *command, **self._named(config))

    def create(self, *command: str, **config: Any) -> str:
        """Create a container."""
        return self.node.create(self.id, *command, **self._named(config))

    def pid(self, container: str) -> int:
        """Return the first process of a container, once it is busybox and no more the runtime's binary."""
        answer = self.node.call("ContainerStatus", container_id=container, verbose=True)
        pid = int(json.loads(answer["info"]["info"])["pid"])
        until(lambda: os.readlink(f"/proc/{pid}/exe").endswith("/busybox"))
        return pid

    def _named(self, config: Json) -> Json:
        return {"name": f"c{next(self._numbers)}"} | config


def confined(resources: Json | None = None, **security: Any) -> Json:
    """The ``linux`` part of a container with a PID namespace of its own, and what the test wants."""
    context = {"namespace_options": {"pid": "CONTAINER"}} | security
    return {"security_context": context, "resources": resources or {}}


@contextlib.contextmanager
def refused(code: str, words: str) -> Iterator[None]:
    """The request inside must fail with this gRPC status and a text that fits."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code().name == code, caught.value.details()
    assert re.search(words, caught.value.details()), caught.value.details()


def until(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    """Poll until the condition gives something, and return that."""
    deadline = time.monotonic() + patient(timeout_s)
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not so after {timeout_s} s: {condition}"
        time.sleep(patient(0.01))
    return found
