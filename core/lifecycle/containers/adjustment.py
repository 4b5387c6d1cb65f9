"""What extensions change in a container that is about to be created.

The slot has checked that it makes sense. ``builder`` calls ``adjust_config`` for what a container's configuration can
say, builds the specification from that, and then ``adjust_spec`` for the rest. Adjustments follow one another: a later
one removes or replaces what an earlier one added.
"""

import dataclasses
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from crinoid.core.api.hooks.extension import ContainerAdjustment
from crinoid.core.api.linux.oom import clamp_oom_score_adj
from crinoid.core.api.values.adjustment import OciDevice, OciHook, OciMount
from crinoid.core.api.values.container import ContainerConfig, DeviceMapping, VolumeMount
from crinoid.core.api.values.pod import LinuxResources

JsonObject = dict[str, Any]
T = TypeVar("T", VolumeMount, DeviceMapping)


def adjust_config(config: ContainerConfig, changes: Iterable[ContainerAdjustment]) -> ContainerConfig:
    """Return the configuration with what extensions change in it."""
    for change in changes:
        annotations = {key: value for key, value in config.annotations.items() if key not in change.removed_annotations}
        config = dataclasses.replace(
            config,
            envs=tuple(pair for pair in config.envs if pair[0] not in change.removed_envs) + change.envs,
            mounts=_merged(config.mounts, change.mounts, change.removed_mounts),
            devices=_merged(config.devices, change.devices, change.removed_devices),
            annotations=annotations | dict(change.annotations),
            cdi_devices=config.cdi_devices + change.cdi_devices,
            resources=_limited(config.resources, change),
            command=change.args or config.command,
            args=() if change.args else config.args,
        )
    return config


def name_changes(change: ContainerAdjustment) -> tuple[tuple[str, str], ...]:
    """Return who changes what, for people: names of fields, variables, paths and keys, and no value, which may be
    a secret."""
    if change.authors:
        return change.authors
    found = [f"env {name}" for name, _ in change.envs]
    found += [f"annotation {key}" for key, _ in change.annotations]
    found += [f"mount {mount.container_path}" for mount in change.mounts]
    found += [f"mount {mount.destination}" for mount in change.oci_mounts]
    found += [f"device {device.container_path}" for device in change.devices]
    found += [f"device {device.path}" for device in change.oci_devices]
    for kind in ("envs", "annotations", "mounts", "devices"):
        found += [f"{kind.removesuffix('s')} {name} removed" for name in getattr(change, f"removed_{kind}")]
    found += [f"CDI device {name}" for name in change.cdi_devices]
    found += [f"hook {hook.stage} {hook.path}" for hook in change.oci_hooks]
    found += [f"rlimit {limit.type}" for limit in change.rlimits]
    if change.resources is not None:
        fields = dataclasses.fields(LinuxResources)
        found += [f"resources {field.name}" for field in fields if getattr(change.resources, field.name)]
    named = ("args", "oom_score_adj", "cgroup")
    found += [name for name in named if getattr(change, name) not in ((), None, "")]
    found += ["device rules"] * bool(change.oci_device_rules)
    found += [f"spec {path}" for path in _paths(change.spec_patch)]
    return tuple((change.author, name) for name in found)


def _paths(patch: Mapping[str, Any], above: str = "") -> Iterable[str]:
    """Yield the fields that a JSON merge patch sets or removes."""
    for key, value in patch.items():
        if isinstance(value, Mapping) and value:
            yield from _paths(value, f"{above}{key}.")
        else:
            yield f"{above}{key}" + (" removed" if value is None else "")


def adjust_spec(spec: JsonObject, changes: Sequence[ContainerAdjustment]) -> None:
    """Edit a specification that was built from the adjusted configuration."""
    for number, change in enumerate(changes):
        _remove(spec, change, changes[number:])
        _add_mounts(spec, change.oci_mounts)
        _add_devices(spec, change.oci_devices)
        for rule in change.oci_device_rules:
            given = {name: value for name, value in dataclasses.asdict(rule).items() if value is not None}
            _rules(spec).append(given)
        for hook in change.oci_hooks:
            _add_hook(spec, hook)
        for limit in change.rlimits:
            others = [one for one in spec["process"].get("rlimits", ()) if one["type"] != limit.type]
            spec["process"]["rlimits"] = [*others, dataclasses.asdict(limit)]
        if change.oom_score_adj is not None:
            spec["process"]["oomScoreAdj"] = clamp_oom_score_adj(change.oom_score_adj)
        patched = merge_patch(spec, change.spec_patch)
        spec.clear()
        spec |= patched


