"""Cgroups: both versions over directories that look like them, and the host's own where there is root."""

import errno
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.errors import AlreadyExists, InvalidArgument, NotFound, Unsupported
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroups import Hierarchies
from crinoid.core.api.linux.threads import call_in_fresh_thread
from crinoid.core.api.values.pod import LinuxResources

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not cgroups.controllers() >= {"memory", "pids", "cpu"},
    reason="needs root and writable cgroups",
)

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:32 / /elsewhere rw,relatime - cgroup cgroup rw,memory
"""
UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
PSI = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=99\n"


@pytest.fixture
def v2(tmp_path: Path) -> Hierarchies:
    files = {
        "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
        "cpu.max": "max 100000\n",
        "cpu.weight": "100\n",
        "cpu.pressure": PSI,
        "memory.current": "5000\n",
        "memory.max": "max\n",
        "memory.swap.max": "4096\n",
        "memory.swap.current": "0\n",
        "memory.stat": "anon 1000\ninactive_file 2000\npgfault 7\npgmajfault 1\n",
        "pids.current": "3\n",
        "cgroup.procs": "11\n12\n",
    }
    write(tmp_path / "pod", files | {"cgroup.controllers": "cpu memory pids\n"})
    write(tmp_path, {"cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": "\n"})
    return Hierarchies(2, unified=str(tmp_path))


@pytest.fixture
def v1(tmp_path: Path) -> Hierarchies:
    stat = "total_rss 1000\ntotal_inactive_file 9000\ntotal_pgfault 7\ntotal_pgmajfault 1\ntotal_swap 0\n"
    limits = "hierarchical_memory_limit 8192\nhierarchical_memsw_limit 12288\n"
    write(tmp_path / "memory/pod", {"memory.usage_in_bytes": "5000\n", "memory.stat": stat + limits})
    write(tmp_path / "memory/pod", {"memory.limit_in_bytes": "8192\n", "memory.memsw.limit_in_bytes": "12288\n"})
    write(tmp_path / "cpu/pod", {"cpuacct.usage": "777\n", "cpu.shares": "1024\n", "cpu.cfs_quota_us": "-1\n"})
    write(tmp_path / "pids/pod", {"pids.current": "3\n"})
    named = {"cpu": "cpu", "cpuacct": "cpu", "memory": "memory", "pids": "pids"}
    return Hierarchies(1, {name: str(tmp_path / directory) for name, directory in named.items()})


@pytest.fixture
def path() -> Iterator[str]:
    name = f"/crinoid-test-{uuid.uuid4().hex[:8]}"
    yield name
    cgroups.kill(name)
    cgroups.remove(name)


def test_mount_points_are_found_on_a_hybrid_host() -> None:
    found = Hierarchies.read(HYBRID.splitlines())
    assert found.version == 1
    assert found.by_controller == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
    }
    assert found.others == ("/sys/fs/cgroup/systemd",)
    assert found.all == (
        "/sys/fs/cgroup/cpu,cpuacct",
        "/sys/fs/cgroup/memory",
        "/sys/fs/cgroup/systemd",
        "/sys/fs/cgroup/unified",
    )


def test_mount_points_are_found_on_a_unified_host() -> None:
    found = Hierarchies.read(UNIFIED.splitlines())
    assert (found.version, found.all) == (2, ("/sys/fs/cgroup",))


def test_usage_of_version_2(v2: Hierarchies) -> None:
    usage = v2.read_usage("/pod")
    assert (usage.cpu_ns, usage.pids, usage.page_faults, usage.major_page_faults) == (1_500_000, 3, 7, 1)
    assert (usage.memory_usage_bytes, usage.memory_working_set_bytes, usage.memory_rss_bytes) == (5000, 3000, 1000)
    assert (usage.memory_limit_bytes, usage.swap_usage_bytes, usage.swap_limit_bytes) == (None, 0, 4096)
    assert usage.cpu_pressure is not None and usage.memory_pressure is None
    assert (usage.cpu_pressure.some.avg10, usage.cpu_pressure.full.total_us) == (1.5, 99)
    assert abs(usage.timestamp_ns - time.time_ns()) < 10_000_000_000


def test_usage_of_version_1(v1: Hierarchies) -> None:
    usage = v1.read_usage("/pod")
    assert (usage.cpu_ns, usage.pids, usage.page_faults, usage.major_page_faults) == (777, 3, 7, 1)
    assert (usage.memory_usage_bytes, usage.memory_working_set_bytes, usage.memory_rss_bytes) == (5000, 0, 1000)
    assert (usage.memory_limit_bytes, usage.swap_usage_bytes, usage.swap_limit_bytes) == (8192, 0, 4096)


def test_usage_of_no_cgroup(v1: Hierarchies, v2: Hierarchies) -> None:
    for hierarchies in (v1, v2):
        with pytest.raises(NotFound, match="none"):
            hierarchies.read_usage("/none")


def test_a_figure_is_that_of_its_whole_name(v1: Hierarchies, v2: Hierarchies, tmp_path: Path) -> None:
    """Names that begin or end with another's come before it, and after the last there may be no line's end."""
    stat = "rss 1\nrss_huge 2\ntotal_rss_huge 3\ntotal_inactive_file 4\ntotal_rss 5\ntotal_pgfault 6\ntotal_swap 78"
    write(tmp_path / "memory/pod", {"memory.stat": stat})
    usage = v1.read_usage("/pod")
    assert (usage.memory_rss_bytes, usage.page_faults, usage.swap_usage_bytes) == (5, 6, 78)
    assert (usage.memory_limit_bytes, usage.swap_limit_bytes, usage.memory_working_set_bytes) == (None, None, 4996)
    write(tmp_path / "pod", {"memory.stat": "anon_thp 1\nanon 2\nworkingset_inactive_file 3\ninactive_file 4"})
    usage = v2.read_usage("/pod")
    assert (usage.memory_rss_bytes, usage.memory_working_set_bytes, usage.page_faults) == (2, 4996, 0)


def test_usage_of_several(v1: Hierarchies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_host", lambda: v1)
    first, none, last = cgroups.read_usages(["/pod", "/none", "/pod"])
    assert none is None
    assert first is not None and last is not None
    assert (first.cpu_ns, last.pids) == (777, 3)


def test_a_cgroup_that_goes_away_meanwhile_is_not_there(v2: Hierarchies, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look-up and its opening the kernel answers ENODEV."""

    def gone(path: str, *_: object) -> int:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(os, "open", gone)
    with pytest.raises(NotFound, match="/pod"):
        v2.read_usage("/pod")
    assert v2.read_file("/pod", "cpu.stat") is None
    v2.kill("/pod", 1)
    with pytest.raises(FileNotFoundError, match=r"cgroup\.procs"):
        v2.join("/pod", 1)


