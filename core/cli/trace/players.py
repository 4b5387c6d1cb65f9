"""Drivers that answer from a trace: each hook is matched by role, slot, hook and arguments, and has its turn.

What only asks (``READS``) is answered at once, from the trace or from what the node was like. Everything else has its
turn: its begin is awaited, and its answer given, in the trace's order among all other begins and ends (``schedule``).
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from typing import Any

from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import DriverError
from crinoid.core.api.hooks.conformance import hooks_of
from crinoid.core.api.host import Host
from crinoid.core.api.testing import noops
from crinoid.core.api.values.network import NetworkStatus
from crinoid.core.api.values.runtime import ContainerStatus, RuntimeState
from crinoid.core.cli.trace.model import Call, Trace, subject_of
from crinoid.core.cli.trace.places import Places
from crinoid.core.cli.trace.schedule import Schedule
from crinoid.core.daemon.redaction import Secrets, TraceRedaction
from crinoid.core.slots import values
from crinoid.core.slots.relay import relay
from crinoid.core.slots.roles import ROLES
from crinoid.core.state.records import ContainerState
from crinoid.core.state.store import Store

Json = dict[str, Any]
current: ContextVar[Call | None] = ContextVar("RPC that is replayed", default=None)
READS = frozenset(
    {"features", "traits", "probe", "status", "has_layer", "list_layers", "list_snapshots", "list_unfinished", "state"}
    | {"mounts", "usage", "layer_usage", "total_usage", "stats", "stats_many", "pod_stats", "check", "check_checkpoint"}
    | {"list_referrers", "preview", "verify_layer"}
)
"""Hooks that change nothing: how often they are asked is nobody's concern, as the kernel remembers much of it."""
_OF_LAYERS = frozenset({"prepare_layer", "write_layer", "bring_layer", "commit_layer", "discard_layer", "open_blob"})
_VIEW = "view-"
"""How the keys of snapshots begin that are made to look at a layer while it is unpacked."""
_LAYER = re.compile(r"layer|rootfs\.diff")
_WITHOUT_END = frozenset({"wait", "wait_pod"})
_STATES = {
    ContainerState.CREATED: ContainerStatus.CREATED,
    ContainerState.RUNNING: ContainerStatus.RUNNING,
    ContainerState.EXITED: ContainerStatus.STOPPED,
    ContainerState.UNKNOWN: ContainerStatus.ABSENT,
}
_NOOPS: Mapping[str, type[Any]] = {
    "runtime": noops.NoopRuntime,
    "network": noops.NoopNetwork,
    "snapshotter": noops.NoopSnapshotter,
    "registry": noops.NoopRegistry,
    "extension": noops.NoopExtension,
}


def has_turn(call: Call, blobs: Mapping[str, bytes]) -> bool:
    """Return whether a hook's call has its turn: what only asks has none, nor what makes layers of blobs that a trace
    does not hold, unless it failed."""
    hook, subject = call.key[2], subject_of(call.arguments)
    if hook in READS:
        return False
    is_of_layer = hook in _OF_LAYERS or subject.startswith(_VIEW)
    if not is_of_layer or call.failed:
        return True
    kind = call.arguments.get("request", {}).get("blob", {}).get("media_type", "")
    return hook == "open_blob" and subject in blobs and _LAYER.search(kind) is None


