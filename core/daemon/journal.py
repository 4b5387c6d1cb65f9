"""Lines for systemd's journal, which takes a line's priority from its beginning, ``<4>`` (sd-daemon(3)).

Light, as every call of the command line imports it.
"""

import os

ERROR = 3
"""The priority of what ends a program."""


def is_journal(stream: int) -> bool:
    """Tell whether a descriptor is the journal's: systemd names its device and inode in ``JOURNAL_STREAM``."""
    named = os.environ.get("JOURNAL_STREAM")
    if not named:
        return False
    status = os.fstat(stream)
    return named == f"{status.st_dev}:{status.st_ino}"


def with_priority(priority: int, text: str) -> str:
    """Put a priority before each line."""
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))
