"""What a runtime's binary said when it failed, made into one clear sentence and the right error.

runc and crun write JSON lines to the file that ``--log`` names (``level``, ``msg``, ``time``); a binary that is broken
in some other way may write anything, or nothing, there or to stderr.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from crinoid.core.api.errors import CommandFailed, CrinoidError, ResourceExhausted, RuntimeRefused

_TAIL_BYTES = 1 << 20  # the last line of all, with an argument that it quotes
_SENTENCE_CHARACTERS = 2000
# What the request named and the container's root, or the host, does not have, or a limit that the kernel refuses:
# sending it again can't help.
_REQUEST_AT_FAULT = re.compile(
    r"executable file .*not found|no such file or directory|not a directory|is a directory|exec format error"
    r"|must be mounted on ordinary directory|too many levels of symbolic links"
    r"|file name too long|argument list too long|exec.*permission denied|unable to find user|cannot find user"
    r"|open executable: |unknown capability|cwd must be an absolute path"
    r"|seccomp.*(invalid|unknown)|(valid|unknown|adding)\b.*seccomp|seccomp flags|get_seccomp_operator|SCMP_ACT_NOTIFY"
    r"|listenerPath is not set|not a valid syscall"
    r"|(minimum|maximum) allowed|unable to set memory limit|memory limit (could be )?too low"
    r"|writ(e|ing) .*: (invalid argument|numerical result out of range|device or resource busy|permission denied)",
    re.IGNORECASE,
)

# The kernel's EAGAIN: a limit of processes, or of the number or depth of cgroups.
_USED_UP = re.compile(r"resource temporarily unavailable", re.IGNORECASE)


def runtime_message(log: Path, stderr: bytes = b"") -> str:
    """Return the binary's last error as one sentence; its last words of stderr when the log has none; or nothing."""
    return last_error(log) or _sentence(stderr.decode(errors="replace"))


def last_error(log: Path) -> str:
    """Return the last entry of level error (or worse) in a runtime's JSON log; empty when there is none."""
    text = _tail(log)
    errors = [entry for entry in _entries(text) if entry.get("level") in ("error", "fatal", "panic")]
    if not errors and len(text) > _TAIL_BYTES // 2 and "\n" not in text.rstrip("\n"):
        return _sentence(text)  # one line that is longer than what is read of it
    return _sentence(str(errors[-1].get("msg", ""))) if errors else ""


def as_error(command: Sequence[str], exit_code: int, said: str) -> CrinoidError:
    """Return the error for a failed command: the request's fault if it names what does not exist."""
    if said and _USED_UP.search(said):
        return ResourceExhausted(f"{command[0]}: {said}: a limit of processes or cgroups is reached")
    if said and _REQUEST_AT_FAULT.search(said):
        return RuntimeRefused(f"{command[0]}: {said}")
    return CommandFailed(tuple(command), exit_code, said)


def _entries(text: str) -> list[dict[str, object]]:
    entries = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # rubbish, or a line the runtime did not live to finish
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _sentence(text: str) -> str:
    """One line of printable text, its end rather than its beginning if it is long."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in words)[-_SENTENCE_CHARACTERS:]
