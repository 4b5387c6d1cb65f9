"""Which exceptions are errors of our tree, or amount to one: for statuses, and for the streams, which know no gRPC."""

from crinoid.core.api import errors
from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.exhaustion import broken, exhausted

_OF_THE_REQUEST = frozenset({"FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND"})


def expected(error: BaseException) -> CrinoidError | None:
    """Find the error of our tree that an exception is, contains or amounts to."""
    match error:
        case CrinoidError():
            return _used_up(error) or error
        case ExceptionGroup():
            return next((known for leaf in error.exceptions if (known := expected(leaf))), None)
        case TimeoutError():
            return errors.DeadlineExceeded(str(error) or "an operation took longer than it may")
        case OSError():
            return exhausted(error) or broken(error)
        case _:
            return None


def _used_up(error: CrinoidError) -> CrinoidError | None:
    """A file that can't be read since no descriptor is left is no fault of the request, whatever its reader thinks."""
    cause = error.__cause__
    if error.grpc_status in _OF_THE_REQUEST and isinstance(cause, OSError) and exhausted(cause) is not None:
        return errors.ResourceExhausted(error.message)
    return None