def test_limits_of_version_2(v2: Hierarchies, tmp_path: Path) -> None:
    resources = LinuxResources(
        cpu_shares=1024, cpu_quota=50_000, memory_limit_bytes=8192, memory_swap_limit_bytes=10_240
    )
    v2.write_resources("/pod", resources)
    assert read(tmp_path / "pod", "cpu.weight", "cpu.max", "memory.max", "memory.swap.max") == [
        "100",
        "50000 100000",
        "8192",
        "2048",
    ]
    v2.write_resources("/pod", LinuxResources(cpu_quota=-1, cpu_period=200_000, unified={"memory.max": "max"}))
    assert read(tmp_path / "pod", "cpu.max", "memory.max")[0].startswith("max 200000")
    with pytest.raises(Unsupported, match=r"hugetlb\.2MB\.max"):
        v2.write_resources("/pod", LinuxResources(hugepage_limits={"2MB": 1 << 21}))
    with pytest.raises(InvalidArgument, match="not the name of a setting"):
        v2.write_resources("/pod", LinuxResources(unified={"../cgroup.kill": "1"}))
    with pytest.raises(NotFound):
        v2.write_resources("/none", LinuxResources(cpu_shares=2))


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("memory.none-such", InvalidArgument, "memory.none-such does not exist .* no such setting"),
        ("io.max", Unsupported, "io.max does not exist .* controller io is off"),
        ("memory", InvalidArgument, "'memory' is not the name"),
        ("memory.", InvalidArgument, "'memory.' is not the name"),
        ("../cgroup.kill", InvalidArgument, "is not the name"),
    ],
)
def test_settings_that_there_are_not(
    v2: Hierarchies, tmp_path: Path, name: str, error: type[Exception], words: str
) -> None:
    """They are found before anything is written, and for a cgroup that is still to be made."""
    with pytest.raises(error, match=words):
        v2.write_resources("/pod", LinuxResources(memory_limit_bytes=1, unified={"memory.max": "2", name: "1"}))
    assert read(tmp_path / "pod", "memory.max") == ["max"]
    for path in ("/pod", "/pod/container"):
        with pytest.raises(error, match=words):
            v2.check_settings(path, ["memory.max", name])
    v2.check_settings("/none/container", ["memory.none-such"])  # nothing is known of it


