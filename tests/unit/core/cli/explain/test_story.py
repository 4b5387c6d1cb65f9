"""What belongs to a pod's story, which stages took longest, and how that is shown."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from crinoid.core.api.timeline import IMAGE
from crinoid.core.cli.explain.story import Story, find_story, own_seconds, slowest
from crinoid.core.cli.explain.timeline_view import print_story
from crinoid.core.state.timelines import RecordedStep, parse_act

POD, OTHER, CONTAINER = "a" * 64, "b" * 64, "c" * 64
SECOND = 10**9
Step = tuple[str, float, float, int]


def act(name: str, at_s: float, seconds: float, about: Sequence[str], *steps: Step, **more: Any) -> str:
    written = [
        [step, int(began * 1e6), int(took * 1e6), more.get("outcome", "ok"), parent, more.get("subjects", []), []]
        for step, began, took, parent in steps
    ]
    head = {"id": f"{name}{at_s}", "act": name, "at": int((1000 + at_s) * SECOND), "s": seconds}
    tail = {"code": more.get("code", "OK"), "message": more.get("message", ""), "about": list(about), "steps": written}
    return json.dumps(head | tail)


LINES = [
    act("RunPodSandbox", 0, 0.5, ["ns/web", "web", POD], ('network "default" attach', 0.1, 0.3, -1)),
    act("PullImage", 0.6, 2.0, [f"{IMAGE}app", f"{IMAGE}docker.io/library/app:latest"], ("fetch", 0.0, 1.9, -1)),
    act(
        "CreateContainer",
        2.7,
        1.0,
        [POD, f"{IMAGE}app", "main", CONTAINER],
        ("OCI specification", 0.1, 0.8, -1),
        ('extension "slow" adjust_container', 0.2, 0.6, 0),
    ),
    act("StartContainer", 3.8, 0.1, [CONTAINER, POD]),
    act("RemovePodSandbox", 99, 0.2, [POD, CONTAINER]),
    act("RunPodSandbox", 100, 0.5, ["ns/web", "web", OTHER]),
    act("PullImage", 200, 1.0, [f"{IMAGE}app"]),
]


async def read(about: tuple[str, ...], since_ns: int) -> list[str]:
    found = [(line, parse_act(line)) for line in LINES]
    return [line for line, one in found if one and one.ended_ns >= since_ns and any(map(one.is_about, about))]


async def story_of(subject: str) -> Story:
    story = await find_story(subject, read)
    assert story is not None
    return story


def names(story: Story) -> list[str]:
    return [one.name for one in story.acts]


async def test_a_pod_has_its_containers_and_the_pull_that_they_waited_for() -> None:
    story = await story_of(POD[:12])
    assert names(story) == ["RunPodSandbox", "PullImage", "CreateContainer", "StartContainer", "RemovePodSandbox"]
    assert story.title == f"pod ns/web {POD[:13]}"
    assert [one.name for one in story.making] == ["RunPodSandbox", "PullImage", "CreateContainer", "StartContainer"]


@pytest.mark.parametrize("subject", ["web", "ns/web", OTHER])
async def test_of_pods_of_one_name_the_last_is_meant(subject: str) -> None:
    assert (await story_of(subject)).pod_id == OTHER


@pytest.mark.parametrize("subject", ["main", CONTAINER, CONTAINER[:8]])
async def test_a_container_has_its_own_acts_and_the_pull_of_its_image(subject: str) -> None:
    assert names(await story_of(subject)) == ["PullImage", "CreateContainer", "StartContainer", "RemovePodSandbox"]


@pytest.mark.parametrize("subject", ["app", "docker.io/library/app:latest"])
async def test_an_image_has_its_pulls(subject: str) -> None:
    assert set(names(await story_of(subject))) == {"PullImage"}


async def test_of_what_is_not_known_there_is_no_story() -> None:
    assert await find_story("nobody", read) is None


async def test_the_slowest_are_named_by_the_time_of_their_own() -> None:
    story = await story_of(POD)
    assert [(round(took, 3), name) for took, name in slowest(story.making, 3)] == [
        (1.9, "PullImage: fetch"),
        (0.6, 'CreateContainer: extension "slow" adjust_container'),
        (0.3, 'RunPodSandbox: network "default" attach'),
    ]


def test_parts_that_go_side_by_side_count_once() -> None:
    steps = [
        RecordedStep("whole", 0.0, 10.0, "ok"),
        RecordedStep("one", 1.0, 4.0, "ok", 0),
        RecordedStep("two", 2.0, 5.0, "ok", 0),
        RecordedStep("goes on", 3.0, None, "running", 0),
    ]
    assert own_seconds(steps) == [4.0, 4.0, 5.0, 0.0]


async def test_what_is_printed_says_why_it_took_so_long(capsys: pytest.CaptureFixture[str]) -> None:
    print_story(await story_of(POD), everything=False)
    text = capsys.readouterr().out
    assert "3.900 s from RunPodSandbox to the last StartContainer, 300.0 ms of it between calls" in text
    assert text.index("PullImage: fetch") < text.index('CreateContainer: extension "slow" adjust_container')
    assert "RemovePodSandbox  OK  200.0 ms" in text


async def test_of_a_start_only_what_it_did_for_the_pod_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        act("start of crinoid", 0, 1.0, [POD], ("undo mount", 0.0, 0.5, -1), subjects=[POD]),
        act("start of crinoid", 5, 1.0, [OTHER, POD], ("other's", 0.0, 0.5, -1), subjects=[OTHER]),
    ]
    acts = tuple(one for line in lines if (one := parse_act(line)))
    print_story(Story("pod", POD, acts, tuple(lines)), everything=False)
    text = capsys.readouterr().out.partition("\n\n")[2]
    assert "undo mount" in text
    assert "other's" not in text


def test_what_had_not_ended_and_what_failed_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        act("PullImage", 0, 5.0, [], ("fetch", 0.0, 0.0, -1), code=""),
        act("PullImage", 9, 0.1, [], ("ask host", 0.0, 0.0, -1), code="NOT_FOUND", message="none", outcome="NotFound"),
    ]
    acts = tuple(one for line in lines if (one := parse_act(line)))
    print_story(Story("image app", "", acts, tuple(lines)), everything=False)
    text = capsys.readouterr().out
    assert "not ended when this was written" in text
    assert "ask host  NotFound" in text
    assert "NOT_FOUND" in text
