"""What execve(2) takes of arguments and environment: more is refused before a process is made that could only die.

A runtime executes a container's command when nobody waits for its answer any more: a list that is too long would be a
start that succeeds, and a process that has ended with no word of why. Source: the kernel's fs/exec.c,
``bprm_stack_limits`` and ``copy_strings``.
"""

import os
import posixpath
import resource
from collections.abc import Mapping, Sequence
from typing import Any

from crinoid.core.api.bounds import MAX_STRING_BYTES
from crinoid.core.api.errors import InvalidArgument
from crinoid.core.lifecycle.user_ids import quote

MAX_VARIABLES = 1 << 15
"""Runtimes set variables one after the other, and each looks through all before: these take about two seconds."""

_MAX_TOTAL_BYTES, _MIN_TOTAL_BYTES = 6 << 20, 128 << 10
_POINTER_BYTES = 8
_TAIL_BYTES = 16  # the word at the stack's end, and the NUL of the program's path


def check_process(process: Mapping[str, Any], what: str) -> None:
    """Raise InvalidArgument where an OCI ``process`` can't be executed for its size; ``what`` is what is to run it."""
    arguments, environment = process["args"], process.get("env") or ()
    if len(environment) > MAX_VARIABLES:
        raise InvalidArgument(f"{what}: envs: {len(environment)} variables are more than {MAX_VARIABLES}")
    total = _size(arguments, f"{what}: args") + _size(environment, f"{what}: envs") + _program_bytes(process)
    most = _most_bytes(process)
    if total > most:
        raise InvalidArgument(
            f"{what}: args and envs take {total} bytes together, and the kernel takes {most}: argument list too long"
        )


def _size(strings: Sequence[str], place: str) -> int:
    total = 0
    for number, text in enumerate(strings):
        size = len(text.encode(errors="surrogatepass"))
        if size > MAX_STRING_BYTES:
            raise InvalidArgument(
                f"{place}[{number}] {quote(text)} has {size} bytes, and the kernel takes {MAX_STRING_BYTES}: "
                "argument list too long"
            )
        if "\0" in text:
            raise InvalidArgument(f"{place}[{number}] {quote(text)} holds a NUL byte")
        total += size + 1 + _POINTER_BYTES
    return total


def _program_bytes(process: Mapping[str, Any]) -> int:
    """Count the path of the program, which is copied too; a mere name may be found in the longest directory of PATH."""
    name = process["args"][0]
    longest = 0
    if not posixpath.isabs(name):
        paths = next((one[5:] for one in reversed(process.get("env") or ()) if one.startswith("PATH=")), "")
        longest = max(len(os.fsencode(path)) for path in paths.split(":")) + 1
    return longest + len(name.encode(errors="surrogatepass")) + _TAIL_BYTES


def _most_bytes(process: Mapping[str, Any]) -> int:
    """A quarter of the stack's limit, within bounds; a container without one of its own has the daemon's."""
    soft = resource.getrlimit(resource.RLIMIT_STACK)[0]
    for limit in process.get("rlimits") or ():
        if limit["type"] == "RLIMIT_STACK":
            soft = limit["soft"]
    stack = _MAX_TOTAL_BYTES if soft in (resource.RLIM_INFINITY, 2**64 - 1) else soft // 4
    return max(min(stack, _MAX_TOTAL_BYTES), _MIN_TOTAL_BYTES)