def test_unified_settings_are_of_version_2(v1: Hierarchies) -> None:
    with pytest.raises(Unsupported, match="cgroup v1"):
        v1.check_settings("/pod", ["memory.max"])


def test_limits_of_version_1(v1: Hierarchies, tmp_path: Path) -> None:
    v1.write_resources("/pod", LinuxResources(cpu_shares=2048, cpu_quota=50_000, memory_limit_bytes=4096))
    assert read(tmp_path / "cpu/pod", "cpu.shares", "cpu.cfs_quota_us") == ["2048", "50000"]
    assert read(tmp_path / "memory/pod", "memory.limit_in_bytes") == ["4096"]
    with pytest.raises(Unsupported, match="no cpuset controller"):
        v1.write_resources("/pod", LinuxResources(cpuset_cpus="0"))
    with pytest.raises(Unsupported, match="cgroup v1"):
        v1.write_resources("/pod", LinuxResources(unified={"memory.max": "max"}))


def test_shares_become_weights() -> None:
    assert [cgroups.cpu_weight(shares) for shares in (0, 2, 1024, 262_144, 1 << 30)] == [1, 1, 100, 10_000, 10_000]


@pytest.mark.parametrize("wrong", ["/", "", "pod", "/a/../..", "//", "/."])
def test_the_root_is_never_killed_or_removed(v2: Hierarchies, wrong: str) -> None:
    for act in (v2.remove, v2.make, lambda path: v2.kill(path, 0.1)):
        with pytest.raises(InvalidArgument):
            act(wrong)


@needs_root
def test_a_real_cgroup_is_made_joined_measured_killed_and_removed(path: str) -> None:
    cgroups.make(f"{path}/child")
    cgroups.make(f"{path}/child")
    process = subprocess.Popen(["sh", "-c", "read go; sleep 60 & echo; wait"], stdin=-1, stdout=-1)
    try:
        assert process.stdin is not None and process.stdout is not None
        cgroups.join(f"{path}/child", process.pid)
        with process.stdin as go, process.stdout as started:
            go.write(b"\n")
            go.flush()
            started.readline()
        assert process.pid in cgroups.processes(path)
        assert len(cgroups.processes(path)) == 2
        usage = cgroups.read_usage(path)
        assert usage.pids >= 1
        assert usage.memory_usage_bytes >= 0
    finally:
        cgroups.kill(path)
        process.wait(10)
    assert cgroups.processes(path) == ()
    cgroups.remove(path)
    cgroups.remove(path)
    with pytest.raises(NotFound):
        cgroups.read_usage(path)
    assert not [point for point in cgroups._host().all if os.path.exists(point + path)]


@needs_root
def test_only_an_unused_one_is_removed(path: str) -> None:
    cgroups.make(f"{path}/below")
    assert not cgroups.remove_unused(path)
    assert cgroups.exists(f"{path}/below")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        cgroups.join(f"{path}/below", process.pid)
        assert not cgroups.remove_unused(f"{path}/below")
        process.kill()
    cgroups.kill(f"{path}/below")  # waits until the kernel counts it no more
    cgroups.remove(f"{path}/below")
    for _ in range(2):
        assert cgroups.remove_unused(path)
    assert not cgroups.exists(path)


@needs_root
def test_real_limits_go_up_and_down(path: str) -> None:
    cgroups.make(path)
    for mebibytes in (64, 32, 128):
        size = mebibytes << 20
        cgroups.write_resources(
            path,
            LinuxResources(memory_limit_bytes=size, memory_swap_limit_bytes=size, cpu_shares=512, cpu_quota=20_000),
        )
        assert cgroups.read_usage(path).memory_limit_bytes == size
    with pytest.raises(InvalidArgument, match="cpu"):
        cgroups.write_resources(path, LinuxResources(cpuset_cpus="9999", cpu_quota=1))


