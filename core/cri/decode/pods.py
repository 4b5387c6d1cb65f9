"""PodSandboxConfig and the parts that containers share with it."""

from collections.abc import Iterable, Mapping

from crinoid.core.api.bounds import (
    HUGEPAGE,
    MAX_LABEL_BYTES,
    MAX_SYSCTL_BYTES,
    MAX_WORD_BYTES,
    SYSCTL,
    path_problem,
    unified_problem,
)
from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.pod import (
    DnsConfig,
    IdMapping,
    LinuxResources,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSecurity,
    PortMapping,
    ProfileType,
    Protocol,
    SecurityProfile,
    SelinuxOptions,
    UserNamespace,
)
from crinoid.core.cri.decode.checks import (
    MAX_NAME,
    check_address,
    check_cpuset,
    check_descent,
    check_hostname,
    check_id,
    check_least,
    check_length,
    check_line,
    check_lines,
    check_notes,
    check_path,
    check_range,
    require_field,
    require_text,
)
from crinoid.core.cri.wire import api_pb2

_MODES: Mapping[int, NamespaceMode] = {
    api_pb2.POD: NamespaceMode.POD,
    api_pb2.CONTAINER: NamespaceMode.CONTAINER,
    api_pb2.NODE: NamespaceMode.NODE,
    api_pb2.TARGET: NamespaceMode.TARGET,
}
_PROTOCOLS: Mapping[int, Protocol] = {
    api_pb2.TCP: Protocol.TCP,
    api_pb2.UDP: Protocol.UDP,
    api_pb2.SCTP: Protocol.SCTP,
}
_PROFILES: Mapping[int, ProfileType] = {
    api_pb2.SecurityProfile.RuntimeDefault: ProfileType.RUNTIME_DEFAULT,
    api_pb2.SecurityProfile.Unconfined: ProfileType.UNCONFINED,
    api_pb2.SecurityProfile.Localhost: ProfileType.LOCALHOST,
}
_OLD_LOCALHOST = "localhost/"


def decode_pod_config(config: api_pb2.PodSandboxConfig, path: str = "config") -> PodConfig:
    """Read what a pod is asked to be."""
    require_field(config, "metadata", f"{path}.metadata")
    metadata, named = config.metadata, f"{path}.metadata"
    linux, below = config.linux, f"{path}.linux"
    # Names only: which sysctls belong to namespaces of the pod's own is for ``lifecycle`` to say.
    for name, value in linux.sysctls.items():
        if path_problem(name.replace(".", "/")) or not SYSCTL.fullmatch(name):
            raise InvalidArgument(f"{below}.sysctls: {name[:100]!r} is not a sysctl's name")
        check_length(value, MAX_SYSCTL_BYTES, f"{below}.sysctls[{name!r}]")
    return PodConfig(
        metadata=PodMetadata(
            name=check_line(require_text(metadata.name, f"{named}.name"), MAX_NAME, f"{named}.name"),
            namespace=check_line(metadata.namespace, MAX_NAME, f"{named}.namespace"),
            uid=check_line(metadata.uid, MAX_NAME, f"{named}.uid"),
            attempt=metadata.attempt,
        ),
        hostname=check_hostname(config.hostname, f"{path}.hostname"),
        log_directory=check_path(check_descent(config.log_directory, f"{path}.log_directory"), f"{path}.log_directory"),
        dns=DnsConfig(
            servers=check_lines(config.dns_config.servers, MAX_WORD_BYTES, f"{path}.dns_config.servers"),
            searches=check_lines(config.dns_config.searches, MAX_WORD_BYTES, f"{path}.dns_config.searches"),
            options=check_lines(config.dns_config.options, MAX_WORD_BYTES, f"{path}.dns_config.options"),
        )
        if config.HasField("dns_config")  # without it the pod has the host's resolver
        else None,
        port_mappings=tuple(
            decode_port(port, f"{path}.port_mappings[{index}]") for index, port in enumerate(config.port_mappings)
        ),
        labels=check_notes(config.labels, f"{path}.labels"),
        annotations=check_notes(config.annotations, f"{path}.annotations"),
        cgroup_parent=check_descent(linux.cgroup_parent, f"{below}.cgroup_parent"),
        security=decode_pod_security(linux.security_context, f"{below}.security_context"),
        sysctls=dict(linux.sysctls),
        overhead=decode_resources(linux.overhead, f"{below}.overhead") if linux.HasField("overhead") else None,
        resources=decode_resources(linux.resources, f"{below}.resources") if linux.HasField("resources") else None,
    )


