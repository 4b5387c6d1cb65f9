"""Puts devices into an OCI specification: the edits of each one, and once those that its whole file asks for.

A later edit of the same variable, device node or mount point replaces the earlier one. Source: the CDI specification,
"OCI Edits".
"""

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported
from crinoid.core.lifecycle.cdi.cdi_files import CdiHook, CdiMount, DeviceNode, Document, Edits
from crinoid.core.lifecycle.cdi.located import KeyPath
from crinoid.core.lifecycle.cdi.spec_directories import FoundDevice

JsonObject = dict[str, Any]
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISBLK, "b"),
    (stat.S_ISCHR, "c"),
    (stat.S_ISFIFO, "p"),
)
_BINDS = frozenset({"bind", "rbind"})


@dataclass(frozen=True, slots=True)
class _Part:
    """A place in a file, for messages."""

    document: Document
    keys: KeyPath

    def at(self, *keys: str | int) -> str:
        return self.document.place(*self.keys, *keys)


def inject(spec: JsonObject, devices: Iterable[FoundDevice]) -> None:
    """Edit the specification for these devices, in their order. Blocks: the host's device nodes are looked at.

    Raises NotFound for a node, mount source or hook that is not on the host, FailedPrecondition for a node that is not
    what the file says, InvalidArgument for a group that the pod does not have, Unsupported for network devices; each
    with file and line. Then the specification is half edited.
    """
    seen: set[int] = set()
    for found in devices:
        document = found.document
        if id(document) not in seen:
            seen.add(id(document))
            _apply(spec, document.spec.containerEdits, _Part(document, ("containerEdits",)))
        _apply(spec, found.device.containerEdits, _Part(document, ("devices", found.number, "containerEdits")))


def _apply(spec: JsonObject, edits: Edits, part: _Part) -> None:
    if edits.netDevices:
        raise Unsupported(
            f"{part.at('netDevices')}: netDevices: moving a host's interfaces into containers isn't served"
        )
    _set_variables(spec["process"]["env"], edits.env)
    for number, node in enumerate(edits.deviceNodes):
        _add_node(spec, node, part.at("deviceNodes", number))
    for number, mount in enumerate(edits.mounts):
        _add_mount(spec, mount, part.at("mounts", number))
    for number, hook in enumerate(edits.hooks):
        _add_hook(spec, hook, part.at("hooks", number))
    if edits.intelRdt is not None:
        spec["linux"]["intelRdt"] = edits.intelRdt.model_dump(exclude_defaults=True)
    for number, group in enumerate(edits.additionalGids):
        _add_group(spec, group, part.at("additionalGids", number))


def _add_group(spec: JsonObject, group: int, place: str) -> None:
    mappings = spec["linux"].get("gidMappings", ())
    if mappings and not any(0 <= group - one["containerID"] < one["size"] for one in mappings):
        raise InvalidArgument(f"{place}: group {group} is not mapped in the pod's user namespace")
    groups = spec["process"]["user"].setdefault("additionalGids", [])
    if group and group not in groups:
        groups.append(group)


def _set_variables(environment: list[str], variables: Iterable[str]) -> None:
    for variable in variables:
        name = variable.partition("=")[0] + "="
        environment[:] = [one for one in environment if not one.startswith(name)] + [variable]


def _add_node(spec: JsonObject, node: DeviceNode, place: str) -> None:
    made = _complete(node, place)
    user = spec["process"]["user"]
    owner = {key: user[key] if given is None else given for key, given in (("uid", node.uid), ("gid", node.gid))}
    made |= {key: number for key, number in owner.items() if number or getattr(node, key) is not None}
    linux = spec["linux"]
    linux["devices"] = [one for one in linux.get("devices", ()) if one["path"] != made["path"]] + [made]
    if made["type"] != "p" and node.permissions != "none":  # runtimes can't write down a rule that allows nothing
        access = node.permissions or "rwm"
        kind = "b" if made["type"] == "b" else "c"
        rule = {"allow": True, "type": kind, "major": made["major"], "minor": made["minor"], "access": access}
        linux.setdefault("resources", {}).setdefault("devices", []).append(rule)


def _complete(node: DeviceNode, place: str) -> JsonObject:
    """Return the node with what the file leaves out as the host has it. A node that the file describes whole need not
    be on the host."""
    is_whole = node.type == "p" or bool(node.type and node.major)
    source = node.hostPath or node.path
    found = _look_at(source, is_whole, place)
    made: JsonObject = {"path": node.path, "type": node.type, "major": node.major, "minor": node.minor}
    if found is not None:
        made["fileMode"] = stat.S_IMODE(found.st_mode)
    if node.fileMode is not None:
        made["fileMode"] = node.fileMode
    if not is_whole and found is not None:
        kind = next((letter for test, letter in _KINDS if test(found.st_mode)), "")
        if node.type not in ("", kind) and (node.type, kind) != ("u", "c"):
            raise FailedPrecondition(f"{place}: {source} is of type {kind!r}, and the file says {node.type!r}")
        made["type"] = node.type or kind
        made |= {"major": os.major(found.st_rdev), "minor": os.minor(found.st_rdev)}
    if made["type"] == "p":
        del made["major"], made["minor"]
    return made


def _look_at(source: str, is_whole: bool, place: str) -> os.stat_result | None:
    try:
        found = os.lstat(source)
    except OSError as error:
        if is_whole:
            return None
        raise NotFound(f"{place}: device {source} can't be looked at: {error.strerror}") from error
    if any(test(found.st_mode) for test, _letter in _KINDS):
        return found
    if is_whole:
        return None
    raise FailedPrecondition(f"{place}: {source} is no device node")


def _add_mount(spec: JsonObject, mount: CdiMount, place: str) -> None:
    options = list(mount.options)
    if not mount.type and not _BINDS & set(options):
        options.insert(0, "rbind")
    is_bind = mount.type == "bind" or bool(_BINDS & set(options))
    if is_bind and not Path(mount.hostPath).exists():
        raise NotFound(f"{place}: {mount.hostPath}, to be mounted on {mount.containerPath}, is not on the host")
    made = {
        "destination": mount.containerPath,
        "type": mount.type or "bind",
        "source": mount.hostPath,
        "options": options,
    }
    others = [one for one in spec["mounts"] if one["destination"] != mount.containerPath]
    spec["mounts"] = sorted([*others, made], key=lambda one: len(PurePosixPath(one["destination"]).parts))


def _add_hook(spec: JsonObject, hook: CdiHook, place: str) -> None:
    if not Path(hook.path).exists():
        raise NotFound(f"{place}: {hook.hookName} hook {hook.path} is not on the host")
    made = hook.model_dump(exclude={"hookName"}, exclude_defaults=True)
    spec.setdefault("hooks", {}).setdefault(hook.hookName, []).append(made)