def write(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(content)


def read(directory: Path, *names: str) -> list[str]:
    return [(directory / name).read_text().strip() for name in names]


def test_a_thread_of_version_1_enters_alone(v1: Hierarchies) -> None:
    for root in v1.made:
        write(Path(root) / "pod", {"tasks": ""})
    v1.enter("/pod")
    assert {(Path(root) / "pod/tasks").read_text() for root in v1.made} == {"0"}
    with pytest.raises(FileNotFoundError):
        v1.enter("/elsewhere")


def test_no_thread_of_version_2_can(v2: Hierarchies) -> None:
    with pytest.raises(Unsupported, match="threads"):
        v2.enter("/pod")


def test_a_cgroup_is_made_with_all_that_is_missing_above_it(v1: Hierarchies) -> None:
    v1.make("/pod/new")
    v1.make("/far/away/below")
    v1.make("/far/away/below")
    for root in v1.made:
        assert (Path(root) / "pod/new").is_dir()
        assert (Path(root) / "far/away/below").is_dir()


@needs_root
def test_a_child_of_a_thread_that_entered_begins_there(tmp_path: Path) -> None:
    if cgroups.version() != 1:
        pytest.skip("threads enter by themselves with version 1 only")
    path = f"/crt-{uuid.uuid4().hex[:8]}"

    def begin() -> "subprocess.Popen[bytes]":
        cgroups.enter(path)
        return subprocess.Popen(["sleep", "100"])

    cgroups.make(path)
    try:
        process = call_in_fresh_thread(begin)
        try:
            assert process.pid in cgroups.processes(path)
            lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
            ours = [line for line in lines if not line.startswith("0::")]
            assert all(line.endswith(path) for line in ours), lines
            assert path not in Path("/proc/self/cgroup").read_text()
        finally:
            process.kill()
            process.wait()
    finally:
        cgroups.remove(path)


@needs_root
def test_hastening_moves_nobody() -> None:
    def moved() -> tuple[str, str]:
        before = Path("/proc/thread-self/cgroup").read_text()
        cgroups.warm_up()
        return before, Path("/proc/thread-self/cgroup").read_text()

    before, after = call_in_fresh_thread(moved)
    assert before == after
    assert (cgroups._host()._own_path() or "").rpartition("/")[2] in ("tasks", "cgroup.threads")


def test_a_cpuset_above_that_has_no_processors_yet_gets_them_first(tmp_path: Path) -> None:
    """As when somebody else is making it at this moment."""
    host = Hierarchies(1, {"cpuset": str(tmp_path)})
    files = {"cpuset.cpus": "", "cpuset.mems": ""}
    write(tmp_path, {"cpuset.cpus": "0-1\n", "cpuset.mems": "0\n"})
    write(tmp_path / "above", files)
    write(tmp_path / "above/new", files)
    host.make("/above/new")
    assert (tmp_path / "above/cpuset.cpus").read_text() == "0-1"
    assert (tmp_path / "above/new/cpuset.cpus").read_text() == "0-1"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "//",
        "relative",
        "/a/../b",
        "/..",
        "/./a",
        "/a\0b",
        "/a\nb",
        "/" + "n" * 256,
        "/n" * 65,
        None,
        7,
        ["/a"],
    ],
)
def test_what_is_no_path_belongs_to_nobody(path: str, v1: Hierarchies, v2: Hierarchies) -> None:
    """A damaged record may say any of these: nothing is killed or removed by it."""
    for host in (v1, v2):
        assert not host.belongs_to(path, "f" * 64)
        assert not host.is_marked(path)
        assert not host.remove_marked(path)
        with pytest.raises(InvalidArgument, match="is not the path of a cgroup"):
            host.kill(path, 1)
        with pytest.raises(InvalidArgument, match="is not the path of a cgroup"):
            host.remove(path)


@pytest.mark.parametrize("path", ["/pod/memory.stat", "/pod/memory.stat/x", "/pod/memory.stat/x/y"])
def test_a_name_that_the_kernel_has_taken(path: str, v1: Hierarchies) -> None:
    with pytest.raises(InvalidArgument, match=r"can't be made: .*/memory/pod/memory\.stat.* is a file"):
        v1.make(path)
    with pytest.raises(InvalidArgument, match="is a file"):
        v1.make_new(f"{path}/new", "o")


