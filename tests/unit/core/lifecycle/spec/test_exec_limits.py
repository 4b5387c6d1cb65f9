"""The kernel's limits of execve(2): what is let through can be executed, and what is refused the kernel refuses."""

import json
import resource
import subprocess
import sys
from typing import Any

import pytest

from crinoid.core.api.bounds import MAX_STRING_BYTES
from crinoid.core.api.errors import InvalidArgument
from crinoid.core.lifecycle.spec.exec_limits import MAX_VARIABLES, check_process

_EXECUTE = """
import json, os, resource, sys
process, stack = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_STACK, (stack, resource.getrlimit(resource.RLIMIT_STACK)[1]))
try:
    os.execve(process["args"][0], process["args"], dict(one.split("=", 1) for one in process["env"]))
except OSError as error:
    sys.exit(error.errno)
"""


def kernel_takes(process: dict[str, Any], stack: int) -> bool:
    """Execute ``/bin/true`` with this process's arguments and environment under a limit of the stack."""
    done = subprocess.run(
        [sys.executable, "-c", _EXECUTE], input=json.dumps((process, stack)), text=True, check=False, timeout=60
    )
    assert done.returncode in (0, 7), "E2BIG is 7"
    return done.returncode == 0


def is_taken(process: dict[str, Any], stack: int) -> bool:
    try:
        check_process({**process, "rlimits": [{"type": "RLIMIT_STACK", "soft": stack, "hard": stack}]}, "it")
    except InvalidArgument as error:
        assert "argument list too long" in error.message
        return False
    return True


@pytest.mark.parametrize(
    ("stack", "piece"), [(256 << 10, 1), (256 << 10, 9000), (2 << 20, 100), (8 << 20, 1), (8 << 20, 99_999)]
)
def test_the_total_ends_where_the_kernel_ends(stack: int, piece: int) -> None:
    def process(count: int) -> dict[str, Any]:
        return {"args": ["/bin/true", *["x" * piece] * count], "env": [f"K={'y' * 1000}"]}

    taken, refused = 0, (6 << 20) // (piece + 9)
    while refused - taken > 1:
        middle = (taken + refused) // 2
        taken, refused = (middle, refused) if is_taken(process(middle), stack) else (taken, middle)
    assert taken > 0
    assert kernel_takes(process(taken), stack)
    slack = refused + 200 // (piece + 9) + 2  # what the margin of some bytes may cost
    assert not kernel_takes(process(slack), stack)


def test_one_string_ends_where_the_kernel_ends() -> None:
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    for size, fits in ((MAX_STRING_BYTES, True), (MAX_STRING_BYTES + 1, False)):
        process: dict[str, Any] = {"args": ["/bin/true", "\u00e9" * (size // 2) + "x" * (size % 2)], "env": []}
        assert is_taken(process, stack) is kernel_takes(process, stack) is fits
        variable: dict[str, Any] = {"args": ["/bin/true"], "env": ["K=" + "x" * (size - 2)]}
        assert is_taken(variable, stack) is kernel_takes(variable, stack) is fits


def test_the_refusal_names_the_field_and_is_short() -> None:
    with pytest.raises(InvalidArgument, match=r"container 'a': envs\[1\] 'LONG=x+'… has 200005 bytes") as caught:
        check_process({"args": ["a"], "env": ["A=b", "LONG=" + "x" * 200_000]}, "container 'a'")
    assert len(caught.value.message) < 300
    with pytest.raises(InvalidArgument, match=r"args and envs take 40[0-9]{5} bytes together, and the kernel takes"):
        check_process({"args": ["a"] + ["x" * 100_000] * 40, "env": ()}, "container 'a'")


def test_texts_that_end_in_the_middle_and_too_many_variables() -> None:
    with pytest.raises(InvalidArgument, match=r"args\[1\] 'b\\x00c' holds a NUL byte"):
        check_process({"args": ["a", "b\0c"], "env": []}, "it")
    with pytest.raises(InvalidArgument, match=f"{MAX_VARIABLES + 1} variables are more than"):
        check_process({"args": ["a"], "env": ["A=b"] * (MAX_VARIABLES + 1)}, "it")
    check_process({"args": ["a"], "env": ["A=b"] * MAX_VARIABLES}, "it")
