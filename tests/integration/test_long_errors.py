"""A runtime's error may be longer than a pipe, and a text longer than the kernel takes: both are answered at once."""

import time

import pytest

from integration.conftest import RUNTIMES, Node
from integration.pods import QUICK, Pod, confined, refused
from support.patience import patient


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_error_that_quotes_a_long_command(node: Node, runtime: str) -> None:
    """conmon reads the error only once the runtime has ended, which waits for somebody to read it."""
    pod = Pod(node, node.run_pod("long", QUICK[runtime]))
    began = time.monotonic()
    container = pod.create("x" * 100_000)
    with refused("INVALID_ARGUMENT", rf"\({runtime}\) create: .*was to run 'xxx"):
        node.call("StartContainer", container_id=container)
    assert time.monotonic() - began < patient(20)
    assert pod.sh("echo fine") == "fine\n"


def test_a_list_of_processors_that_the_kernel_does_not_take(node: Node) -> None:
    pod = Pod(node, node.run_pod("cpus", QUICK["runc"]))
    cpus = ",".join(["0"] * 50_000)
    words = r"linux\.resources\.cpuset_cpus is 99999 characters long, more than the 49252"
    with refused("INVALID_ARGUMENT", words):
        pod.create("true", linux=confined({"cpuset_cpus": cpus}))
    container = pod.start("sleep", "100")
    with refused("INVALID_ARGUMENT", r"cpuset_cpus is 99999 characters"):
        node.call("UpdateContainerResources", container_id=container, linux={"cpuset_cpus": cpus})
