"""What an act consists of: its stages and hook calls, when each began, how long it took and what came of it.

The kernel opens an :class:`Act` around each request that changes something. Whatever runs on its behalf, also in tasks
that it starts, may say what it does::

    with stage("fetch of layer sha256:…") as step:
        step.note("from mirror https://mirror.example")

A driver's stages stand below the hook that they belong to. Where there is no act, a stage does nothing. ``crinoid
explain`` shows what was recorded, so names and notes never hold a secret: names of environment variables, hosts, paths
and digests, no value that somebody gave.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux.bulkheads import current_behalf

MAX_STEPS = 400
"""Of one act: a pull of a hundred layers has some three hundred."""
IMAGE = "image:"
"""Begins what says which image an act is about."""
_MAX_NOTES, _MAX_CHARACTERS = 12, 300
_ID = re.compile(r"[0-9a-f]{64}")
RUNNING, OK, CANCELLED = "running", "ok", "cancelled"


@dataclass(slots=True)
class Step:
    """A stage or hook call of an act. ``began_s`` is after the act's begin; ``parent`` the step that it is a part of.

    ``outcome`` is ``ok``, ``cancelled``, the reason of an error, or ``running``; ``subjects`` are ids of container
    and pod.
    """

    name: str
    began_s: float
    parent: int = -1
    subjects: tuple[str, ...] = ()
    seconds: float = 0.0
    outcome: str = RUNNING
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add what is worth to be known of the step; no secret."""
        if len(self.notes) < _MAX_NOTES and (text := clean(text)) not in self.notes:
            self.notes.append(text)


@dataclass(slots=True, eq=False)
class Act:
    """A request, or what the daemon does by itself. ``about``: ids and names of what it is about.

    Once it is closed, steps that go on are handed to ``late``, each by itself, when they end.
    """

    name: str
    late: "Callable[[Act, Step], None]"
    about: dict[str, None] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    began_ns: int = field(default_factory=time.time_ns)
    began_s: float = field(default_factory=time.monotonic)
    left_out: int = 0
    is_closed: bool = False
    told: BaseException | None = None
    """The error that a step has told of already: those around it don't say it again."""

    def end(self) -> None:
        """Close the act; whatever goes on in its context afterwards holds no memory of it."""
        self.is_closed, self.steps, self.told = True, [], None


_here: ContextVar[tuple[Act, int] | None] = ContextVar("act", default=None)


class acting:  # noqa: N801  # a context manager by the name of what it does
    """Have the stages of a block, and of tasks begun in it, belong to an act; ``None``: to none."""

    def __init__(self, act: Act | None) -> None:
        self._act = act

    def __enter__(self) -> None:
        self._token = _here.set(None if self._act is None else (self._act, -1))

    def __exit__(self, *_: object) -> None:
        _here.reset(self._token)


class stage:  # noqa: N801
    """A context manager around one stage of the act under way. Costs two microseconds, and next to nothing without one.

    What is raised in the block passes through; the step keeps the reason, and the message of a CrinoidError.
    """

    __slots__ = ("_act", "_name", "_step", "_token")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> Self:
        here = _here.get()
        self._act: Act | None = None
        if here is None:
            return self
        act, parent = here
        behalf = current_behalf()
        ids = {match[0]: None for one in (behalf.subject, behalf.owner) if (match := _ID.search(one))}
        act.about |= ids
        step = self._step = Step(self._name, time.monotonic() - act.began_s, parent, tuple(ids))
        number = -1
        if not act.is_closed:
            if len(act.steps) >= MAX_STEPS:
                act.left_out += 1
                return self
            number = len(act.steps)
            act.steps.append(step)
        self._act = act
        self._token = _here.set((act, number))
        return self

    def note(self, text: str) -> None:
        """Add what is worth to be known of the stage; no secret."""
        if self._act is not None:
            self._step.note(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        act = self._act
        if act is None:
            return
        with contextlib.suppress(ValueError):  # an asynchronous generator that is closed elsewhere
            _here.reset(self._token)
        step = self._step
        step.seconds = time.monotonic() - act.began_s - step.began_s
        step.outcome = _outcome_of(error)
        if isinstance(error, CrinoidError) and act.told is not error:
            act.told = error
            step.note(error.message)
        if act.is_closed:
            act.told = None
            act.late(act, step)


def note(text: str) -> None:
    """Add something to the stage under way, if there is one; no secret."""
    if (step := _current()) is not None:
        step.note(text)


def graft(steps: Iterable[Step], began_s: float) -> None:
    """Put stages that another process has recorded below the stage under way. Their times are from ``began_s`` on, by
    the monotonic clock; parents come before their parts."""
    here = _here.get()
    if here is None or here[0].is_closed:
        return
    act, parent = here
    base, after_s = len(act.steps), began_s - act.began_s
    for step in steps:
        if len(act.steps) >= MAX_STEPS:
            act.left_out += 1
            continue
        step.name, step.outcome, step.notes = clean(step.name), clean(step.outcome), step.notes[:_MAX_NOTES]
        step.notes = [clean(text) for text in step.notes]
        step.began_s += after_s
        step.parent = parent if step.parent < 0 else base + step.parent
        act.steps.append(step)


def about(*names: str) -> None:
    """Say what the act under way is about: ids, names, images (as ``image:REFERENCE``) by which it can be found."""
    here = _here.get()
    if here is not None and not here[0].is_closed:
        here[0].about.update((clean(name), None) for name in names if name)


def clean(text: str) -> str:
    """Bound a text, and make one line of it that no terminal acts on."""
    text = text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)


def _current() -> Step | None:
    here = _here.get()
    if here is None or not 0 <= here[1] < len(here[0].steps):
        return None
    return here[0].steps[here[1]]


def _outcome_of(error: BaseException | None) -> str:
    if error is None:
        return OK
    if isinstance(reason := getattr(error, "reason", None), str):
        return clean(reason)
    return CANCELLED if isinstance(error, asyncio.CancelledError | GeneratorExit) else type(error).__name__
