"""What a pod or container was asked to be, as verbose status shows it: in the CRI's names, for scripts that read
``crictl inspect`` by ``jq``. As in containerd's answer, enumerations are numbers and what is empty is left out.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from crinoid.core.api.values.container import ContainerConfig, ContainerSecurity, VolumeMount
from crinoid.core.api.values.pod import (
    IdMapping,
    LinuxResources,
    NamespaceOptions,
    PodConfig,
    PodSecurity,
    SecurityProfile,
    SelinuxOptions,
)
from crinoid.core.cri.encode.texts import clean
from crinoid.core.cri.wire import api_pb2

Json = dict[str, Any]


def describe_pod_config(config: PodConfig) -> Json:
    """Return a PodSandboxConfig (api.proto) as a JSON object."""
    dns = config.dns
    return _given(
        metadata=_given(
            name=config.metadata.name,
            uid=config.metadata.uid,
            namespace=config.metadata.namespace,
            attempt=config.metadata.attempt,
        ),
        hostname=config.hostname,
        log_directory=config.log_directory,
        dns_config=_given(servers=[*dns.servers], searches=[*dns.searches], options=[*dns.options]) if dns else None,
        port_mappings=[
            _given(
                protocol=api_pb2.Protocol.Value(one.protocol.name),
                container_port=one.container_port,
                host_port=one.host_port,
                host_ip=one.host_ip,
            )
            for one in config.port_mappings
        ],
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        linux=_given(
            cgroup_parent=config.cgroup_parent,
            security_context=_security(config.security),
            sysctls=dict(config.sysctls),
            overhead=_resources(config.overhead),
            resources=_resources(config.resources),
        ),
    )


def describe_container_config(config: ContainerConfig) -> Json:
    """Return a ContainerConfig (api.proto) as a JSON object."""
    security, own = config.security, config.security.capabilities
    capabilities = _given(
        add_capabilities=[*own.add], drop_capabilities=[*own.drop], add_ambient_capabilities=[*own.add_ambient]
    )
    context = _given(
        capabilities=capabilities,
        run_as_username=security.run_as_username,
        no_new_privs=security.no_new_privs,
        masked_paths=[*security.masked_paths],
        readonly_paths=[*security.readonly_paths],
    )
    return _given(
        metadata=_given(name=config.metadata.name, attempt=config.metadata.attempt),
        image=_given(
            image=config.image,
            user_specified_image=config.user_specified_image,
            annotations=dict(config.image_annotations),
        ),
        command=[*config.command],
        args=[*config.args],
        working_dir=config.working_dir,
        envs=[_given(key=clean(key), value=clean(value)) for key, value in config.envs],
        mounts=[_mount(one) for one in config.mounts],
        devices=[
            _given(container_path=one.container_path, host_path=one.host_path, permissions=one.permissions)
            for one in config.devices
        ],
        CDI_devices=[_given(name=name) for name in config.cdi_devices],
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        log_path=config.log_path,
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        tty=config.tty,
        linux=_given(resources=_resources(config.resources), security_context={**_security(security), **context}),
    )


def _security(security: PodSecurity | ContainerSecurity) -> Json:
    return _given(
        privileged=security.privileged,
        namespace_options=_namespaces(security.namespaces),
        selinux_options=_selinux(security.selinux),
        run_as_user=_number(security.run_as_user),
        run_as_group=_number(security.run_as_group),
        readonly_rootfs=security.readonly_rootfs,
        supplemental_groups=[*security.supplemental_groups],
        supplemental_groups_policy=int(security.strict_groups),
        seccomp=_profile(security.seccomp),
        apparmor=_profile(security.apparmor),
    )


def _namespaces(options: NamespaceOptions) -> Json:
    mode, user = api_pb2.NamespaceMode.Value, options.user
    return _given(
        network=mode(options.network.name),
        pid=mode(options.pid.name),
        ipc=mode(options.ipc.name),
        target_id=options.target_id,
        userns_options=None
        if user is None
        else _given(mode=mode(user.mode.name), uids=_mappings(user.uids), gids=_mappings(user.gids)),
    )


def _mount(volume: VolumeMount) -> Json:
    return _given(
        container_path=volume.container_path,
        host_path=volume.host_path,
        readonly=volume.readonly,
        selinux_relabel=volume.selinux_relabel,
        propagation=api_pb2.MountPropagation.Value(f"PROPAGATION_{volume.propagation.name}"),
        recursive_read_only=volume.recursive_read_only,
        uidMappings=_mappings(volume.uid_mappings),
        gidMappings=_mappings(volume.gid_mappings),
        image=_given(image=volume.image),
        image_sub_path=volume.image_sub_path,
        mount_options=[*volume.mount_options],
    )


def _resources(resources: LinuxResources | None) -> Json | None:
    if resources is None:
        return None
    return _given(
        cpu_period=resources.cpu_period,
        cpu_quota=resources.cpu_quota,
        cpu_shares=resources.cpu_shares,
        memory_limit_in_bytes=resources.memory_limit_bytes,
        memory_swap_limit_in_bytes=resources.memory_swap_limit_bytes,
        oom_score_adj=resources.oom_score_adj,
        cpuset_cpus=resources.cpuset_cpus,
        cpuset_mems=resources.cpuset_mems,
        hugepage_limits=[_given(page_size=size, limit=limit) for size, limit in resources.hugepage_limits.items()],
        unified=dict(resources.unified),
    )


def _selinux(options: SelinuxOptions | None) -> Json | None:
    if options is None:
        return None
    return _given(user=options.user, role=options.role, type=options.type, level=options.level)


def _profile(profile: SecurityProfile | None) -> Json | None:
    if profile is None:
        return None
    kind = {"RUNTIME_DEFAULT": 0, "UNCONFINED": 1, "LOCALHOST": 2}[profile.type.name]
    return _given(profile_type=kind, localhost_ref=profile.localhost_ref)


def _mappings(mappings: Iterable[IdMapping]) -> list[Json]:
    return [_given(host_id=one.host_id, container_id=one.container_id, length=one.length) for one in mappings]


def _number(value: int | None) -> Mapping[str, int] | None:
    return None if value is None else {"value": value}


def _given(**fields: object) -> Json:
    """An object without what is empty, as Go's ``omitempty`` has it."""
    return {name: value for name, value in fields.items() if value not in (None, "", 0, False, [], {})}
