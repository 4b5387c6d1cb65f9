"""Replays a trace: the node's services run for real, over a scratch directory, a machine that is none and drivers that
answer from the trace; then says where that differs from what was recorded.

Read downwards: ``replay`` makes the node as the trace's head tells, goes through the moments, and compares.
"""

import asyncio
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crinoid import __version__
from crinoid.core.api.host import Host
from crinoid.core.api.linux import rights
from crinoid.core.cli.trace import machine
from crinoid.core.cli.trace.model import Call, Edge, Trace, subject_of
from crinoid.core.cli.trace.places import Places
from crinoid.core.cli.trace.players import Players, current, has_turn
from crinoid.core.cli.trace.schedule import PATIENCE_S, Schedule
from crinoid.core.config.models import Config, ExtensionSlotConfig, RuntimeSlotConfig, SlotConfig
from crinoid.core.cri.local import LocalServer
from crinoid.core.daemon.composition import Composition, compose
from crinoid.core.daemon.recording import summarize
from crinoid.core.lifecycle.containers.builder import PROCESS_FILE
from crinoid.core.lifecycle.resources.resources import CONTENTS, DIRECTORY, NAMESPACES
from crinoid.core.slots.binding import Slots, adopt, assemble
from crinoid.core.slots.calls import Binding
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.state import bodies
from crinoid.core.state.content import ContentStore
from crinoid.core.state.store import Store

Json = dict[str, Any]
LOG = logging.getLogger(__name__)
NOT_REPLAYED = frozenset(
    {"Exec", "Attach", "PortForward", "CheckpointContainer", "CheckpointPod", "RestorePod", "LoadImage", "AdoptImages"}
    | {"ProvideBlob", "ReadTimeline", "DryRunPod", "ImageDiskUsage", "UpdateRuntimeConfig"}
)
"""RPCs that need more than a trace holds: streams, processes' states, archives."""


