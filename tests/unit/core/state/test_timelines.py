"""Timelines on disk: bounded, tolerant of damage, and never a reason for anything to fail."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from crinoid.core.api.linux.bulkheads import on_behalf_of
from crinoid.core.api.timeline import about, stage
from crinoid.core.state import timeline_log
from crinoid.core.state.timeline_log import SEGMENTS, TimelineLog, read_lines
from crinoid.core.state.timelines import DIRECTORY, RecordedAct, Timelines, parse_act, read_acts

POD, CONTAINER = "a" * 64, "b" * 64
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's disk may be full."""
    monkeypatch.setattr(timeline_log, "LEAST_FREE_BYTES", 0)


def acts(root: Path, *names: str) -> list[RecordedAct]:
    return list(read_acts(root / DIRECTORY, names).values())


async def test_an_act_is_found_by_every_name_it_has(tmp_path: Path) -> None:
    timelines = Timelines(tmp_path, MIB)
    with timelines.recording("RunPodSandbox", ["test/web"]) as ending, on_behalf_of(POD):
        with stage('network "default" (bridge) attach'):
            about("image:docker.io/library/busybox:1")
        ending.code = "OK"
    for name in ("test/web", POD, POD[:8], "docker.io/library/busybox:1"):
        (act,) = acts(tmp_path, name)
        assert (act.name, act.code, act.ids) == ("RunPodSandbox", "OK", (POD,))
        assert [(step.name, step.outcome) for step in act.steps] == [('network "default" (bridge) attach', "ok")]
    assert acts(tmp_path, "test/we", POD[:7], "c" * 64, "OK") == []
    assert parse_act((await timelines.read([POD], 0))[0]) == act
    assert await timelines.read([POD], act.ended_ns + 10**9) == []


async def test_an_act_that_fails_keeps_its_code_and_words(tmp_path: Path) -> None:
    timelines = Timelines(tmp_path, MIB)
    with timelines.recording("PullImage") as ending:
        ending.code, ending.message = "NOT_FOUND", "no such image"
    with pytest.raises(RuntimeError), timelines.recording("start of crinoid"):
        raise RuntimeError("all is lost")
    assert [(act.code, act.message) for act in acts(tmp_path)] == [
        ("NOT_FOUND", "no such image"),
        ("RuntimeError", "all is lost"),
    ]


async def test_what_takes_long_is_written_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crinoid.core.state.timelines._FIRST_LOOK_S", 0.0)
    timelines = Timelines(tmp_path, MIB)
    with timelines.recording("RunPodSandbox", ["web"]), stage("slow"):
        while not (found := acts(tmp_path, "web")):  # noqa: ASYNC110  # of files, which have no events
            await asyncio.sleep(0)
        assert [(act.code, act.steps[0].seconds) for act in found] == [("", None)]
    assert [(act.code, act.steps[0].outcome) for act in acts(tmp_path, "web")] == [("OK", "ok")]  # the last word on it


async def test_what_goes_on_afterwards_is_told_with_its_pod_and_not_each_time(tmp_path: Path) -> None:
    timelines, begun = Timelines(tmp_path, MIB), asyncio.Event()

    async def retry() -> None:
        await begun.wait()
        for _ in range(9):
            with stage("network detach"):
                pass

    with timelines.recording("StopPodSandbox", ["web"]), on_behalf_of(POD, CONTAINER):
        task = asyncio.create_task(retry())
    begun.set()
    await task
    late = [act for act in acts(tmp_path, POD) if act.name == "StopPodSandbox (afterwards)"]
    assert [act.steps[0].notes for act in late] == [(), *((f"for the {n}th time",) for n in (2, 4, 8))]
    assert {act.ids for act in late} == {(CONTAINER, POD)}


async def test_size_0_records_nothing(tmp_path: Path) -> None:
    timelines = Timelines(tmp_path, 0)
    with timelines.recording("RunPodSandbox"), stage("any"):
        pass
    assert timelines.is_off
    assert list(tmp_path.iterdir()) == []


def test_the_files_take_no_more_than_they_may_and_the_oldest_goes(tmp_path: Path) -> None:
    size = SEGMENTS * 1000
    log = TimelineLog(tmp_path / "timeline", size)
    for number in range(500):
        log.append(b"%04d" % number + b"x" * 90)
    files = sorted((tmp_path / "timeline").iterdir())
    assert sum(path.stat().st_size for path in files) <= size
    kept = [int(line[:4]) for line in read_lines(tmp_path / "timeline")]
    assert kept == list(range(kept[0], 500))
    assert len(kept) > 60
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (tmp_path / "timeline").stat().st_mode & 0o777 == 0o700


def test_a_new_daemon_goes_on_after_a_line_that_was_torn(tmp_path: Path) -> None:
    first = TimelineLog(tmp_path, 1 << 20)
    first.append(b'{"whole":1}')
    first.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b'{"torn":')
    second = TimelineLog(tmp_path, 1 << 20)
    second.append(b'{"whole":2}')
    assert list(read_lines(tmp_path)) == [b'{"whole":1}', b'{"torn":', b'{"whole":2}']
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "line",
    [b"\0" * 100, b"[]", b"null", b'{"id": 1}', b"\xff\xfe", b"[" * 5000, b'{"id":"x","act":"y","at":"z"}'],
)
async def test_damage_is_passed_over(tmp_path: Path, line: bytes) -> None:
    timelines = Timelines(tmp_path, MIB)
    with timelines.recording("RunPodSandbox", ["web"]):
        pass
    (file,) = (tmp_path / DIRECTORY).iterdir()
    file.write_bytes(line + b"\n" + file.read_bytes())
    assert parse_act(line) is None
    assert [act.name for act in acts(tmp_path)] == ["RunPodSandbox"]


async def test_nothing_that_is_in_the_way_stops_an_act(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / DIRECTORY).write_text("a file where the directory should be")
    timelines = Timelines(tmp_path, MIB)
    for _ in range(3):
        with timelines.recording("RunPodSandbox"):
            pass
    assert len([record for record in caplog.records if "can't be kept" in record.message]) == 1
    assert acts(tmp_path) == []


def test_a_link_or_a_fifo_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ring").mkdir()
    target = tmp_path / "target"
    target.write_text("untouched")
    (tmp_path / "ring" / "00000001.jsonl").symlink_to(target)
    log = TimelineLog(tmp_path / "ring", 1 << 20)
    log.append(b"line")
    assert target.read_text() == "untouched"
    (tmp_path / "ring" / "00000001.jsonl").unlink()
    os.mkfifo(tmp_path / "ring" / "00000001.jsonl")
    assert list(read_lines(tmp_path / "ring")) == []


def test_nothing_is_written_where_the_disk_is_all_but_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_log, "LEAST_FREE_BYTES", 1 << 62)
    log = TimelineLog(tmp_path, 1 << 20)
    log.append(b"line")
    assert list(read_lines(tmp_path)) == []


async def test_an_act_with_too_much_to_tell_keeps_what_was_slow_or_failed(tmp_path: Path) -> None:
    timelines = Timelines(tmp_path, 8 * MIB)
    with timelines.recording("PullImage", ["big"]):
        for _ in range(300):
            with stage("s" * 200) as step:
                for kind in range(10):
                    step.note(f"{kind}" + "n" * 290)
        with pytest.raises(ValueError, match="x"), stage("fails"):
            raise ValueError("x")
        with stage("slow"):
            await asyncio.sleep(0.02)
    (act,) = acts(tmp_path, "big")
    assert {"fails", "slow"} <= {step.name for step in act.steps}
    assert act.left_out > 0
    assert len(json.dumps(str(act))) < 100_000