def decode_port(port: api_pb2.PortMapping, path: str) -> PortMapping:
    """Read a port mapping. The kubelet also sends ports that none of the host leads to, with host_port 0."""
    return PortMapping(
        container_port=check_range(port.container_port, 1 if port.host_port else 0, 65535, f"{path}.container_port"),
        host_port=check_range(port.host_port, 0, 65535, f"{path}.host_port"),
        protocol=_PROTOCOLS[port.protocol],
        host_ip=check_address(port.host_ip, f"{path}.host_ip"),
    )


def decode_pod_security(context: api_pb2.LinuxSandboxSecurityContext, path: str) -> PodSecurity:
    """Read a pod's security context."""
    if context.HasField("run_as_group") and not context.HasField("run_as_user"):
        raise InvalidArgument(f"{path}.run_as_group is set without run_as_user")
    if context.namespace_options.pid == api_pb2.TARGET:
        raise InvalidArgument(f"{path}.namespace_options.pid is TARGET; that is for containers")
    return PodSecurity(
        namespaces=decode_namespaces(context.namespace_options, f"{path}.namespace_options"),
        selinux=decode_selinux(context, path),
        run_as_user=decode_id(context, "run_as_user", path),
        run_as_group=decode_id(context, "run_as_group", path),
        readonly_rootfs=context.readonly_rootfs,
        supplemental_groups=decode_groups(context.supplemental_groups, f"{path}.supplemental_groups"),
        strict_groups=context.supplemental_groups_policy == api_pb2.Strict,
        privileged=context.privileged,
        seccomp=decode_seccomp(context, path),
        apparmor=decode_apparmor(context, path),
    )


def decode_resources(resources: api_pb2.LinuxContainerResources, path: str) -> LinuxResources:
    """Read limits; 0 is how the CRI spells "not given", -1 how cgroups spell "no limit"."""
    for index, limit in enumerate(resources.hugepage_limits):
        if not HUGEPAGE.fullmatch(limit.page_size):
            raise InvalidArgument(
                f"{path}.hugepage_limits[{index}].page_size {limit.page_size[:100]!r} is not a size such as 2MB"
            )
    for name, value in resources.unified.items():
        if problem := unified_problem(name, value):
            raise InvalidArgument(f"{path}.unified {problem}")
    return LinuxResources(
        cpu_period=check_least(resources.cpu_period, 0, f"{path}.cpu_period"),
        cpu_quota=check_least(resources.cpu_quota, -1, f"{path}.cpu_quota"),
        cpu_shares=check_least(resources.cpu_shares, 0, f"{path}.cpu_shares"),
        memory_limit_bytes=check_least(resources.memory_limit_in_bytes, -1, f"{path}.memory_limit_in_bytes"),
        memory_swap_limit_bytes=check_least(
            resources.memory_swap_limit_in_bytes, -1, f"{path}.memory_swap_limit_in_bytes"
        ),
        oom_score_adj=check_range(resources.oom_score_adj, -1000, 1000, f"{path}.oom_score_adj"),
        cpuset_cpus=check_cpuset(resources.cpuset_cpus, f"{path}.cpuset_cpus"),
        cpuset_mems=check_cpuset(resources.cpuset_mems, f"{path}.cpuset_mems"),
        hugepage_limits={limit.page_size: limit.limit for limit in resources.hugepage_limits},
        unified=dict(resources.unified),
    )


def decode_namespaces(options: api_pb2.NamespaceOption, path: str) -> NamespaceOptions:
    """Read the namespaces; only the PID namespace may be another container's."""
    for name, mode in (("network", options.network), ("ipc", options.ipc)):
        if mode == api_pb2.TARGET:
            raise InvalidArgument(f"{path}.{name} is TARGET; only the PID namespace of a container can be shared so")
    if options.pid == api_pb2.TARGET:
        require_text(options.target_id, f"{path}.target_id")
    return NamespaceOptions(
        network=_MODES[options.network],
        pid=_MODES[options.pid],
        ipc=_MODES[options.ipc],
        target_id=options.target_id,
        user=_decode_user_namespace(options.userns_options, f"{path}.userns_options")
        if options.HasField("userns_options")
        else None,
    )


