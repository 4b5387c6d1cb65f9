"""Timelines of what was done to pods, containers and images: recorded by the daemon, read by ``crinoid explain``.

``cri.calls`` opens an act around each RPC that changes something, the start one around what it recovers; stages and
hooks add themselves (``api.timeline``). An act is written when it ends, as one line. One that takes longer is written
after a second, too, and then four times as late each time, so that a daemon that is killed leaves what it was at. What
probes and statistics call is not recorded: it would fill the files within the hour.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.timeline import IMAGE, OK, RUNNING, Act, Step, acting, clean
from crinoid.core.state.timeline_log import MAX_LINE_BYTES, TimelineLog, read_lines

DIRECTORY = "timeline"
AFTERWARDS = " (afterwards)"
"""Ends the names of what went on after its act."""
_FIRST_LOOK_S, _LOOK_FACTOR = 1.0, 4.0
_MOST_KINDS = 1024
_MOST_OF_TOO_MANY = 60
SHORT_ID = 8
_ID, _WHOLE_ID = re.compile(r"[0-9a-f]+"), re.compile(r"[0-9a-f]{64}")

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """See ``api.timeline.Step``; ``seconds`` is ``None`` for one that had not ended when it was written."""

    name: str
    began_s: float
    seconds: float | None
    outcome: str
    parent: int = -1
    subjects: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordedAct:
    """An act as it was written. ``code`` is gRPC's name of the status, empty for one that had not ended."""

    id: str
    name: str
    began_ns: int
    seconds: float
    code: str
    message: str
    about: tuple[str, ...]
    steps: tuple[RecordedStep, ...]
    left_out: int = 0

    @property
    def ended_ns(self) -> int:
        """When it ended, or was written."""
        return self.began_ns + int(self.seconds * 1e9)

    def is_about(self, name: str) -> bool:
        """Return whether it is about an id, the beginning of one that is long enough, or a name."""
        is_id = len(name) >= SHORT_ID and _ID.fullmatch(name) is not None
        names = [one.removeprefix(IMAGE) for one in self.about]
        return any(one == name or (is_id and one.removeprefix("sha256:").startswith(name)) for one in names)

    @property
    def images(self) -> tuple[str, ...]:
        """The images that it is about, as they were called."""
        return tuple(one.removeprefix(IMAGE) for one in self.about if one.startswith(IMAGE))

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of pods and containers that it is about."""
        return tuple(one for one in self.about if _WHOLE_ID.fullmatch(one))


class Timelines:
    """Records acts. Belongs to the event loop's thread; nothing here raises but what a block raises itself."""

    def __init__(self, root: Path, size_bytes: int) -> None:
        """``size_bytes``: what the files may take of the disk below ``root``; 0 turns it off."""
        self._log = TimelineLog(root / DIRECTORY, size_bytes)
        self._directory = root / DIRECTORY
        self._run = f"{time.time_ns():x}-{os.getpid()}"
        self._count = 0
        self._seen: dict[tuple[tuple[str, ...], str, str], int] = {}

    @contextmanager
    def recording(self, name: str, about: Iterable[str] = ()) -> Iterator["Ending"]:
        """Record the block as an act. Of one that ends in an error of its own the reason is told; the RPCs' status is
        said by ``Ending``."""
        ending = Ending()
        if self._log.is_off:
            yield ending
            return
        act = Act(name, self._record_late)
        act.about.update((clean(one), None) for one in about if one)
        self._count += 1
        number = f"{self._run}-{self._count}"
        looking = self._look_later(act, number, _FIRST_LOOK_S)
        try:
            with acting(act):
                yield ending
        except BaseException as error:
            if not ending.code:
                ending.code, ending.message = type(error).__name__, str(error)
            raise
        finally:
            looking[0].cancel()
            self._write(act, number, ending.code or "OK", ending.message)
            act.end()

    @property
    def is_off(self) -> bool:
        """Return whether nothing is kept, by configuration."""
        return self._log.is_off

    async def read(self, about: Iterable[str], since_ns: int) -> list[str]:
        """Return the lines of ``read_acts``."""
        return list(await call_in_thread(partial(read_acts, self._directory, tuple(about), since_ns)))

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def _look_later(self, act: Act, number: str, after_s: float) -> list[asyncio.TimerHandle]:
        """Write down an act that takes long, from time to time; the list holds the next look."""
        loop = asyncio.get_running_loop()

        def look(after_s: float) -> None:
            self._write(act, number, "", "")
            looking[0] = loop.call_later(after_s * _LOOK_FACTOR, look, after_s * _LOOK_FACTOR)

        looking = [loop.call_later(after_s, look, after_s)]
        return looking

    def _record_late(self, act: Act, step: Step) -> None:
        """Record what went on after its act: the end of a container, an undo in the background.

        What repeats itself is recorded the first, second, fourth, eighth time, and so on.
        """
        key = (step.subjects, step.name, step.outcome)
        if len(self._seen) >= _MOST_KINDS:
            self._seen.clear()
        count = self._seen[key] = self._seen.get(key, 0) + 1
        if count & (count - 1):
            return
        if count > 1:
            step.note(f"for the {count}th time")
        self._count += 1
        began_ns = act.began_ns + int(step.began_s * 1e9)
        subjects = dict.fromkeys(step.subjects or act.about)
        alone = Act(f"{act.name}{AFTERWARDS}", self._record_late, subjects, began_ns=began_ns)
        step.began_s, step.parent = 0.0, -1
        alone.steps.append(step)
        alone.began_s = time.monotonic() - step.seconds
        self._write(alone, f"{self._run}-{self._count}", "OK" if step.outcome == OK else step.outcome, "")

    def _write(self, act: Act, number: str, code: str, message: str) -> None:
        now_s = time.monotonic()
        line = _encode(act, number, now_s - act.began_s, code, message, act.steps)
        if len(line) > MAX_LINE_BYTES:  # what failed and what was slow tells the most
            kept = sorted(act.steps, key=lambda step: (step.outcome == OK, -step.seconds))[:_MOST_OF_TOO_MANY]
            cut = [
                replace(step, parent=-1, notes=step.notes[:1]) for step in sorted(kept, key=lambda step: step.began_s)
            ]
            line = _encode(act, number, now_s - act.began_s, code, message, cut, len(act.steps) - len(cut))
        self._log.append(line)


