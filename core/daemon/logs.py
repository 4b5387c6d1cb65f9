"""The daemon's own log, on standard error: one JSON object a line, or a line for a person."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from crinoid.core.config.models import LogConfig

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


def set_up(config: LogConfig) -> None:
    """Direct all logging to standard error, in the form and from the level that the configuration names."""
    handler = logging.StreamHandler(sys.stderr)
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    line = logging.Formatter("{asctime} {levelname:<7} {name}: {message}", style="{")
    handler.setFormatter(line if console else JsonFormatter())
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    for library in ("asyncio", "grpc", "stevedore"):
        logging.getLogger(library).setLevel(logging.WARNING)