@dataclass(slots=True)
class Outcome:
    """What came of a replay. ``codes``: each RPC with its status then and now, and the message now."""

    codes: list[tuple[str, str, str, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    state: Json = field(default_factory=dict)

    def as_json(self) -> Json:
        """Return it for programs."""
        codes = [dict(zip(("rpc", "then", "now", "message"), one, strict=True)) for one in self.codes]
        return {
            "reproduced": not self.differences,
            "rpcs": codes,
            "differences": self.differences,
            "notes": self.notes,
            "left_out": self.left_out,
            "final": self.state,
        }


async def replay(trace: Trace, patience_s: float = PATIENCE_S) -> Outcome:
    """Replay a trace in a process that is no daemon: the calls that change a host do nothing from here on.

    ``patience_s``: how much longer than in the trace something may take before it counts as absent.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crinoid-replay-")))
        places, schedule, outcome = Places(scratch, trace.head), Schedule(patience_s), Outcome()
        players = Players(trace, places, schedule)
        host = stack.enter_context(machine.installed(_Ids(trace), _users(trace), trace.head["host"]))
        node = _make_node(trace, places, players, host)
        try:
            players.store = node.store
            await node.recover()
            _stand_in_for_blobs(trace, ContentStore(places.root / "content"), players.blobs)
            players.is_live = True
            server = LocalServer(node)

            async def begin(call: Call) -> None:
                await _run(call, server, places, schedule, outcome)

            await schedule.run(_kept(trace, outcome), begin, lambda call: has_turn(call, players.blobs))
            await asyncio.sleep(0)
            outcome.state = places.there(summarize(node.store))
        finally:
            players.is_live = False
            await schedule.finish()
            await node.close()
    _compare_states(trace.tail.get("final"), outcome.state, schedule)
    outcome.differences, outcome.notes = schedule.found, schedule.notes
    return outcome


async def _run(call: Call, server: LocalServer, places: Places, schedule: Schedule, outcome: Outcome) -> None:
    """Call an RPC as it was called then, and compare what comes of it."""
    current.set(call)
    answer = await server.call(call.rpc, places.of_request(call.begin.get("request") or {}))
    if answer is None:
        outcome.left_out.append(f"{call}: it is not served here")
        return
    message = str(places.there(answer.message))
    outcome.codes.append((str(call), call.code, answer.code, message))
    if call.end is None:
        return
    if answer.code != call.code:
        then = f"{call.code}: {call.end.get('message', '')}".removesuffix(": ")
        now = f"{answer.code}: {message}".removesuffix(": ")
        schedule.differ(f"{call} was {then}\n    and is {now}")
    elif call.code != "OK" and message != call.end.get("message", ""):
        schedule.note(f"{call} says {message!r}, and then said {call.end.get('message', '')!r}")


def _kept(trace: Trace, outcome: Outcome) -> "list[Any]":
    """Return the moments without RPCs that can't be replayed, and without the hooks that these called."""
    dropped = {call.number for call in trace.rpcs if call.rpc in NOT_REPLAYED}
    unread = {call.number for call in trace.calls.values() if "unreadable" in call.begin}
    outcome.left_out += [str(call) for call in trace.rpcs if call.number in dropped]
    return [
        moment
        for moment in trace.moments
        if moment.call.number not in dropped | unread
        and moment.call.inside not in dropped
        and not (moment.call.is_early and moment.edge is Edge.BEGIN)
    ]


def _make_node(trace: Trace, places: Places, players: Players, host: machine.FakeMachine) -> Composition:
    """Make the services over the state that the trace begins with."""
    head = trace.head
    config = Config.model_validate({**head["config"], "root": str(places.root), "run": str(places.run)})
    with_state = Store(places.root / "state.db")
    try:
        _restore(head["state"], with_state, places, host)
    finally:
        with_state.close()
    bindings = [_bind(slot, places, players) for slot in head["slots"]]
    slots: Slots = assemble(config, bindings)
    return compose(config, slots, __version__, host)


def _restore(state: Json, store: Store, places: Places, host: machine.FakeMachine) -> None:
    """Write records and ledger as they were, and the files and pins that they name."""
    for kind, table in (("pods", store.pods), ("containers", store.containers), ("images", store.images)):
        for body in state[kind]:
            moved = body if kind == "images" else places.of_request(body)
            table.put(bodies.parse(kind, moved["id"], json.dumps(moved)))
    for entry in state["ledger"]:
        # What a checkpoint is written to may lie anywhere on the node; all else that is removed is below root and run.
        key = places.of_request(entry["key"], "host_path" if entry["kind"] == CONTENTS else "")
        data = places.here(entry["data"])
        for path in {DIRECTORY: [key], NAMESPACES: data.get("paths", [])}.get(entry["kind"], []):
            places.inside(path)
        store.ledger.record(entry["owner"], entry["kind"], key, data)
        if entry["kind"] == "cgroup":
            for path in (*data.get("above", ()), *data.get("made", ())):
                host.make_cgroup(str(path), entry["owner"])
    for name, text in state["settings"].items():
        store.set(name, text)
    for pod in store.pods:
        (places.run / "pods" / pod.id / "ns").mkdir(parents=True, exist_ok=True)
        host.pin({kind: places.inside(path) for kind, path in pod.namespaces.items()})
    for record in store.containers:
        places.inside(record.handle.bundle).mkdir(parents=True, exist_ok=True)
        process = state["processes"].get(record.id)
        if process is not None:
            rights.write_file(record.handle.bundle / PROCESS_FILE, json.dumps(places.here(process)))


def _stand_in_for_blobs(trace: Trace, content: ContentStore, known: Mapping[str, bytes]) -> None:
    """Have the blobs of images stored that a trace does not hold: files of the right length, which nobody reads.

    One that could not be fetched then is to be asked for here, too.
    """
    failed = {subject_of(call.arguments) for call in trace.hooks if call.key[2] == "open_blob" and call.failed}
    for image in (*trace.head["state"]["images"], *(trace.tail.get("images") or ())):
        for layer in image.get("layers", ()):
            if layer["digest"] not in failed:
                path = content.path(layer["digest"])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                os.truncate(path, layer["size"])
    for image in trace.head["state"]["images"]:
        if image["id"] in known:
            content.put(known[image["id"]])


_CONFIGS: Mapping[str, type[SlotConfig]] = {"runtime": RuntimeSlotConfig, "extension": ExtensionSlotConfig}


def _bind(slot: Json, places: Places, players: Players) -> Binding:
    name, role = slot["name"], slot["role"]
    state_dir, run_dir = places.root / "plugins" / role / name, places.run / role / name
    for path in (state_dir, run_dir):
        places.inside(path).mkdir(parents=True, exist_ok=True)
    host = Host(name, state_dir, run_dir, logging.getLogger(f"crinoid.plugins.{role}.{name}"), __version__)
    installed = InstalledDriver(role, slot["driver"], slot["distribution"], slot["version"], "trace")
    config = _CONFIGS.get(role, SlotConfig).model_validate(slot["config"])
    return adopt(players.driver(slot, host), installed, config, host)


class _Ids:
    """Draws the ids that the trace has for the RPC under way, in the place of random ones."""

    def __init__(self, trace: Trace) -> None:
        self._drawn: dict[int, str] = {}
        for call in trace.hooks:
            rpc = trace.calls.get(call.inside)
            if rpc is not None and rpc.rpc in ("RunPodSandbox", "CreateContainer"):
                known = str((rpc.begin.get("request") or {}).get("pod_sandbox_id", ""))
                subject = subject_of(call.arguments)
                if len(subject) == 64 and subject != known:
                    self._drawn.setdefault(rpc.number, subject)
        for rpc in trace.rpcs:
            answer = (rpc.end or {}).get("answer") or {}
            found = answer.get("pod_sandbox_id") if rpc.rpc == "RunPodSandbox" else answer.get("container_id")
            if rpc.rpc in ("RunPodSandbox", "CreateContainer") and found:
                self._drawn[rpc.number] = found

    def token_hex(self, count: int) -> str:
        """Be ``secrets.token_hex``."""
        import secrets

        call = current.get()
        drawn = None if call is None or count != 32 else self._drawn.pop(call.number, None)
        return drawn or secrets.token_hex(count)


def _users(trace: Trace) -> Mapping[str, Json]:
    """Return the users that containers had, by id: a replay has no files of an image that would tell."""
    found = {}
    for call in trace.hooks:
        if call.key[2] == "create":
            request = call.arguments.get("request", {})
            user = request.get("spec", {}).get("process", {}).get("user")
            if isinstance(user, Mapping):
                found[subject_of(call.arguments)] = dict(user)
    return found


def _compare_states(then: Json | None, now: Json, schedule: Schedule) -> None:
    """Compare what lists would tell at the end."""
    if then is None:
        schedule.note("the trace was cut off: it has no final state to compare with")
        return
    for kind in ("pods", "containers", "images"):
        before, after = then.get(kind, {}), now.get(kind, {})
        for one in sorted({*before, *after}):
            if before.get(one) != after.get(one):
                was, is_now = _tell(before.get(one)), _tell(after.get(one))
                schedule.differ(f"{kind.removesuffix('s')} {one[:20]} was {was} at the end, and is {is_now}")


def _tell(one: Mapping[str, Any] | None) -> str:
    return "absent" if one is None else ", ".join(f"{name} {value}" for name, value in one.items())
