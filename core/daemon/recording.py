"""Switches the recording of traces on and off while the daemon runs, for ``crinoid trace``; docs/trace.md.

A trace begins with what the node is like: the slots, what they can, records and ledger. It ends when it is told to, or
after its time, or when it has taken its share of the disk, with what the lists would tell then.
"""

import asyncio
import base64
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid import __version__
from crinoid.core.api.errors import ConfigurationError, CrinoidError, FailedPrecondition
from crinoid.core.api.linux import capabilities, lsm, rights
from crinoid.core.config.loader import Loaded
from crinoid.core.config.models import Config
from crinoid.core.daemon.composition import Composition
from crinoid.core.daemon.instruments import DaemonInstruments
from crinoid.core.daemon.recorder import SMALL_BYTES, Recorder
from crinoid.core.daemon.redaction import Secrets, TraceRedaction, learn_environment, learn_files, redact_table
from crinoid.core.daemon.trace_file import DIRECTORY, FORMAT, KEPT, SUFFIX, list_traces
from crinoid.core.lifecycle.containers.builder import PROCESS_FILE
from crinoid.core.slots import values
from crinoid.core.slots.calls import Slot
from crinoid.core.slots.network import NetworkSlot
from crinoid.core.slots.roles import ROLES
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.selection import check
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state import bodies
from crinoid.core.state.content import ContentStore
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
Json = dict[str, Any]
MAX_SECONDS, MAX_BYTES = 24 * 3600, 4 << 30
_KEPT_TABLES = ("pods", "images", "deadlines")


@dataclass(frozen=True, slots=True)
class _Recording:
    recorder: Recorder
    timer: asyncio.TimerHandle
    images: frozenset[str]
    """The images that the head tells of."""


class Recordings:
    """One recording at a time. Belongs to the event loop's thread."""

    def __init__(
        self, in_force: Callable[[], Loaded], passage: Path, node: Composition, instruments: DaemonInstruments
    ) -> None:
        """``in_force`` returns the configuration, as reloads change it; ``passage``: where pods and containers lie."""
        self._in_force = in_force
        self._passage = passage
        self._node = node
        self._instruments = instruments
        self._current: _Recording | None = None
        self._is_starting = False
        self._last = 0
        self._ending: set[asyncio.Task[object]] = set()

    async def command(self, line: str) -> str:
        """Do what ``crinoid trace`` asks: ``start SECONDS BYTES``, ``stop``, ``status``; the answer is JSON.

        Raises ConfigurationError, FailedPrecondition.
        """
        match line.split():
            case ["start", seconds, size] if seconds.isdecimal() and size.isdecimal():
                return json.dumps(await self._start(int(seconds), int(size)))
            case ["stop"]:
                return json.dumps(await self.stop("it was told to"))
            case ["status"]:
                return json.dumps(self._describe(self._current))
        raise ConfigurationError(f"trace {line!r} is none of start SECONDS BYTES, stop, status")

    async def stop(self, why: str) -> Json:
        """End the recording, if there is one; return what ``status`` tells of it."""
        recording, self._current = self._current, None
        if recording is None:
            return self._describe(None)
        self._instruments.tape = None
        recording.timer.cancel()
        recorder, store = recording.recorder, self._node.store
        self._last = recorder.last
        images = [json.loads(bodies.dump(one)) for one in store.images if one.id not in recording.images]
        blobs = await asyncio.to_thread(_read_blobs, self._in_force().config.root, recorder.small)
        await recorder.end({"final": summarize(store), "why": why, "images": images, "blobs": blobs})
        told = {**self._describe(recording), "recording": False, "why": why}
        LOG.info("the trace %s has ended, as %s: %d calls", recorder.path, why, recorder.events)
        return told

    async def _start(self, seconds: int, size: int) -> Json:
        if self._current is not None or self._is_starting:
            raise FailedPrecondition("a trace is being recorded: crinoid trace stop ends it")
        if not 0 < seconds <= MAX_SECONDS or not 0 < size <= MAX_BYTES:
            raise ConfigurationError(f"a trace takes 1 to {MAX_SECONDS} s and 1 to {MAX_BYTES} bytes")
        self._is_starting = True
        try:
            await self._begin(seconds, size)
        except OSError as error:
            raise FailedPrecondition(f"no trace can be written: {error}") from error
        finally:
            self._is_starting = False
        return self._describe(self._current)

    async def _begin(self, seconds: int, size: int) -> None:
        loaded = self._in_force()
        path = await asyncio.to_thread(_make_room, loaded.config.root)
        secrets = await asyncio.to_thread(_learn, loaded)
        slots = [await _describe_slot(slot) for slot in self._node.slots.all()]
        processes = await asyncio.to_thread(_read_processes, [one.handle.bundle for one in self._node.store.containers])
        loop = asyncio.get_running_loop()
        recorder = Recorder(path, size, TraceRedaction(secrets), lambda: self._stop_soon("it is full"), self._last)
        timer = loop.call_later(seconds, self._stop_soon, f"{seconds} s are over")
        # From here on without an await: the state is that at which the first event begins.
        state = {**describe_state(self._node.store), "processes": processes}
        recorder.write(
            {
                "crinoid trace": FORMAT,
                "version": __version__,
                "at_ns": time.time_ns(),
                "root": str(loaded.config.root),
                "run": str(loaded.config.run),
                "passage": str(self._passage),
                "config": _describe_config(loaded.config),
                "host": _describe_host(),
                "slots": slots,
                "state": state,
            }
        )
        self._current = _Recording(recorder, timer, frozenset(one.id for one in self._node.store.images))
        self._instruments.tape = recorder
        LOG.info("a trace is recorded to %s, for %d s and %d bytes at most", path, seconds, size)

    def _stop_soon(self, why: str) -> None:
        self._ending.add(task := asyncio.create_task(self.stop(why), name="end of a trace"))
        task.add_done_callback(self._ending.discard)

    def _describe(self, recording: _Recording | None) -> Json:
        if recording is None:
            return {"recording": False, "traces": [str(path) for path in list_traces(self._in_force().config.root)]}
        recorder = recording.recorder
        fault = {"fault": recorder.fault} if recorder.fault else {}
        return {
            "recording": True,
            "path": str(recorder.path),
            "calls": recorder.events,
            "lost": recorder.lost,
            "bytes": recorder.size_bytes,
            **fault,
        }


