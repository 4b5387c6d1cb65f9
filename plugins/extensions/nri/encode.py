"""Pods and containers as NRI plugins see them, from the views of the kernel and the OCI specification in them."""

from collections.abc import Mapping
from typing import Any

from crinoid.core.api.hooks.extension import ContainerView, PodView
from crinoid.core.api.values.container import ContainerConfig
from crinoid.core.api.values.pod import ProfileType
from crinoid.core.api.values.runtime import ContainerStatus
from crinoid.plugins.extensions.nri.resources import encode_oci_resources, encode_resources, overlay
from crinoid.plugins.extensions.nri.wire import nri_pb2

HOOK_STAGES = {
    "prestart": "prestart",
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}
"""NRI's names of the stages, and the OCI specification's."""
_STATES = {
    ContainerStatus.ABSENT: nri_pb2.CONTAINER_UNKNOWN,
    ContainerStatus.CREATED: nri_pb2.CONTAINER_CREATED,
    ContainerStatus.RUNNING: nri_pb2.CONTAINER_RUNNING,
    ContainerStatus.PAUSED: nri_pb2.CONTAINER_PAUSED,
    ContainerStatus.STOPPED: nri_pb2.CONTAINER_STOPPED,
}
_PROFILES = {
    ProfileType.RUNTIME_DEFAULT: nri_pb2.SecurityProfile.RUNTIME_DEFAULT,
    ProfileType.UNCONFINED: nri_pb2.SecurityProfile.UNCONFINED,
    ProfileType.LOCALHOST: nri_pb2.SecurityProfile.LOCALHOST,
}
_SCHEDULER = ("nice", "priority", "runtime", "deadline", "period")


def encode_pod(pod: PodView) -> nri_pb2.PodSandbox:
    """Write a pod."""
    metadata = pod.config.metadata
    linux = nri_pb2.LinuxPodSandbox(
        pod_overhead=encode_resources(pod.overhead),
        pod_resources=encode_resources(pod.resources),
        cgroup_parent=pod.config.cgroup_parent or pod.cgroup_parent,
        cgroups_path=pod.cgroup_parent,
    )
    for kind, path in pod.namespaces.items():
        if kind != "network" or pod.ready:  # afterwards there is none
            linux.namespaces.add(type=kind, path=str(path))
    return nri_pb2.PodSandbox(
        id=pod.pod_id,
        name=metadata.name,
        uid=metadata.uid,
        namespace=metadata.namespace,
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.runtime_handler,
        linux=linux,
        ips=pod.addresses,
    )


def encode_container(container: ContainerView) -> nri_pb2.Container:
    """Write a container."""
    spec, config = container.spec, container.config
    process = spec.get("process") or {}
    user = process.get("user") or {}
    return nri_pb2.Container(
        id=container.container_id,
        pod_sandbox_id=container.pod.pod_id,
        name=config.metadata.name,
        state=_STATES[container.state],
        labels=config.labels,
        annotations={**config.annotations, **(spec.get("annotations") or {})},
        args=process.get("args") or (),
        env=process.get("env") or (),
        mounts=[_encode_mount(mount) for mount in spec.get("mounts") or ()],
        hooks=_encode_hooks(spec.get("hooks") or {}),
        linux=_encode_linux(container, spec.get("linux") or {}, process),
        pid=container.pid,
        rlimits=[nri_pb2.POSIXRlimit(**limit) for limit in process.get("rlimits") or ()],
        created_at=container.created_at_ns,
        started_at=container.started_at_ns,
        finished_at=container.finished_at_ns,
        exit_code=container.exit_code,
        status_reason=container.reason,
        status_message=container.message,
        CDI_devices=[nri_pb2.CDIDevice(name=name) for name in config.cdi_devices],
        user=nri_pb2.User(
            uid=user.get("uid", 0), gid=user.get("gid", 0), additional_gids=user.get("additionalGids") or ()
        ),
        image=_encode_image(container),
    )


def _encode_image(container: ContainerView) -> nri_pb2.Image:
    _name, _, digest = container.image_reference.rpartition("@")
    name = container.config.user_specified_image or container.config.image
    return nri_pb2.Image(name=name, digest=digest if ":" in digest else "", config_digest=container.image_id)


def _encode_mount(mount: Mapping[str, Any]) -> nri_pb2.Mount:
    return nri_pb2.Mount(
        destination=mount["destination"],
        type=mount.get("type", ""),
        source=mount.get("source", ""),
        options=mount.get("options") or (),
    )


