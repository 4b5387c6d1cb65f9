"""The parts of a report, each one text. A part that can't be had says why, and the others come all the same."""

import asyncio
import importlib.metadata
import json
import os
import platform
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid import __version__
from crinoid.core.api.errors import CrinoidError
from crinoid.core.cli.check.examination import examine as examine_host
from crinoid.core.config.loader import ConfigPaths, Loaded, examine
from crinoid.core.config.origins import name_key
from crinoid.core.cri.client import Client
from crinoid.core.daemon.redaction import (
    Secrets,
    learn_environment,
    learn_files,
    learn_records,
    redact_table,
)
from crinoid.core.daemon.trace_file import list_traces
from crinoid.core.slots.selection import ValidSlot
from crinoid.core.slots.selection import examine as examine_slots
from crinoid.core.state.timelines import DIRECTORY, read_acts
from crinoid.core.state.transfer import copied

_LIMIT_S = 10.0
_MOST_ACTS = 500
_MOST_TRACE_BYTES = 256 << 20
_JOURNAL = ("journalctl", "--unit", "crinoid.service", "--no-pager", "--output", "short-iso")
_OURS = "crinoid"
_README = """\
What this archive says of a node, written by `crinoid report`:

  check.json          what `crinoid check` found
  configuration.json  every value in effect, and the file and line that it comes from
  versions.json       crinoid, Python, plugins and libraries
  status.json         what the daemon says of itself, with what is deferred
  objects.json        pods, containers and images: ids, names, states, times
  ledger.json         resources of the host that are on the ledger, and records in quarantine
  host.json           kernel, distribution, memory, disks
  timelines.jsonl     the last acts, as `crinoid explain` tells of them
  log.txt             the end of the daemon's log
  trace/              the last trace of `crinoid trace record`, if there is one: what `crinoid trace replay` takes

Not in it: environment, annotations, labels, commands and logs of pods. What is secret by its place or looks so is
"(redacted)", also within other texts.
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a report is about: the configuration, its drivers, and how much of which log is wanted."""

    loaded: Loaded
    problems: tuple[str, ...]
    slots: tuple[ValidSlot, ...]
    log: Path | None
    lines: int


async def gather(paths: ConfigPaths, log: Path | None, lines: int) -> Mapping[str, str]:
    """Return every part's text by its file's name, without secrets."""
    secrets = Secrets()
    learn_environment(secrets, os.environ)
    loaded, problems = examine(paths)
    slots, of_slots = examine_slots(loaded.config, loaded.origins)
    subject = Subject(loaded, tuple(map(str, [*problems, *of_slots])), slots, log, lines)
    files = _learn_files(secrets, slots)
    configuration = _show_configuration(subject, secrets, files)  # before all others: it learns
    parts: dict[str, Callable[[], Awaitable[object]]] = {
        "check.json": lambda: _examine(paths),
        "versions.json": lambda: _list_versions(slots),
        "status.json": lambda: _ask_status(loaded),
        "objects.json": lambda: _list_objects(loaded),
        "ledger.json": lambda: asyncio.to_thread(_read_ledger, loaded.config.root / "state.db", secrets),
        "host.json": lambda: asyncio.to_thread(_describe_host, loaded),
        "timelines.jsonl": lambda: asyncio.to_thread(_read_timelines, loaded.config.root / DIRECTORY),
        "log.txt": lambda: _read_log(subject),
    }
    made: dict[str, object] = {"README.txt": _README, "configuration.json": configuration}
    for name, make in parts.items():
        try:
            made[name] = await make()
        except Exception as error:  # noqa: BLE001  # one part's fault must not cost the others
            made[name] = {"not available": f"{type(error).__name__}: {error}"}
    return {name: secrets.scrub(_to_text(part)) for name, part in made.items()}


def find_trace(paths: ConfigPaths) -> Path | None:
    """Return the last trace that was recorded, unless it is too large to be sent to anybody."""
    loaded, _ = examine(paths)
    found = [path for path in list_traces(loaded.config.root) if path.stat().st_size <= _MOST_TRACE_BYTES]
    return found[-1] if found else None


def _to_text(part: object) -> str:
    return part if isinstance(part, str) else json.dumps(part, indent=2, ensure_ascii=False, default=str) + "\n"


def _learn_files(secrets: Secrets, slots: Iterable[ValidSlot]) -> list[str]:
    """Learn what the image sources' own files hold; an option that names such files is known by its name."""
    found: list[str] = []
    for slot in slots:
        docker: Iterable[Path] = getattr(slot.options, "docker_configs", ())
        directories: Iterable[Path] = getattr(slot.options, "config_paths", ())
        found += learn_files(secrets, docker, directories)
    return found


def _show_configuration(subject: Subject, secrets: Secrets, files: list[str]) -> object:
    """Return the effective values with their origins; options of drivers that are not crinoid's have no texts."""
    table = subject.loaded.config.model_dump(mode="json")
    for slot in subject.slots:
        place: dict[str, Any] = table
        for key in slot.selection.key:
            place = place[str(key)]
        options = slot.options.model_dump(mode="json", exclude_none=True)
        is_ours = slot.driver.installed.distribution == _OURS
        place["options"] = redact_table(secrets, options, whole=not is_ours)
    broken = not subject.slots
    for name in ("runtimes", "networks", "snapshotters", "registries", "extensions"):
        for slot_table in table.get(name, {}).values():
            if broken or isinstance(slot_table, dict):
                slot_table["options"] = redact_table(secrets, slot_table.get("options", {}), whole=broken)
    pods = table.get("pods", {})
    pods["default_env"] = redact_table(secrets, pods.get("default_env", {}), whole=True)
    shown = redact_table(secrets, table)
    return {
        "files": [str(file) for file in subject.loaded.files],
        "problems": list(subject.problems),
        "values": shown,
        "origins": {name_key(key): str(origin) for key, origin in subject.loaded.origins.by_key.items()},
        "files that drivers read, and this report does not show": files,
    }


