"""Errors as they travel: class by its reason, text, and what else a class has to say."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

from crinoid.core.api import errors
from crinoid.core.api.errors import CommandFailed, CrinoidError, DriverError

CANCELLED, BROKEN_PIPE = "Cancelled", "BrokenPipe"
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
"""It becomes metadata of a gRPC answer, which fails as a whole with other characters, and a label of metrics."""


def _classes(of: type[CrinoidError] = CrinoidError) -> Iterator[type[CrinoidError]]:
    yield of
    for one in of.__subclasses__():
        if one.__module__ == errors.__name__:
            yield from _classes(one)


KNOWN: dict[str, type[CrinoidError]] = {one.reason: one for one in _classes()}
"""The classes of the API by their reasons."""


def write_error(error: BaseException) -> dict[str, Any]:
    """Return what the other side is told of an error of our tree, of a cancellation, or of a pipe that nobody reads."""
    if isinstance(error, asyncio.CancelledError):
        return {"reason": CANCELLED, "message": ""}
    if isinstance(error, BrokenPipeError):
        return {"reason": BROKEN_PIPE, "message": str(error)}
    assert isinstance(error, CrinoidError)
    told: dict[str, Any] = {"reason": error.reason, "message": error.message, "status": error.grpc_status}
    if isinstance(error, CommandFailed):
        told |= {"command": list(error.command), "exit_code": error.exit_code, "stderr": error.stderr}
    # A class of the driver's own is to count as the class of the API that it is made of.
    if KNOWN.get(error.reason) is not type(error):
        told["is"] = next(one.reason for one in type(error).__mro__ if KNOWN.get(getattr(one, "reason", "")) is one)
    return told


def read_error(told: Any) -> BaseException:
    """Return the error that the other side tells of; DriverError for one that makes no sense."""
    match told:
        case {"reason": "Cancelled"}:
            return asyncio.CancelledError()
        case {"reason": "BrokenPipe", "message": str(message)}:
            return BrokenPipeError(message)
        case {
            "reason": "CommandFailed", "command": [str(), *_] as command, "exit_code": int(code), "stderr": str(words)
        }:  # fmt: skip
            return CommandFailed(tuple(map(str, command)), code, words)
        case {"reason": str(reason), "message": str(message)}:
            known = KNOWN.get(reason) or KNOWN.get(told.get("is"), DriverError)
            if known is CommandFailed:
                known = DriverError
            if known.reason == reason or not _REASON.fullmatch(reason):
                return known(message)
            of_its_own: type[CrinoidError] = type(known.__name__, (known,), {"reason": reason})
            return of_its_own(message)
    return DriverError(f"failed, and said what is no error: {told!r:.200}")
