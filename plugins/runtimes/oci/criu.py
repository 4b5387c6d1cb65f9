"""criu, which writes down what processes do and lets them go on: whether it works here, and what it says when not.

The binaries run it themselves; all that is asked of it here is ``criu check`` (criu(8)).
"""

from pathlib import Path

from crinoid.core.api.errors import CommandFailed, CrinoidError, InvalidArgument, Unsupported
from crinoid.core.api.linux.process import run
from crinoid.plugins.runtimes.binaries.binary import environment, find_program

_TAIL_BYTES = 1 << 16
_SENTENCE_CHARACTERS = 600


class Criu:
    """criu on this host. That it works is found out once; that it does not, each time anew."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._works = False

    async def check(self) -> None:
        """Raise Unsupported, in criu's own words, where the program is missing or the kernel lacks what it needs."""
        if self._works:
            return
        program = find_program("criu", "criu")
        finished = await run((str(program), "check"), timeout_s=self._timeout_s, env=environment())
        if finished.exit_code != 0:
            said = sentence(finished.stderr.decode(errors="replace")) or f"exit code {finished.exit_code}"
            raise Unsupported(f"criu can't work on this host; `criu check` says: {said}; docs/troubleshooting.md#criu")
        self._works = True


def explain(error: CrinoidError, log: Path) -> CrinoidError:
    """Return the error of a command that ran criu, with what criu itself wrote to its log, where it did.

    What the log names belongs to the host or the container, never to the request.
    """
    if not isinstance(error, CommandFailed | InvalidArgument) or not log.exists():
        return error
    said = sentence("\n".join(line for line in _tail(log).splitlines() if "Error (" in line))
    return CommandFailed(("criu",), 1, f"{said or 'nothing in its log'} ({error})")


def sentence(text: str) -> str:
    """Return criu's errors in one line, and of many the last ones."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in words)[-_SENTENCE_CHARACTERS:]


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