class Players:
    """The drivers of all slots."""

    def __init__(self, trace: Trace, places: Places, schedule: Schedule) -> None:
        self._trace = trace
        self._places = places
        self._schedule = schedule
        self.blobs = find_blobs(trace)
        self._redaction = TraceRedaction(Secrets())
        self.store: Store | None = None
        self.is_live = False
        """Whether what is asked counts: not while the node is made as it was, nor while it is taken down."""
        self._left: dict[tuple[str, str, str], list[Call]] = {}
        for call in trace.hooks:
            self._left.setdefault(call.key, []).append(call)
        self._last: dict[tuple[str, str, str], dict[str, Call]] = {}
        failed = [call for call in trace.hooks if call.key[2] in _OF_LAYERS and call.failed]
        self._failed_layers = {str(call.arguments.get("chain_id") or call.arguments.get("key")) for call in failed}

    def driver(self, slot: Json, host: Host) -> object:
        """Return the driver of a slot of the trace's head."""
        role = slot["role"]
        specification = ROLES[role].specification
        noop = _NOOPS[role](NoOptions(), host)

        def ask(hook: str, arguments: dict[str, object]) -> Any:
            if (hook in ("features", "traits") and role != "runtime") or hook == "traits":
                answer = slot.get(hook)
                return values.load_answer(specification, hook, self._places.here(answer))
            return self._ask(slot, hook, arguments, noop)

        return relay(specification, set(slot["implements"]) & set(hooks_of(specification)), ask)

    async def _ask(self, slot: Json, hook: str, arguments: dict[str, object], noop: object) -> Any:
        """Answer a hook that is a coroutine."""
        role = slot["role"]
        key = (role, slot["name"], hook)
        asked = self._places.there(values.dump_arguments(ROLES[role].specification, hook, arguments))
        asked = self._redaction.redact(asked)  # as the trace's arguments were
        if hook in READS:
            return await self._read(key, asked, slot, arguments, noop)
        if not self.is_live and hook not in _WITHOUT_END:
            return await self._instead(role, hook, arguments, noop)
        call = self._match(key, asked)
        if call is not None and has_turn(call, self.blobs):
            await self._schedule.ask(call)
            return await self._end(call, hook)
        if call is not None and hook == "open_blob":
            return _silence()
        if call is None and hook in _WITHOUT_END:
            await asyncio.Event().wait()
        rpc = current.get()
        is_known = rpc is None or rpc.end is not None  # else the trace ends before the RPC does
        if call is None and self.is_live and is_known:
            about = subject_of(asked)[:24] or "the node"
            brief = _brief(asked)
            # What came after a trace that was cut off, nobody knows.
            tell = self._schedule.differ if self._trace.tail else self._schedule.note
            tell(f'{role} "{slot["name"]}" {hook} of {about} is asked here, not in the trace{brief}')
        return await self._instead(role, hook, arguments, noop)

    async def _end(self, call: Call, hook: str) -> Any:
        """Give the trace's answer, or raise its error; what was cancelled then waits to be cancelled."""
        role = call.key[0]
        if call.end is None or call.end.get("cancelled"):
            await asyncio.Event().wait()
        assert call.end is not None
        if (error := call.end.get("error")) is not None:
            raise values.load_error(self._places.here(error))
        return values.load_answer(
            ROLES[role].specification,
            hook,
            self._places.here(call.end.get("answer")),
            lambda kind: self._live(call, kind),
        )

    def _live(self, call: Call, kind: type) -> object:
        digest = subject_of(call.arguments)
        if call.key[2] == "open_blob" and digest in self.blobs:
            offset = int(call.arguments.get("request", {}).get("offset", 0))
            return _stream(self.blobs[digest][offset:])
        raise DriverError(f"a trace holds nothing of a {getattr(kind, '__name__', kind)}")

    def _match(self, key: tuple[str, str, str], asked: Json) -> Call | None:
        """Find the call of the trace that this one is: the same arguments, else the same subject."""
        left = self._left.get(key, [])
        wanted = steady(asked)
        found = next((call for call in left if steady(call.arguments) == wanted), None)
        if found is None:
            subject = subject_of(asked)
            same = [call for call in left if subject_of(call.arguments) == subject]
            found = min(same, key=lambda call: len(differences(call.arguments, asked)), default=None)
            if found is not None and self.is_live:
                told = differences(found.arguments, asked)
                self._schedule.note(f"{found} is asked with other arguments: {'; '.join(told[:3])}")
        if found is not None:
            left.remove(found)
        return found

    async def _read(
        self, key: tuple[str, str, str], asked: Json, slot: Json, arguments: Mapping[str, Any], noop: object
    ) -> Any:
        """Answer what only asks: as the trace does, the last time for good; else by what is known of the node."""
        role, _, hook = key
        if hook == "has_layer" and asked.get("chain_id") not in self._failed_layers:
            return True  # whatever was fetched then: the layers' contents are not in the trace
        if self.is_live and hook not in ("list_layers", "list_snapshots", "list_unfinished"):
            text = repr(sorted(asked.items(), key=str))
            known = self._last.setdefault(key, {})
            left = self._left.get(key, [])
            same = next((call for call in left if call.arguments == asked and call.end), None)
            if same is not None:
                left.remove(same)
                known[text] = same
            if (call := known.get(text)) is not None and call.end is not None and not call.end.get("cancelled"):
                return await self._end(call, hook)
        if hook == "probe" and role == "runtime" and slot.get("probe") is not None:
            return values.load_answer(ROLES[role].specification, hook, slot["probe"])
        if hook == "state" and self.store is not None:
            record = self.store.containers.get(arguments["handle"].container_id)
            if record is None:
                return RuntimeState(ContainerStatus.ABSENT)
            return RuntimeState(_STATES[record.state], record.pid)
        if hook == "list_layers":
            return tuple((one, None) for one in self._chain_ids())
        if hook == "list_snapshots" and self.store is not None:
            return tuple(entry.key for entry in self.store.ledger.entries() if entry.kind == "snapshot")
        if hook == "status" and role == "network":
            return NetworkStatus(True)
        if hook == "stats_many":
            return (None,) * len(arguments["handles"])
        return await self._instead(role, hook, arguments, noop)

    def _chain_ids(self) -> list[str]:
        images = () if self.store is None else self.store.images
        return [chain_id for image in images for chain_id in image.chain_ids]

    async def _instead(self, role: str, hook: str, arguments: Mapping[str, Any], noop: object) -> Any:
        """Do as little as the hook allows."""
        method = getattr(noop, hook, None)
        if method is not None:
            return await method(**arguments)
        answer = values.types_of(ROLES[role].specification, hook).answer
        if answer is bool:
            return False
        if getattr(answer, "__origin__", None) is tuple:
            return ()
        return None