def _encode_hooks(hooks: Mapping[str, Any]) -> nri_pb2.Hooks:
    made = nri_pb2.Hooks()
    for name, stage in HOOK_STAGES.items():
        for hook in hooks.get(stage) or ():
            timeout = {"value": hook["timeout"]} if hook.get("timeout") else None
            parts = {"args": hook.get("args") or (), "env": hook.get("env") or ()}
            getattr(made, name).add(path=hook["path"], timeout=timeout, **parts)
    return made


def _encode_linux(
    container: ContainerView, linux: Mapping[str, Any], process: Mapping[str, Any]
) -> nri_pb2.LinuxContainer:
    resources = encode_oci_resources(linux.get("resources") or {})
    overlay(resources, container.resources)
    made = nri_pb2.LinuxContainer(
        resources=resources,
        cgroups_path=linux.get("cgroupsPath", ""),
        sysctl=linux.get("sysctl") or {},
        seccomp_profile=_encode_profile(container.config),
        seccomp_policy=encode_seccomp(linux["seccomp"]) if linux.get("seccomp") else None,
    )
    for namespace in linux.get("namespaces") or ():
        made.namespaces.add(type=namespace["type"], path=namespace.get("path", ""))
    for device in linux.get("devices") or ():
        made.devices.append(_encode_device(device))
    for host_name, device in (linux.get("netDevices") or {}).items():
        made.net_devices[host_name].name = device.get("name", "")
    if process.get("oomScoreAdj") is not None:
        made.oom_score_adj.value = process["oomScoreAdj"]
    _encode_priorities(made, process)
    _encode_rdt(made, linux.get("intelRdt") or {})
    return made


def _encode_priorities(made: nri_pb2.LinuxContainer, process: Mapping[str, Any]) -> None:
    if priority := process.get("ioPriority"):
        io_class = nri_pb2.IOPrioClass.Value(priority["class"])
        made.io_priority.MergeFrom(nri_pb2.LinuxIOPriority(**{"class": io_class, "priority": priority["priority"]}))
    if scheduler := process.get("scheduler"):
        numbers = {name: scheduler.get(name, 0) for name in _SCHEDULER}
        flags = scheduler.get("flags") or ()
        made.scheduler.MergeFrom(nri_pb2.LinuxScheduler(policy=scheduler["policy"], flags=flags, **numbers))


def _encode_rdt(made: nri_pb2.LinuxContainer, rdt: Mapping[str, Any]) -> None:
    if "closID" in rdt:
        made.rdt.clos_id.value = rdt["closID"]
    if "schemata" in rdt:
        made.rdt.schemata.value.extend(rdt["schemata"])
    if "enableMonitoring" in rdt:
        made.rdt.enable_monitoring.value = rdt["enableMonitoring"]


def _encode_device(device: Mapping[str, Any]) -> nri_pb2.LinuxDevice:
    optional = {"file_mode": "fileMode", "uid": "uid", "gid": "gid"}
    given: dict[str, Any] = {
        name: {"value": device[key]} for name, key in optional.items() if device.get(key) is not None
    }
    made = nri_pb2.LinuxDevice(path=device["path"], type=device["type"], **given)
    made.major, made.minor = device.get("major", 0), device.get("minor", 0)
    return made


def _encode_profile(config: ContainerConfig) -> nri_pb2.SecurityProfile | None:
    profile = config.security.seccomp
    if profile is None:
        return None
    return nri_pb2.SecurityProfile(profile_type=_PROFILES[profile.type], localhost_ref=profile.localhost_ref)


def encode_seccomp(seccomp: Mapping[str, Any]) -> nri_pb2.LinuxSeccomp:
    """Write a filter of an OCI specification."""
    made = nri_pb2.LinuxSeccomp(
        default_action=seccomp.get("defaultAction", ""),
        architectures=seccomp.get("architectures") or (),
        flags=seccomp.get("flags") or (),
        listener_path=seccomp.get("listenerPath", ""),
        listener_metadata=seccomp.get("listenerMetadata", ""),
    )
    if seccomp.get("defaultErrnoRet") is not None:
        made.default_errno.value = seccomp["defaultErrnoRet"]
    for rule in seccomp.get("syscalls") or ():
        syscall = made.syscalls.add(names=rule["names"], action=rule["action"])
        if rule.get("errnoRet") is not None:
            syscall.errno_ret.value = rule["errnoRet"]
        for arg in rule.get("args") or ():
            syscall.args.add(index=arg["index"], value=arg["value"], value_two=arg.get("valueTwo", 0), op=arg["op"])
    return made
