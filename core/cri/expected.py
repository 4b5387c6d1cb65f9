"""Which exceptions are errors of our tree, or amount to one: for statuses, and for the streams, which know no gRPC."""

from crinoid.core.api import errors
from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.exhaustion import broken, exhausted


def expected(error: BaseException) -> CrinoidError | None:
    """Find the error of our tree that an exception is, contains or amounts to."""
    match error:
        case CrinoidError():
            return error
        case ExceptionGroup():
            return next((known for leaf in error.exceptions if (known := expected(leaf))), None)
        case TimeoutError():
            return errors.DeadlineExceeded(str(error) or "an operation took longer than it may")
        case OSError():
            return exhausted(error) or broken(error)
        case _:
            return None
