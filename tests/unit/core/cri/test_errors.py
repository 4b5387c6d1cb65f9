"""Errors become statuses, and statuses the same errors again."""

import errno
from collections.abc import Iterator

import grpc
import pytest

from crinoid.core.api import errors
from crinoid.core.api.errors import CrinoidError
from crinoid.core.cri import errors as cri_errors
from crinoid.core.cri.errors import from_status, shorten, to_status


def tree(kind: type[CrinoidError] = CrinoidError) -> Iterator[type[CrinoidError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


@pytest.mark.parametrize("kind", list(tree()))
def test_every_error_of_the_tree(kind: type[CrinoidError]) -> None:
    error = errors.CommandFailed(("runc", "run"), 1, "no") if kind is errors.CommandFailed else kind("words")
    status = to_status(error, "Version")
    assert status.code.name == kind.grpc_status
    assert status.trailer == (("crinoid-reason", kind.reason),)
    back = from_status(status.code, status.message, status.reason)
    assert type(back) is (errors.DriverError if kind is errors.CommandFailed else kind)
    assert str(back) == error.message


def test_statuses_of_other_runtimes() -> None:
    assert type(from_status(grpc.StatusCode.NOT_FOUND, "no such pod")) is errors.NotFound
    assert str(from_status(grpc.StatusCode.ABORTED, "try again")) == "ABORTED: try again"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/var"), "RESOURCE_EXHAUSTED"),
        (OSError(errno.EIO, "Input/output error", "/var"), "UNAVAILABLE"),
        (OSError(errno.EROFS, "Read-only file system", "/var"), "UNAVAILABLE"),
        (TimeoutError("waited 5 s for conmon"), "DEADLINE_EXCEEDED"),
        (ExceptionGroup("two", [ValueError("x"), errors.NotFound("no pod")]), "NOT_FOUND"),
        (PermissionError(errno.EPERM, "no"), "INTERNAL"),
        (ValueError("x"), "INTERNAL"),
        (ExceptionGroup("one", [ValueError("x")]), "INTERNAL"),
    ],
)
def test_errors_of_python(error: Exception, code: str) -> None:
    assert to_status(error, "Version").code.name == code


@pytest.mark.parametrize("text", ["x" * 50000, "ü" * 50000, "\n%" * 50000, "a" * 3000 + "ü" * 3000])
def test_long_messages_keep_both_ends(text: str) -> None:
    cut = shorten(f"first {text} last")
    assert cut.startswith("first ")
    assert cut.endswith(" last")
    assert " … " in cut
    assert sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in cut.encode()) < 4100


def test_of_a_message_of_megabytes_only_the_ends_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut on the event loop."""
    weighed = []
    weight = cri_errors._weight

    def weigh(text: str) -> int:
        weighed.append(len(text))
        return weight(text)

    monkeypatch.setattr(cri_errors, "_weight", weigh)
    assert shorten("first " + "x" * (16 << 20) + " last").startswith("first x")
    assert max(weighed) < 10_000


def test_what_is_no_text() -> None:
    assert shorten("a\udcffb\0c") == "a?b\ufffdc"


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EMFILE, "RESOURCE_EXHAUSTED"), (errno.EACCES, "FAILED_PRECONDITION")]
)
def test_what_could_not_be_read_for_want_of_descriptors_is_no_fault_of_the_request(number: int, code: str) -> None:
    error = errors.FailedPrecondition("resolv.conf can't be read")
    error.__cause__ = OSError(number, "x")
    status = to_status(error, "RunPodSandbox")
    assert (status.code.name, status.message) == (code, "resolv.conf can't be read")