def find_blobs(trace: Trace) -> Mapping[str, bytes]:
    """Return the blobs that a trace holds: small ones that were fetched, and the configurations of its images."""
    found = {digest: base64.b64decode(text) for digest, text in (trace.tail.get("blobs") or {}).items()}
    images = (*trace.head["state"]["images"], *(trace.tail.get("images") or ()))
    for image in images:
        content = str(image.get("config", "")).encode()
        if (digest := f"sha256:{hashlib.sha256(content).hexdigest()}") == image.get("id"):
            found.setdefault(digest, content)
    return found


def steady(value: Any) -> Any:
    """Return JSON without what is different each time: times, process ids."""
    if isinstance(value, Mapping):
        kept = {key: one for key, one in value.items() if not key.endswith("_ns") and key not in ("pid", "monitor_pid")}
        return {key: steady(one) for key, one in kept.items()}
    return [steady(one) for one in value] if isinstance(value, list | tuple) else value


def differences(then: Any, now: Any, place: str = "") -> list[str]:
    """Name the places at which two JSON values differ, but for what is different each time."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        names = sorted({*then, *now} - {"pid", "monitor_pid"})
        return [
            one
            for name in names
            if not name.endswith("_ns")
            for one in differences(then.get(name), now.get(name), f"{place}.{name}".lstrip("."))
        ]
    if isinstance(then, list | tuple) and isinstance(now, list | tuple) and len(then) == len(now):
        pairs = enumerate(zip(then, now, strict=True))
        return [one for number, (a, b) in pairs for one in differences(a, b, f"{place}[{number}]")]
    return [] if then == now else [f"{place} was {_short(then)} and is {_short(now)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _brief(asked: Mapping[str, Any]) -> str:
    simple = [
        f"{name} {value}" for name, value in asked.items() if isinstance(value, int | str) and len(str(value)) < 40
    ]
    return f" ({', '.join(simple)})" if simple else ""


async def _stream(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _silence() -> AsyncIterator[bytes]:
    """Be the stream of a blob that the trace does not hold: nothing comes, until the pull is given up."""
    await asyncio.Event().wait()
    yield b""