def add_resources(old: LinuxResources, new: LinuxResources) -> LinuxResources:
    """Return limits with those that ``new`` gives; its zero and empty fields give none."""
    given = {field.name: getattr(new, field.name) for field in dataclasses.fields(LinuxResources)}
    changed = {name: value for name, value in given.items() if value}
    for name in ("hugepage_limits", "unified"):
        if name in changed:
            changed[name] = {**getattr(old, name), **changed[name]}
    return dataclasses.replace(old, **changed)


def merge_patch(target: Any, patch: Any) -> Any:
    """Return what a JSON merge patch makes of a value (RFC 7396): objects are merged, ``None`` removes."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def _limited(resources: LinuxResources, change: ContainerAdjustment) -> LinuxResources:
    if change.resources is not None:
        resources = add_resources(resources, change.resources)
    if change.oom_score_adj is not None:
        resources = dataclasses.replace(resources, oom_score_adj=change.oom_score_adj)
    return resources


def _merged(old: tuple[T, ...], added: tuple[T, ...], removed: Iterable[str]) -> tuple[T, ...]:
    gone = {_normal(path) for path in removed}
    gone |= {_normal(one.container_path) for one in added}
    kept = tuple(one for one in old if _normal(one.container_path) not in gone)
    return kept + added


def _remove(spec: JsonObject, change: ContainerAdjustment, later: Iterable[ContainerAdjustment]) -> None:
    """Remove what is not the configuration's own: the image's variables, the mounts that every container has.

    What this adjustment or a later one adds by way of the configuration is in the specification already, and stays.
    """
    kept_envs, kept_paths, kept_notes = set[str](), set[str](), set[str]()
    for one in later:
        kept_envs |= {name for name, _value in one.envs}
        kept_paths |= {_normal(added.container_path) for added in one.mounts}
        kept_paths |= {_normal(added.container_path) for added in one.devices}
        kept_notes |= {name for name, _value in one.annotations}
    envs = set(change.removed_envs) - kept_envs
    mounts = {_normal(path) for path in change.removed_mounts} - kept_paths
    devices = {_normal(path) for path in change.removed_devices} - kept_paths
    process, linux = spec["process"], spec["linux"]
    process["env"] = [one for one in process["env"] if one.partition("=")[0] not in envs]
    spec["mounts"] = [one for one in spec["mounts"] if one["destination"] not in mounts]
    linux["devices"] = [one for one in linux.get("devices", ()) if one["path"] not in devices]
    for name in set(change.removed_annotations) - kept_notes:
        spec["annotations"].pop(name, None)


def _add_mounts(spec: JsonObject, mounts: Sequence[OciMount]) -> None:
    """Add mounts, each in the place of one at its destination, and sort all so that none hides another."""
    made: JsonObject = {}
    for mount in mounts:
        path = _normal(mount.destination)
        made.pop(path, None)  # it comes where the last one is
        made[path] = {"destination": path, "type": mount.type, "source": mount.source, "options": list(mount.options)}
        if "rshared" in mount.options:
            spec["linux"]["rootfsPropagation"] = "rshared"
        elif "rslave" in mount.options:
            spec["linux"].setdefault("rootfsPropagation", "rslave")
    if made:
        others = [one for one in spec["mounts"] if one["destination"] not in made]
        depth = {one["destination"]: len(PurePosixPath(one["destination"]).parts) for one in (*others, *made.values())}
        spec["mounts"] = sorted([*others, *made.values()], key=lambda one: depth[one["destination"]])


def _add_devices(spec: JsonObject, devices: Sequence[OciDevice]) -> None:
    """Add device nodes, each in the place of one of its path, and let the container use them."""
    nodes: JsonObject = {one["path"]: one for one in spec["linux"].get("devices", ())}
    for device in devices:
        path = _normal(device.path)
        numbers = {} if device.type == "p" else {"major": device.major, "minor": device.minor}
        owner = {"fileMode": device.file_mode, "uid": device.uid, "gid": device.gid}
        nodes.pop(path, None)
        nodes[path] = {"path": path, "type": device.type, **numbers}
        nodes[path] |= {key: value for key, value in owner.items() if value is not None}
        if device.type != "p":
            rule = {"allow": True, "type": "b" if device.type == "b" else "c", **numbers, "access": device.permissions}
            _rules(spec).append(rule)
    if devices:
        spec["linux"]["devices"] = list(nodes.values())


def _rules(spec: JsonObject) -> list[JsonObject]:
    rules: list[JsonObject] = spec["linux"].setdefault("resources", {}).setdefault("devices", [])
    return rules


def _add_hook(spec: JsonObject, hook: OciHook) -> None:
    made: JsonObject = {"path": hook.path}
    parts = {"args": list(hook.args), "env": list(hook.env), "timeout": hook.timeout_s}
    made |= {key: value for key, value in parts.items() if value}
    spec.setdefault("hooks", {}).setdefault(hook.stage, []).append(made)


def _normal(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))