@dataclass(slots=True)
class Ending:
    """What came of an act: set before its block ends."""

    code: str = ""
    message: str = ""


def read_acts(directory: Path, about: Iterable[str] = (), since_ns: int = 0) -> dict[str, RecordedAct]:
    """Return the acts about any of some ids or names (all acts, of none), each with its line, in the order of their
    begin; those that ended before ``since_ns`` are left out. Blocks.

    Of an act that was written several times the last one counts; what is damaged is passed over.
    """
    wanted = tuple(about)
    needles = tuple(json.dumps(one)[1:-1].encode() for one in wanted)
    found: dict[str, tuple[str, RecordedAct]] = {}
    for line in read_lines(directory, needles):
        act = parse_act(line)
        if act is None or act.ended_ns < since_ns or (wanted and not any(act.is_about(one) for one in wanted)):
            continue
        found[act.id] = (line.decode(), act)
    return dict(sorted(found.values(), key=lambda one: one[1].began_ns))


def parse_act(line: bytes | str) -> RecordedAct | None:
    """Read a line; ``None`` for one that is damaged, or another version's."""
    try:
        read: Mapping[str, Any] = json.loads(line)
        steps = tuple(
            RecordedStep(
                str(name), begin / 1e6, None if took is None else took / 1e6, str(outcome), int(parent),
                tuple(map(str, subjects)), tuple(map(str, notes)),
            )
            for name, begin, took, outcome, parent, subjects, notes in read["steps"]
        )  # fmt: skip
        return RecordedAct(
            str(read["id"]),
            str(read["act"]),
            int(read["at"]),
            float(read["s"]),
            str(read["code"]),
            str(read["message"]),
            tuple(map(str, read["about"])),
            steps,
            int(read.get("left_out", 0)),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _encode(
    act: Act, number: str, seconds: float, code: str, message: str, steps: list[Step], cut: int = 0
) -> bytes:  # fmt: skip
    document: JsonObject = {
        "id": number,
        "act": act.name,
        "at": act.began_ns,
        "s": round(seconds, 6),
        "code": code,
        "message": clean(message),
        "about": [*act.about],
        "steps": [
            [
                step.name,
                int(step.began_s * 1e6),
                None if step.outcome == RUNNING else int(step.seconds * 1e6),
                step.outcome,
                step.parent,
                step.subjects,
                step.notes,
            ]
            for step in steps
        ],
    }
    if act.left_out or cut:
        document["left_out"] = act.left_out + cut
    return json.dumps(document, separators=(",", ":")).encode()
