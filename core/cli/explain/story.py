"""Puts together what belongs to one pod, or to an image: acts that were recorded one by one.

A pod's story has the acts about its id, those of its containers among them, and the pulls of its containers' images
that came between its begin and their creation, as a kubelet pulls them then.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.image import ImageReference
from crinoid.core.state.timelines import AFTERWARDS, RecordedAct, RecordedStep, parse_act

Read = Callable[[tuple[str, ...], int], Awaitable[list[str]]]
START_OF_ALL = "start of "
_OF_PODS = frozenset({"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "UpdatePodSandboxResources"})
_OF_IMAGES = frozenset({"PullImage", "RemoveImage", "LoadImage", "TagImage", "UntagImage", "AdoptImages"})
RUN, CREATE, START, PULL = "RunPodSandbox", "CreateContainer", "StartContainer", "PullImage"


@dataclass(frozen=True, slots=True)
class Story:
    """The acts about a pod (``pod_id``) or an image, each with its line, in the order of their begin."""

    title: str
    pod_id: str
    acts: tuple[RecordedAct, ...]
    lines: tuple[str, ...]

    @property
    def making(self) -> tuple[RecordedAct, ...]:
        """The acts from RunPodSandbox to the end of the first start of its last container: what people wait for.

        A container that is started again later, or one more (an ephemeral one), is no part of it: a container's name
        counts once, and one that is created a minute after the last start does not.
        """
        starts = [act for act in self.acts if act.name == START]
        if not self.pod_id or not starts or self.acts[0].name != RUN:
            return ()
        last = starts[0]
        for act in starts[1:]:
            if act.began_ns - last.ended_ns > 60 * 10**9:
                break
            last = act
        made = [act for act in self.acts if act.name in (RUN, CREATE, START, PULL) and act.ended_ns <= last.ended_ns]
        return tuple(made)


async def find_story(subject: str, read: Read) -> Story | None:
    """Find what there is about a subject: the newest pod of a name, the newest container, or the acts on an image."""
    names = (subject, *_full_name(subject))
    found = _parse(await read(names, 0))
    if any(name in act.images for act, _ in found for name in names) or not any(_pod_of(act) for act, _ in found):
        found = [one for one in found if one[0].name != CREATE]
        return _story(f"image {names[-1]}", "", found) if found else None
    latest = [act for act, _ in found if _pod_of(act)][-1]
    story = await _read_pod(_pod_of(latest), read)
    if story.pod_id.startswith(subject) or any(act.name == RUN and act.is_about(subject) for act in story.acts):
        return story
    # A container: of its pod's story what is about it, and the pulls of its image.
    ids = {one for act, _ in found if _pod_of(act) == story.pod_id for one in act.ids} - {story.pod_id}
    images = {one for act in story.acts if ids.intersection(act.ids) for one in act.images}
    acts = [
        (act, line)
        for act, line in zip(story.acts, story.lines, strict=True)
        if ids.intersection(act.ids) or (act.name == PULL and images.intersection(act.images))
    ]
    return _story(f"container {subject} of {story.title}", story.pod_id, acts)


async def _read_pod(pod_id: str, read: Read) -> Story:
    found = _parse(await read((pod_id,), 0))
    begin = found[0][0]
    created = [act for act, _ in found if act.name == CREATE]
    if images := {name for act in created for one in act.images for name in (one, *_full_name(one))}:
        known, last_ns = {act.id for act, _ in found}, max(act.began_ns for act in created)
        pulls = [
            (act, line)
            for act, line in _parse(await read(tuple(images), begin.began_ns))
            if act.name == PULL and begin.began_ns <= act.began_ns <= last_ns and act.id not in known
        ]
        found = sorted([*found, *pulls], key=lambda one: one[0].began_ns)
    names = [one for act, _ in found if act.name == RUN for one in act.about if "/" in one]
    return _story(" ".join(["pod", *names[:1], pod_id[:13]]), pod_id, found)


def own_seconds(steps: Sequence[RecordedStep]) -> list[float]:
    """Return how long each step took without the steps that are parts of it, which may go side by side."""
    own = []
    for number, step in enumerate(steps):
        if step.seconds is None:
            own.append(0.0)
            continue
        parts = sorted(
            (part.began_s, part.began_s + part.seconds)
            for part in steps
            if part.parent == number and part.seconds is not None
        )
        own.append(max(0.0, step.seconds - _covered(parts)))
    return own


def unaccounted(act: RecordedAct) -> float:
    """Return how much of an act's time is in none of its steps."""
    parts = [(one.began_s, one.began_s + one.seconds) for one in act.steps if one.seconds is not None]
    return max(0.0, act.seconds - _covered(sorted(parts)))


def slowest(acts: Iterable[RecordedAct], most: int = 5) -> list[tuple[float, str]]:
    """Return the stages that took longest by themselves, with how long, each named by its act."""
    found = []
    for act in acts:
        times = own_seconds(act.steps)
        found += [(own, f"{act.name}: {step.name}") for own, step in zip(times, act.steps, strict=True)]
        found.append((unaccounted(act), f"{act.name}: between its stages"))
    return sorted(found, reverse=True)[:most]


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    covered, end = 0.0, float("-inf")
    for begin, until in spans:
        covered += max(0.0, until - max(begin, end))
        end = max(end, until)
    return covered


def _story(title: str, pod_id: str, found: Sequence[tuple[RecordedAct, str]]) -> Story:
    return Story(title, pod_id, tuple(act for act, _ in found), tuple(line for _, line in found))


def _parse(lines: Iterable[str]) -> list[tuple[RecordedAct, str]]:
    return [(act, line) for line in lines if (act := parse_act(line)) is not None]


def _pod_of(act: RecordedAct) -> str:
    """Return the id of the pod that an act is about; empty for one about an image, or about many pods."""
    name = act.name.removesuffix(AFTERWARDS)
    if not act.ids or name.startswith(START_OF_ALL) or name in _OF_IMAGES:
        return ""
    if act.name in _OF_PODS or act.name == CREATE:
        return act.ids[0]
    return act.ids[1] if len(act.ids) > 1 else act.ids[0]  # the container's is named first


def _full_name(subject: str) -> list[str]:
    try:
        full = str(ImageReference.parse(subject))
    except InvalidArgument:
        return []
    return [full] if full != subject else []
