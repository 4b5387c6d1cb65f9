"""Paths are looked at by a process that may hang; here a shell that never ends stands in for it."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import Unavailable
from crinoid.core.api.linux import probes, process
from crinoid.core.api.linux.probes import PathProbes
from crinoid.core.api.testing.patience import patient

HANGS = 'for path; do case "$path" in */dead*) exec sleep 60;; esac; echo; done'


MOUNTS = b"""\
22 27 0:21 / /proc rw,relatime - proc proc rw
23 27 0:22 / /sys rw,relatime shared:7 - sysfs sysfs rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 254:0 /a/data /data rw - ext4 /dev/vda rw
41 27 0:40 / /data/secret rw - tmpfs tmpfs rw
42 27 0:41 / /data/nfs rw - nfs4 server:/ rw
43 27 0:42 / /data/two\\040words rw - fuse.sshfs sshfs rw
44 27 8:1 / /data/iscsi rw - ext4 /dev/sda1 rw
45 27 0:43 / /data/stacked rw - nfs4 server:/ rw
46 45 0:44 / /data/stacked rw - tmpfs tmpfs rw
47 42 0:45 / /data/nfs/secret rw - tmpfs tmpfs rw
48 27 0:46 /x /lower rw - overlay overlay rw
"""


def look_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_without_safe", list)


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        ("/", True),
        ("/absent/a/b", True),
        ("/data/absent", True),
        ("/data//./secret/../absent", True),
        ("/data/secret", True),
        ("/sys/absent", True),
        ("/data/secrets", True),
        ("/data/nfs", False),
        ("/data/nfs/", False),
        ("/data/nfs/below", False),
        ("/data/nfs/secret", False),
        ("/data/secret/../nfs", False),
        ("/data/../data/nfs", False),
        ("/data/two words", False),
        ("/data/two", True),
        ("/data/iscsi", False),
        ("/data/stacked", False),
        ("/proc/self/root", False),
        ("/lower/x", False),
        ("/a/data", True),
    ],
)
def test_paths_that_nobody_serves_need_no_look(monkeypatch: pytest.MonkeyPatch, path: str, safe: bool) -> None:
    """Nothing on the way is touched that is not safe itself."""
    touched = touches(monkeypatch, {})
    assert probes.needs_no_look(path, MOUNTS) is safe
    for one in touched:
        assert not one.startswith(("/data/nfs", "/data/two words", "/data/iscsi", "/data/stacked", "/proc", "/lower"))


@pytest.mark.parametrize(
    ("target", "safe"),
    [
        ("/data/secret", True),
        ("../data/secret", True),
        ("/data/nfs", False),
        ("../data/nfs", False),
        ("../../../data/nfs/x", False),
        ("/links/self", True),  # a loop: the kernel answers so, too
    ],
)
def test_links_are_followed(monkeypatch: pytest.MonkeyPatch, target: str, safe: bool) -> None:
    links = {"/links/one": target, "/links/two": "one", "/links/self": "self"}
    for path in ("/links/one", "/links/two", "/links/two/below"):
        touched = touches(monkeypatch, links)
        assert probes.needs_no_look(path, MOUNTS) is safe
        assert not any(one.startswith("/data/nfs") for one in touched)


def touches(monkeypatch: pytest.MonkeyPatch, links: dict[str, str]) -> list[str]:
    """Have a world of directories and these links; return what is gone to."""
    touched: list[str] = []

    def readlink(path: bytes) -> bytes:
        touched.append(os.fsdecode(path))
        if touched[-1] in links:
            return os.fsencode(links[touched[-1]])
        raise OSError(errno.EINVAL, "not a link")

    monkeypatch.setattr(os, "readlink", readlink)
    return touched


@pytest.mark.parametrize("root", ["nfs4 server:/", "overlay overlay", "fuse.x x"])
def test_nothing_is_passed_over_below_such_a_root(root: str) -> None:
    assert not probes.needs_no_look("/etc", f"1 0 0:9 / / rw - {root} rw\n".encode())
    assert not probes.needs_no_look("/etc", b"")


async def test_a_path_in_memory_costs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "spawn", None)
    monkeypatch.setattr(
        probes, "_without_safe", lambda paths: [p for p in paths if not probes.needs_no_look(p, MOUNTS)]
    )
    assert await PathProbes(patient(20)).describe_hung(["/data/secret", "/data"]) is None


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the look hang at every path that has ``dead`` in it, on whatever file system."""
    look_at_all(monkeypatch)
    monkeypatch.setattr(probes, "_LOOK", HANGS)


async def test_whatever_answers_is_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    look_at_all(monkeypatch)
    (tmp_path / "there").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    names = ("there", "fifo", "loop", "absent", "a b", "-e", "$(false)", "new\nline", "b\udcff")
    await PathProbes(patient(20)).require([*(f"{tmp_path}/{name}" for name in names), "relative", "", "/nul\0"], "x")


async def test_a_thousand_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    look_at_all(monkeypatch)
    await PathProbes(patient(20)).require((f"{tmp_path}/{number:01000}" for number in range(1000)), "x")
    emoji = "\U0001f600" * 4000  # in bytes too long for any file, and all of them for a process's arguments
    await PathProbes(patient(20)).require((f"/{emoji}{number}" for number in range(200)), "x")


@pytest.mark.usefixtures("dead")
async def test_the_one_that_hangs_is_named() -> None:
    looks = PathProbes(0.3)
    for paths in (["/dead"], ["/a", "/dead", "/z"], ["/a", "/b/dead", "/b/dead2"]):
        with pytest.raises(Unavailable, match=rf"^volume: {min(path for path in paths if 'dead' in path)} has not"):
            await looks.require(paths, "volume")


@pytest.mark.usefixtures("dead")
async def test_callers_share_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    spawn = process.spawn

    def counted(*args: Any, **more: Any) -> Any:
        started.append(args)
        return spawn(*args, **more)

    monkeypatch.setattr(probes, "spawn", counted)
    looks = PathProbes(0.3)
    calls = [asyncio.create_task(looks.describe_hung(["/dead"])) for _ in range(5)]
    said = await asyncio.gather(*calls)
    assert len(started) == 1
    assert all(one is not None and one.startswith("/dead has not answered for") for one in said)


async def test_a_path_where_not_even_a_kill_helps_costs_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an uninterruptible wait: the signal changes nothing until the wait is over."""
    look_at_all(monkeypatch)
    monkeypatch.setattr(probes, "_LOOK", 'read -r _ <"$1.fifo"; echo')
    directory = Path(os.environ.get("TMPDIR", "/tmp")) / f"probe-{os.getpid()}"
    fifo = Path(f"{directory}.fifo")
    os.mkfifo(fifo)
    monkeypatch.setattr("crinoid.core.api.linux.process.Process.kill", lambda *_: None)
    looks = PathProbes(0.2)
    try:
        said = await looks.describe_hung([str(directory)])
        assert said is not None
        async with asyncio.timeout(0.1):  # at once
            said = await looks.describe_hung(["/other", str(directory)])
        assert said is not None
        assert said.startswith(f"{directory} has not answered for 0 s")
    finally:
        fifo.write_text("go on\n")
        fifo.unlink()
    async with asyncio.timeout(patient(10)):
        while str(directory) in looks._hung:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await looks.describe_hung(["/other"]) is None
