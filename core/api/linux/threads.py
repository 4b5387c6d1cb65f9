"""A thread for one call: where a thread's own namespaces, root or working folder change, it must not be used again."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Call(Generic[T]):
    """One call and what came of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.function = function
        self.result: T
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001  # it is raised again where the result is wanted
            self.error = error


def call_in_fresh_thread(function: Callable[[], T]) -> T:
    """Call the function in a new thread that ends with it; blocks. Raises what the function raises."""
    pending = _Call(function)
    thread = threading.Thread(target=pending, name="fresh", daemon=True)
    thread.start()
    thread.join()
    if pending.error is not None:
        raise pending.error
    return pending.result