async def _examine(paths: ConfigPaths) -> object:
    return [finding.as_json() for finding in await examine_host(paths)]


async def _list_versions(slots: Iterable[ValidSlot]) -> object:
    requirements = importlib.metadata.requires(_OURS) or []
    names = sorted({_name_of(line) for line in requirements if "extra" not in line} | {_OURS})
    return {
        "crinoid": __version__,
        "python": platform.python_version(),
        "drivers": [
            {"role": slot.selection.role, "slot": slot.selection.name, "driver": slot.driver.installed.title}
            for slot in slots
        ],
        "libraries": {name: _version_of(name) for name in names},
    }


def _name_of(requirement: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else " " for letter in requirement).split()[0]


def _version_of(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


async def _ask_status(loaded: Loaded) -> object:
    async with Client(f"unix://{loaded.config.server.socket}") as client:
        answer = await client.call("Status", {"verbose": True}, _LIMIT_S)
        version = await client.call("Version", {}, _LIMIT_S)
    info = {name: _unfold(text) for name, text in answer.pop("info", {}).items()}
    return {"version": version, **answer, "info": info}


async def _list_objects(loaded: Loaded) -> object:
    async with Client(f"unix://{loaded.config.server.socket}") as client:
        pods = (await client.call("ListPodSandbox", {}, _LIMIT_S))["items"]
        containers = (await client.call("ListContainers", {}, _LIMIT_S))["containers"]
        images = (await client.call("ListImages", {}, _LIMIT_S))["images"]
    return {
        "pods": [_pick(one, "id", "metadata", "state", "created_at", "runtime_handler") for one in pods],
        "containers": [
            _pick(one, "id", "pod_sandbox_id", "metadata", "state", "created_at", "image_id") for one in containers
        ],
        "images": [_pick(one, "id", "repo_tags", "size", "pinned") for one in images],
    }


def _pick(one: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: one.get(name) for name in names}


def _unfold(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_ledger(path: Path, secrets: Secrets) -> object:
    with copied(path) as connection:
        for table in ("pods", "containers", "images", "settings", "ledger", "quarantine"):
            column = "data" if table == "ledger" else "body"
            learn_records(secrets, (row[0] for row in _rows(connection, f"SELECT {column} FROM {table}")))  # noqa: S608
        entries = _rows(connection, "SELECT id, owner, kind, key FROM ledger ORDER BY id")
        quarantine = _rows(connection, "SELECT source, id, error, at_ns FROM quarantine")
    return {
        "ledger": [dict(zip(("id", "owner", "kind", "key"), row, strict=True)) for row in entries],
        "quarantine": [dict(zip(("table", "id", "error", "at_ns"), row, strict=True)) for row in quarantine],
    }


def _rows(connection: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:  # an empty state, or one of an older schema, has no such table
        return []


def _describe_host(loaded: Loaded) -> object:
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    config = loaded.config
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "distribution": release.get("PRETTY_NAME", "unknown"),
        "cpus": os.cpu_count(),
        "memory": {name: memory[name].strip() for name in ("MemTotal", "MemAvailable", "SwapTotal") if name in memory},
        "pressure": {name: _read(f"/proc/pressure/{name}") for name in ("cpu", "io", "memory")},
        "load": _read("/proc/loadavg"),
        "uptime_s": _read("/proc/uptime").split()[0],
        "security modules": _read("/sys/kernel/security/lsm"),
        "cgroups": [line.split()[2] + " " + line.split()[1] for line in _mounts() if "cgroup" in line.split()[2]],
        "disks": {str(path): _measure(path) for path in (config.root, config.run)},
        "user": os.geteuid(),
    }


def _mounts() -> list[str]:
    return Path("/proc/self/mounts").read_text(errors="replace").splitlines()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError as error:
        return f"({error.strerror})"


def _measure(path: Path) -> object:
    there = next(place for place in (path, *path.parents) if place.exists())
    files = os.statvfs(there)
    usage = shutil.disk_usage(there)
    device = there.stat().st_dev
    return {
        "bytes": usage.total,
        "free bytes": usage.free,
        "inodes": files.f_files,
        "free inodes": files.f_favail,
        "device": f"{os.major(device)}:{os.minor(device)}",
    }


def _read_timelines(directory: Path) -> str:
    return "".join(f"{line}\n" for line in [*read_acts(directory)][-_MOST_ACTS:]) if directory.is_dir() else ""


async def _read_log(subject: Subject) -> object:
    if subject.log is not None:
        return await asyncio.to_thread(_tail, subject.log, subject.lines)
    from crinoid.core.api.linux import process

    if shutil.which(_JOURNAL[0]) is None:
        return "no log: systemd's journal is not here; name the file of the daemon's log with --log\n"
    try:
        done = await process.run([*_JOURNAL, "--lines", str(subject.lines)], timeout_s=_LIMIT_S)
    except CrinoidError as error:
        return f"no log: {error.message}; name a file with --log\n"
    return done.stdout.decode(errors="replace")


def _tail(path: Path, lines: int) -> str:
    """Return the last lines of a file, of at most 512 bytes each on average."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - lines * 512))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:]) + "\n"
