"""Errors on their way up a pull: each step says what it was doing, and the class of the error stays.

An error may be shared by several pulls that joined, so it is never changed: a new one is raised from it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from crinoid.core.api import errors
from crinoid.core.api.errors import CommandFailed, CrinoidError


@contextmanager
def while_doing(act: str) -> Iterator[None]:
    """Put ``act`` before the message of a CrinoidError that is raised inside."""
    try:
        yield
    except CrinoidError as error:
        raise restate(error, f"{act}: {error.message}") from error


def restate(error: CrinoidError, message: str) -> CrinoidError:
    """Make an error of the same kind with another message; a driver's own class becomes the one it is derived from."""
    for kind in type(error).__mro__:
        if kind.__module__ == errors.__name__ and issubclass(kind, CrinoidError) and kind is not CommandFailed:
            return kind(message)
    return CrinoidError(message)