def decode_id_mappings(mappings: Iterable[api_pb2.IDMapping], path: str) -> tuple[IdMapping, ...]:
    """Read the id maps of a user namespace or an idmapped mount."""
    return tuple(
        IdMapping(one.host_id, one.container_id, check_least(one.length, 1, f"{path}[{index}].length"))
        for index, one in enumerate(mappings)
    )


def decode_selinux(
    message: api_pb2.LinuxSandboxSecurityContext | api_pb2.LinuxContainerSecurityContext, path: str
) -> SelinuxOptions | None:
    """Read the SELinux label of a security context."""
    if not message.HasField("selinux_options"):
        return None
    label, below = message.selinux_options, f"{path}.selinux_options"
    return SelinuxOptions(
        *(
            check_line(getattr(label, part), MAX_LABEL_BYTES, f"{below}.{part}")
            for part in ("user", "role", "type", "level")
        )
    )


def decode_seccomp(
    context: api_pb2.LinuxSandboxSecurityContext | api_pb2.LinuxContainerSecurityContext, path: str
) -> SecurityProfile | None:
    """Read the seccomp profile, from the deprecated field where the new one is absent."""
    old = decode_old_profile(context.seccomp_profile_path, f"{path}.seccomp_profile_path")
    profile = _decode_profile(context.seccomp, f"{path}.seccomp") if context.HasField("seccomp") else old
    if profile is not None:
        check_path(profile.localhost_ref, f"{path}.seccomp.localhost_ref")
    return profile


def decode_apparmor(
    context: api_pb2.LinuxSandboxSecurityContext | api_pb2.LinuxContainerSecurityContext, path: str
) -> SecurityProfile | None:
    """Read the AppArmor profile."""
    profile = _decode_profile(context.apparmor, f"{path}.apparmor") if context.HasField("apparmor") else None
    if profile is not None:
        check_line(profile.localhost_ref, MAX_LABEL_BYTES, f"{path}.apparmor.localhost_ref")
    return profile


def decode_old_profile(text: str, path: str) -> SecurityProfile | None:
    """Read a profile as the deprecated fields spell it; Docker's word for the default is still about."""
    if not text:
        return None
    if text in ("runtime/default", "docker/default"):
        return SecurityProfile(ProfileType.RUNTIME_DEFAULT)
    if text == "unconfined":
        return SecurityProfile(ProfileType.UNCONFINED)
    if text.startswith(_OLD_LOCALHOST) and len(text) > len(_OLD_LOCALHOST):
        check_line(text, MAX_LABEL_BYTES, path)
        return SecurityProfile(ProfileType.LOCALHOST, text.removeprefix(_OLD_LOCALHOST))
    raise InvalidArgument(f"{path} {text!r:.100} is none of runtime/default, unconfined and localhost/NAME")


def decode_id(
    context: api_pb2.LinuxSandboxSecurityContext | api_pb2.LinuxContainerSecurityContext, name: str, path: str
) -> int | None:
    """Read the user or group id in the field ``name``; absent is not the same as 0."""
    present = context.HasField(name)
    return check_id(getattr(context, name).value, f"{path}.{name}") if present else None


def decode_groups(groups: Iterable[int], path: str) -> tuple[int, ...]:
    """Read supplementary group ids."""
    return tuple(check_id(group, f"{path}[{index}]") for index, group in enumerate(groups))


def _decode_user_namespace(user: api_pb2.UserNamespace, path: str) -> UserNamespace:
    mode = _MODES[user.mode]
    if mode not in (NamespaceMode.POD, NamespaceMode.NODE):
        raise InvalidArgument(f"{path}.mode is {mode.name}; a user namespace is the pod's or the node's")
    if mode is NamespaceMode.POD and not (user.uids and user.gids):
        raise InvalidArgument(f"{path} asks for a user namespace without uids and gids to map")
    return UserNamespace(
        mode, decode_id_mappings(user.uids, f"{path}.uids"), decode_id_mappings(user.gids, f"{path}.gids")
    )


def _decode_profile(profile: api_pb2.SecurityProfile, path: str) -> SecurityProfile:
    if profile.profile_type != api_pb2.SecurityProfile.Localhost:
        return SecurityProfile(_PROFILES[profile.profile_type])
    return SecurityProfile(ProfileType.LOCALHOST, require_text(profile.localhost_ref, f"{path}.localhost_ref"))
