"""The one place where errors become gRPC statuses, and, for our client, statuses errors again.

``reason`` of the error's class travels as trailing metadata (``crinoid-reason``), so that a client can tell apart what
shares a status code.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import grpc

from crinoid.core.api import errors
from crinoid.core.api.errors import CrinoidError
from crinoid.core.cri.expected import expected

REASON_KEY = "crinoid-reason"
INTERNAL_REASON = "Internal"

_MESSAGE_BYTES = 4000
"""gRPC refuses trailers beyond 8 KiB, and other bytes than printable ASCII take three each there."""

_log = logging.getLogger("crinoid.cri")


@dataclass(frozen=True, slots=True)
class Status:
    """What a client is told of an error."""

    code: grpc.StatusCode
    message: str
    reason: str

    @property
    def trailer(self) -> tuple[tuple[str, str], ...]:
        """The trailing metadata that goes with it."""
        return ((REASON_KEY, self.reason),)


def to_status(error: BaseException, rpc: str) -> Status:
    """Turn what a call raised into a status; log the traceback of what nobody expected."""
    known = expected(error)
    if known is None:
        _log.error("%s failed in a way it should not: %r", rpc, error, exc_info=error)
        name = type(error).__name__
        return Status(grpc.StatusCode.INTERNAL, f"{rpc}: internal error ({name}); see crinoid's log", INTERNAL_REASON)
    return Status(grpc.StatusCode[known.grpc_status], shorten(known.message), known.reason)


def from_status(code: grpc.StatusCode, message: str, reason: str = "") -> CrinoidError:
    """Turn a status that our client received into the error it stands for, whoever the server is."""
    kind = _BY_REASON.get(reason) or _BY_STATUS.get(code.name)
    if kind is None:
        return CrinoidError(f"{code.name}: {message}")
    return kind(message)


def shorten(message: str) -> str:
    """Cut the middle out of a message that would not fit, and replace what is no text.

    Constant work: a message may quote megabytes of a request, and is cut on the event loop.
    """
    if len(message) > 2 * _MESSAGE_BYTES:
        message = message[:_MESSAGE_BYTES] + message[-_MESSAGE_BYTES:]
    clean = message.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    if _weight(clean) <= _MESSAGE_BYTES:
        return clean
    keep = len(clean) * _MESSAGE_BYTES // _weight(clean) // 2
    while _weight(clean[:keep] + clean[-keep:]) > _MESSAGE_BYTES:
        keep = keep * 9 // 10
    return f"{clean[:keep]} … {clean[-keep:]}"


def _weight(text: str) -> int:
    """Count the bytes of a percent-encoded status message."""
    data = text.encode()
    return len(data) + 2 * sum(byte < 0x20 or byte > 0x7E or byte == 0x25 for byte in data)


def _classes(base: type[CrinoidError]) -> Iterator[type[CrinoidError]]:
    """Walk the tree from the base down."""
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:  # others may be anywhere, and share a reason
            yield from _classes(child)


_TELLABLE = [kind for kind in _classes(CrinoidError) if kind.__init__ is CrinoidError.__init__]
_BY_REASON: Mapping[str, type[CrinoidError]] = {kind.reason: kind for kind in _TELLABLE}
_BY_STATUS: Mapping[str, type[CrinoidError]] = {
    "INVALID_ARGUMENT": errors.InvalidArgument,
    "NOT_FOUND": errors.NotFound,
    "ALREADY_EXISTS": errors.AlreadyExists,
    "FAILED_PRECONDITION": errors.FailedPrecondition,
    "UNIMPLEMENTED": errors.NotImplementedHere,
    "PERMISSION_DENIED": errors.PermissionDenied,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "RESOURCE_EXHAUSTED": errors.ResourceExhausted,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "UNAVAILABLE": errors.Unavailable,
    "DATA_LOSS": errors.CorruptContent,
    "INTERNAL": errors.DriverError,
}
