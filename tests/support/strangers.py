"""What a user without rights on the host can do with paths that he knows: the kernel is asked, path by path.

It runs in a process of its own, whose interpreter starts as root: a stranger may not be able to read it.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534
_PROGRAM = """
import json, os, socket, stat, sys
paths = []
for top in map(os.fsencode, sys.argv[2:]):
    paths.append(top)
    for directory, directories, files in os.walk(top):
        paths += [os.path.join(directory, name) for name in (*directories, *files)]
probe = socket.socket(socket.AF_UNIX)
os.setgroups([]); os.setresgid(*[int(sys.argv[1])] * 3); os.setresuid(*[int(sys.argv[1])] * 3)

def can(act):
    try:
        act()
    except OSError:
        return False
    return True

def opened(path, flags):
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY))

def connected(path):
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as one:
            one.setblocking(False)
            if can(lambda: one.connect(path)):
                return
    raise OSError("refused")

found = {"": [os.fsdecode(path) for path in paths]}
for path in paths:
    name, able = os.fsdecode(path), []
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        continue
    if stat.S_ISDIR(mode):
        able += ["list"] * can(lambda: os.listdir(path))
        able += ["write"] * os.access(path, os.W_OK)
    elif stat.S_ISLNK(mode):
        able += ["read"] * can(lambda: os.readlink(path))
    elif stat.S_ISSOCK(mode):
        able += ["connect"] * can(lambda: connected(path))
    else:
        able += ["read"] * can(lambda: opened(path, os.O_RDONLY))
        able += ["write"] * can(lambda: opened(path, os.O_WRONLY))
        able += ["execute"] * os.access(path, os.X_OK)
    found[name] = able
json.dump(found, sys.stdout)
"""
_RUN = """
import os, sys
os.setgroups([]); os.setresgid(*[int(sys.argv[1])] * 3); os.setresuid(*[int(sys.argv[1])] * 3)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.stderr.write(str(error))
    os._exit(99)
"""


@dataclass(frozen=True)
class Look:
    """All paths below some directories as root sees them, and those that a stranger can so much as look up, with
    what he can do there: list, read, write, execute, connect."""

    paths: list[str]
    found: dict[str, list[str]]


def look(*tops: Path, prefix: Sequence[str] = (), user: int = NOBODY) -> Look:
    """Try everything below these directories, in mounts as well. ``prefix`` enters the mount namespace to look in."""
    command = [*prefix, sys.executable, "-c", _PROGRAM, str(user), *map(str, tops)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return Look(found.pop(""), found)


def run_as_stranger(
    *command: str, prefix: Sequence[str] = (), user: int = NOBODY
) -> "subprocess.CompletedProcess[str]":
    """Execute a program as a user without rights; the exit code is 99 where that may not be done."""
    return subprocess.run([*prefix, sys.executable, "-c", _RUN, str(user), *command], capture_output=True, text=True)