def test_a_name_tells_the_owner(v2: Hierarchies) -> None:
    owner = "0123456789abcdef" * 4
    assert v2.belongs_to(f"/kubepods/pod1/{owner}", owner)
    assert v2.belongs_to(f"/kubepods.slice/crinoid-{owner}.scope", owner)
    assert v2.belongs_to(f"/crinoid.slice/crinoid-{owner}.slice", owner)
    assert not v2.belongs_to(f"/crinoid.slice/crinoid-{owner}.mount", owner)
    assert not v2.belongs_to(f"/kubepods/{owner}/inner", owner)
    assert not v2.belongs_to(f"/kubepods/{'1' * 64}", owner)
    assert not v2.belongs_to("/pod", "pod"), "a name that anybody may have chosen says nothing"
    assert not v2.belongs_to(f"/kubepods/{owner}", "")


def test_what_runs_in_a_threaded_cgroup(v2: Hierarchies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel lists no processes, and refuses to kill all by one word."""
    write(tmp_path / "pod/threads", {"cgroup.threads": "21\n22\n"})
    assert v2.processes("/pod") == (11, 12, 21, 22)
    killed: list[int] = []

    def write_one(file: str, value: str) -> None:
        if file.endswith("cgroup.kill"):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), file)

    def kill(pid: int, _: int) -> None:
        killed.append(pid)
        for name in ("cgroup.procs", "threads/cgroup.threads"):
            (tmp_path / "pod" / name).unlink(missing_ok=True)

    monkeypatch.setattr(cgroups, "_write", write_one)
    monkeypatch.setattr(os, "kill", kill)
    v2.kill("/pod", 5)
    assert killed == [11, 12, 21, 22]


def test_nothing_is_killed_around_oneself(v2: Hierarchies) -> None:
    own = next(line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if own == "/":
        pytest.skip("the tests run in the root cgroup, which no path means")
    with pytest.raises(InvalidArgument, match="holds this very process"):
        v2.kill(own, 1)


@needs_root
def test_a_cgroup_made_for_somebody_is_his(path: str) -> None:
    cgroups.make_new(path, "me")
    assert cgroups.belongs_to(path, "me")
    assert not cgroups.belongs_to(path, "you")
    assert cgroups.is_marked(path)
    assert cgroups.remove_marked(path)
    assert not cgroups.exists(path)
    assert not cgroups.belongs_to(path, "me")
    for root in cgroups._host().all:
        Path(root + path).mkdir()
    assert not cgroups.belongs_to(path, "me"), "it is another one of the same path"
    assert not cgroups.remove_marked(path)
    assert cgroups.exists(path)


@needs_root
def test_a_cgroup_that_is_there_is_not_made_anew(path: str) -> None:
    """Not even one that is there in the last of the hierarchies alone; and nothing is left in the others."""
    *others, last = cgroups._host().all
    Path(last + path).mkdir()
    with pytest.raises(AlreadyExists, match=path):
        cgroups.make_new(path, "me")
    assert not any(Path(root + path).exists() for root in others)
    assert Path(last + path).is_dir()
    assert not cgroups.belongs_to(path, "me")


@needs_root
def test_what_is_made_above_goes_once_it_is_not_used(path: str) -> None:
    cgroups.make_new(f"{path}/above/new", "me")
    assert not cgroups.remove_marked(path)
    assert not cgroups.remove_marked(f"{path}/above")
    for one in (f"{path}/above/new", f"{path}/above", path):
        assert cgroups.remove_marked(one)
    assert not cgroups.exists(path)


@needs_root
def test_a_made_cgroup_goes_also_where_the_kernel_is_not_done_with_its_processes(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As right after the last one ended: nothing lists any, and rmdir(2) has EBUSY for a moment."""
    cgroups.make_new(path, "me")
    rmdir, busy = os.rmdir, [errno.EBUSY] * 3

    def remove(directory: str | Path, **given: int | None) -> None:
        if busy:
            raise OSError(busy.pop(), "busy")
        rmdir(directory, **given)

    monkeypatch.setattr(os, "rmdir", remove)
    assert cgroups.remove_marked(path)
    assert not cgroups.exists(path)


@needs_root
def test_a_new_cgroup_has_its_stated_mode_whatever_the_umask(path: str) -> None:
    roots = cgroups._host().all
    own = os.umask(0o077)
    try:
        cgroups.make_new(path, "pod")
    finally:
        os.umask(own)
    modes = {root: Path(root + path).stat().st_mode & 0o777 for root in roots}
    assert modes == dict.fromkeys(modes, 0o755)
