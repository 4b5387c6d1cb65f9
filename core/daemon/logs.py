"""The daemon's own log, on standard error: JSON, a line for a person, or lines for systemd's journal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.models import LogConfig
from crinoid.core.daemon.journal import is_journal, with_priority

LEVELS = ("debug", "info", "warning", "error")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message`` and what was added."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


class JournalFormatter(logging.Formatter):
    """Another form with the record's priority before each line, ``<4>``, which the journal takes off (sd-daemon(3)).

    So ``journalctl -p warning`` finds warnings, with each line of a traceback.
    """

    _PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in self._PRIORITIES if record.levelno >= level), 7)
        return with_priority(priority, self._inner.format(record))


def set_up(config: LogConfig) -> None:
    """Direct all logging to standard error, in the form and from the level that the configuration names."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(config.format, in_journal=is_journal(sys.stderr.fileno())))
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    for library in ("asyncio", "grpc", "stevedore"):
        logging.getLogger(library).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Log from another level on. Raises ConfigurationError for one that there is not."""
    if level not in LEVELS:
        raise ConfigurationError(f"there is no level {level!r}: {', '.join(LEVELS)}")
    logging.getLogger().setLevel(level.upper())


def _formatter(wanted: str, *, in_journal: bool) -> logging.Formatter:
    if in_journal:  # which has its own time of each line
        return JournalFormatter(
            JsonFormatter() if wanted == "json" else logging.Formatter("{name}: {message}", style="{")
        )
    if wanted == "console" or (wanted == "auto" and sys.stderr.isatty()):
        return logging.Formatter("{asctime} {levelname:<7} {name}: {message}", style="{")
    return JsonFormatter()