def describe_state(store: Store) -> Json:
    """Return records, ledger and settings as they are."""
    state: Json = {
        table.name: [json.loads(bodies.dump(record)) for record in table]
        for table in (store.pods, store.containers, store.images)
    }
    state["ledger"] = [
        {"owner": entry.owner, "kind": entry.kind, "key": entry.key, "data": dict(entry.data)}
        for entry in reversed(store.ledger.entries())
    ]
    cidrs = store.setting("pod_cidrs")
    return state | {"settings": {} if cidrs is None else {"pod_cidrs": cidrs}}


def summarize(store: Store) -> Json:
    """Return what lists tell of pods, containers and images, by id."""
    return {
        "pods": {
            one.id: {"name": f"{one.config.metadata.namespace}/{one.config.metadata.name}", "state": one.state.value}
            for one in store.pods
        },
        "containers": {
            one.id: {
                "name": one.config.metadata.name,
                "pod": one.pod_id,
                "state": one.state.value,
                "exit_code": one.exit_code,
                "reason": one.reason,
            }
            for one in store.containers
        },
        "images": {one.id: {"tags": [*one.tags], "digests": [*one.digests]} for one in store.images},
    }


def _describe_config(config: Config) -> Json:
    """Return what the services go by; options of drivers are theirs, and may be secret."""
    table = config.model_dump(mode="json", exclude_defaults=True)
    return {name: table[name] for name in _KEPT_TABLES if name in table} | {
        name: {key: {**slot, "options": {}} for key, slot in table[name].items()}
        for name in ("runtimes", "networks", "snapshotters", "registries", "extensions")
        if name in table
    }


def _describe_host() -> Json:
    """Return what specifications of containers are made to fit."""
    return {
        "effective": sorted(capabilities.effective()),
        "last_capability": capabilities.last(),
        "apparmor": lsm.has_apparmor(),
        "selinux": lsm.has_selinux(),
    }


async def _describe_slot(slot: Slot) -> Json:
    """Return what a slot is, and what its driver says of itself."""
    specification = ROLES[slot.role].specification
    told: Json = {}
    with contextlib.suppress(CrinoidError):
        if isinstance(slot, RuntimeSlot):
            told["traits"] = values.dump_answer(specification, "traits", slot.traits())
            told["probe"] = values.dump_answer(specification, "probe", await slot.probe())
        elif isinstance(slot, NetworkSlot | SnapshotterSlot):
            told["features"] = values.dump_answer(specification, "features", slot.features())
    return {
        "role": slot.role,
        "name": slot.name,
        "driver": slot.driver,
        "distribution": slot.installed.distribution,
        "version": slot.installed.version,
        "implements": sorted(hook for hook in ROLES[slot.role].hooks if slot.implements(hook)),
        "config": slot.config.model_dump(mode="json") | {"options": {}},
        **told,
    }


def _learn(loaded: Loaded) -> Secrets:
    """Learn what is secret of the node: as for a report."""
    secrets = Secrets()
    learn_environment(secrets, os.environ)
    for slot in check(loaded.config, loaded.origins):
        learn_files(secrets, getattr(slot.options, "docker_configs", ()), getattr(slot.options, "config_paths", ()))
        redact_table(secrets, slot.options.model_dump(mode="json", exclude_none=True))
    return secrets


def _make_room(root: Path) -> Path:
    """Return the path of a new trace; the oldest go."""
    rights.make_directories(root / DIRECTORY)
    for path in list_traces(root)[: 1 - KEPT or None]:
        path.unlink(missing_ok=True)
    return root / DIRECTORY / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{time.time_ns() % 10**9:09d}{SUFFIX}"


def _read_processes(bundles: Iterable[Path]) -> Json:
    """Return what execs in each container go by."""
    found = {}
    for bundle in bundles:
        with contextlib.suppress(OSError, ValueError):
            found[bundle.name] = json.loads((bundle / PROCESS_FILE).read_text())
    return found


def _read_blobs(root: Path, digests: Iterable[str]) -> dict[str, str]:
    content, found = ContentStore(root / "content"), {}
    for digest in digests:
        with contextlib.suppress(CrinoidError, OSError):
            found[digest] = base64.b64encode(content.read(digest, SMALL_BYTES)).decode()
    return found
