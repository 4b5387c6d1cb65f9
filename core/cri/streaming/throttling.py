"""Log lines that strangers cause: so many at once, then a few a second, and how many were left out."""

import logging
import time

_BURST = 20
_PER_S = 1.0


class ThrottledLog:
    """A bounded number of lines, of all levels together, whatever clients do."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._left = float(_BURST)
        self._at = time.monotonic()
        self._omitted = 0

    def info(self, message: str, *args: object) -> None:
        """Log what is no fault of ours."""
        self._write(logging.INFO, message, args)

    def warning(self, message: str, *args: object) -> None:
        """Log what somebody should look into."""
        self._write(logging.WARNING, message, args)

    def error(self, message: str, *args: object, error: BaseException) -> None:
        """Log what should not happen, with its traceback."""
        self._write(logging.ERROR, message, args, error)

    def _write(self, level: int, message: str, args: tuple[object, ...], error: BaseException | None = None) -> None:
        if not self._log.isEnabledFor(level):
            return
        now = time.monotonic()
        self._left = min(_BURST, self._left + (now - self._at) * _PER_S)
        self._at = now
        if self._left < 1:
            self._omitted += 1
            return
        self._left -= 1
        if self._omitted:
            self._log.log(level, "%d lines of streaming connections were left out: there were too many", self._omitted)
            self._omitted = 0
        self._log.log(level, message, *args, exc_info=error)
