"""A trace as it is replayed: its calls, the order of their begins and ends, and what the node was like."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crinoid.core.daemon.trace_file import read_trace

Json = dict[str, Any]


@dataclass(slots=True, eq=False)
class Call:
    """An RPC, or a hook that was called: ``inside`` the RPC of this number, 0 for none.

    ``end`` is what came of it (``None``: the trace ends before it): an answer, an error or a cancellation.
    """

    number: int
    begin: Json
    at_s: float
    end: Json | None = None
    is_early: bool = False

    @property
    def rpc(self) -> str:
        """The RPC's name; empty for a hook."""
        return str(self.begin.get("rpc", ""))

    @property
    def inside(self) -> int:
        """The number of the RPC that a hook was called by."""
        return int(self.begin.get("in", 0))

    @property
    def key(self) -> tuple[str, str, str]:
        """Role, slot and hook."""
        return str(self.begin.get("role")), str(self.begin.get("slot")), str(self.begin.get("hook"))

    @property
    def arguments(self) -> Json:
        """A hook's arguments."""
        return dict(self.begin.get("arguments") or {})

    @property
    def code(self) -> str:
        """An RPC's status."""
        return str((self.end or {}).get("code", ""))

    @property
    def failed(self) -> bool:
        """Whether a hook ended in an error."""
        return "error" in (self.end or {})

    def __str__(self) -> str:
        if self.rpc:
            return f"{self.rpc} (#{self.number})"
        role, slot, hook = self.key
        subject = subject_of(self.arguments)
        return f'{role} "{slot}" {hook}' + (f" of {subject[:24]}" if subject else "") + f" (#{self.number})"


class Edge(enum.Enum):
    """A call's begin or its end."""

    BEGIN = "begin"
    END = "end"


@dataclass(frozen=True, slots=True)
class Moment:
    """A call's begin or end, and when that was after the trace's begin."""

    edge: Edge
    call: Call
    at_s: float


@dataclass(slots=True)
class Trace:
    """All of a trace. ``tail`` is empty where the daemon ended before the recording did."""

    head: Json
    calls: dict[int, Call] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    tail: Json = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """Read a trace. Raises InvalidArgument, OSError."""
        return cls.of(read_trace(path))

    @classmethod
    def of(cls, lines: Iterable[Json]) -> "Trace":
        """Make a trace of its lines."""
        trace: Trace | None = None
        for line in lines:
            if trace is None:
                trace = cls(line)
            elif "n" in line:
                call = Call(int(line["n"]), line, float(line.get("t", 0)), is_early=bool(line.get("early")))
                trace.calls[call.number] = call
                trace.moments.append(Moment(Edge.BEGIN, call, call.at_s))
            elif "end" in line and (ended := trace.calls.get(int(line["end"]))) is not None:
                ended.end = line
                trace.moments.append(Moment(Edge.END, ended, float(line.get("t", 0))))
            elif "final" in line:
                trace.tail = line
        assert trace is not None  # a reader has seen the head
        return trace

    @property
    def rpcs(self) -> list[Call]:
        """The RPCs, in the order of their begins."""
        return [call for call in self.calls.values() if call.rpc]

    @property
    def hooks(self) -> list[Call]:
        """The hook calls, in the order of their begins."""
        return [call for call in self.calls.values() if not call.rpc]


_SUBJECTS = (
    ("handle", "container_id"),
    ("request", "handle", "container_id"),
    ("request", "container", "handle", "container_id"),
    ("container", "container_id"),
    ("pod", "pod_id"),
    ("request", "pod_id"),
    ("key",),
    ("chain_id",),
    ("request", "blob", "digest"),
    ("request", "reference", "repository"),
    ("image_id",),
    ("reference",),
)


def subject_of(arguments: Mapping[str, Any]) -> str:
    """Return what a hook's call is about: the first id that its arguments name."""
    for path in _SUBJECTS:
        place: Any = arguments
        for name in path:
            place = place.get(name) if isinstance(place, Mapping) else None
        if isinstance(place, str) and place:
            return place
    return ""
