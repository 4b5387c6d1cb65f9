"""The demo as a user runs it: told to its end, broken off, and interrupted; it never leaves anything."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.patience import patient

CHAPTERS = (
    "A node of its own",
    "One image, from two sources",
    "A pod with two containers",
    "They talk",
    "Looking inside",
    "The daemon is killed, the pod is not",
    "The same pod with another runtime",
    "The same pod on another network",
    "The same pod with another snapshotter",
    "Nothing is left",
)
COMMAND = (sys.executable, "-m", "crinoid", "demo")


def find_remains(told: str) -> set[str]:
    """Name what is left of the demo that told this; others may play at the same time."""
    names = set(re.findall(r"crinoid-demo-\w+", told))
    assert names, told
    names |= {name.replace("crinoid-demo-", "crinoid-") for name in names}
    places = [*Path("/run").iterdir(), *Path("/var/tmp").iterdir(), *Path("/sys/class/net").iterdir()]
    found = {str(path) for path in places if path.name in names}
    # Cgroups of others come and go meanwhile, which os.walk passes over.
    walked = os.walk("/sys/fs/cgroup")
    found |= {f"{top}/{name}" for top, directories, _ in walked for name in names.intersection(directories)}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found |= {line for line in mounts if any(name in line for name in names)}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found |= {command for name in names if name in command}
    return found


def test_it_is_told_to_its_end() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=patient(110), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for number, title in enumerate(CHAPTERS, start=1):
        assert f"\n{number}. {title}\n" in done.stdout
    for line in ('- driver = "runc"', '+ driver = "crun"', '+ network = "host"', '+ snapshotter = "native"'):
        assert f"     {line}\n" in done.stdout
    for kind in ("mounts", "namespaces", "links", "processes", "cgroups", "firewall rules"):
        assert re.search(f"  ok {kind}: [1-9][0-9]* seen, none left\n", done.stdout)
    assert "\x1b" not in done.stdout, "colours are for terminals"
    assert find_remains(done.stdout) == set()


def test_a_step_that_is_not_as_told_ends_it_with_1(tmp_path: Path) -> None:
    """A crun that can't make containers breaks the story in chapter 7, with a pod half made."""
    binary = tmp_path / "crun"
    binary.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec /usr/bin/crun --version\necho no such luck >&2\nexit 1\n'
    )
    binary.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=patient(110), check=False, env=env)
    assert done.returncode == 1
    assert f"\n7. {CHAPTERS[6]}\n" in done.stdout
    assert f"\n8. {CHAPTERS[7]}\n" not in done.stdout
    assert "The story breaks off here." in done.stdout
    assert "crun" in done.stderr
    assert "Traceback" not in done.stderr
    assert find_remains(done.stdout) == set()


def test_it_can_be_interrupted() -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as playing:
        assert playing.stdout is not None
        told = ""
        for line in playing.stdout:
            told += line
            if line.startswith("4. "):
                break
        time.sleep(0.05)
        playing.send_signal(signal.SIGTERM)
        _, errors = playing.communicate(timeout=patient(110))
    assert (playing.returncode, errors) == (128 + signal.SIGTERM, "")
    assert find_remains(told) == set()


def test_it_names_the_packages_that_it_wants(tmp_path: Path) -> None:
    env = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=patient(110), check=False, env=env)
    assert done.returncode == 1
    assert "apt-get install" in done.stderr
    assert "docker-registry" in done.stderr
