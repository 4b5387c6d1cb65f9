"""ContainerConfig and what else CreateContainer, UpdateContainerResources, StopContainer and ExecSync carry."""

from collections.abc import Iterable, Mapping

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.container import (
    Capabilities,
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    DeviceMapping,
    MountPropagation,
    VolumeMount,
)
from crinoid.core.cri.decode.checks import (
    MAX_NAME,
    check_choice,
    check_inner_path,
    check_line,
    check_notes,
    check_path,
    check_path_length,
    check_reference,
    check_words,
    require_field,
    require_text,
)
from crinoid.core.cri.decode.pods import (
    decode_apparmor,
    decode_groups,
    decode_id,
    decode_id_mappings,
    decode_namespaces,
    decode_old_profile,
    decode_resources,
    decode_seccomp,
    decode_selinux,
)
from crinoid.core.cri.signals import decode_signal
from crinoid.core.cri.wire import api_pb2

_PROPAGATIONS: Mapping[int, MountPropagation] = {
    api_pb2.PROPAGATION_PRIVATE: MountPropagation.PRIVATE,
    api_pb2.PROPAGATION_HOST_TO_CONTAINER: MountPropagation.HOST_TO_CONTAINER,
    api_pb2.PROPAGATION_BIDIRECTIONAL: MountPropagation.BIDIRECTIONAL,
}
_EVERY_PERMISSION = "rwm"


def decode_container_config(config: api_pb2.ContainerConfig, path: str = "config") -> ContainerConfig:
    """Read what a container is asked to be."""
    linux, below = config.linux, f"{path}.linux"
    require_field(config, "metadata", f"{path}.metadata")
    name = require_text(config.metadata.name, f"{path}.metadata.name")
    check_line(name, MAX_NAME, f"{path}.metadata.name")
    return ContainerConfig(
        metadata=ContainerMetadata(name, config.metadata.attempt),
        image=check_reference(require_text(config.image.image, f"{path}.image.image"), f"{path}.image.image"),
        user_specified_image=config.image.user_specified_image,
        image_annotations=dict(config.image.annotations),
        command=tuple(config.command),
        args=tuple(config.args),
        working_dir=check_path_length(config.working_dir, f"{path}.working_dir"),
        envs=_decode_envs(config.envs, f"{path}.envs"),
        mounts=tuple(_decode_mount(one, f"{path}.mounts[{index}]") for index, one in enumerate(config.mounts)),
        devices=tuple(_decode_device(one, f"{path}.devices[{index}]") for index, one in enumerate(config.devices)),
        cdi_devices=check_words((one.name for one in config.CDI_devices), f"{path}.CDI_devices"),
        labels=check_notes(config.labels, f"{path}.labels"),
        annotations=check_notes(config.annotations, f"{path}.annotations"),
        log_path=check_inner_path(config.log_path.lstrip("/"), f"{path}.log_path"),
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        tty=config.tty,
        resources=decode_resources(linux.resources, f"{below}.resources"),
        security=_decode_security(linux.security_context, f"{below}.security_context"),
        stop_signal=decode_signal(config.stop_signal),
    )


def decode_grace(request: api_pb2.StopContainerRequest) -> float:
    """Read the grace period in seconds; none where it is below 0, as with peers."""
    return float(max(request.timeout, 0))


def decode_exec_timeout(request: api_pb2.ExecSyncRequest) -> float | None:
    """Read the time limit in seconds; 0 on the wire, or less, is none."""
    return float(max(request.timeout, 0)) or None


def decode_command(command: Iterable[str], path: str) -> tuple[str, ...]:
    """Read a command, which has at least the program's name."""
    taken = tuple(command)
    require_text(taken[0] if taken else "", path)
    return taken


def _decode_envs(envs: Iterable[api_pb2.KeyValue], path: str) -> tuple[tuple[str, str], ...]:
    """Read the environment; a value is bytes, which the kernel takes without NUL and otherwise as they are."""
    taken = []
    for index, env in enumerate(envs):
        if not env.key or "=" in env.key:
            raise InvalidArgument(f"{path}[{index}].key {env.key[:100]!r} is not the name of a variable")
        if b"\0" in env.value:
            raise InvalidArgument(f"{path}[{index}].value, that of {env.key}, holds a NUL byte")
        taken.append((env.key, env.value.decode("utf-8", "surrogateescape")))
    return tuple(taken)


def _decode_mount(mount: api_pb2.Mount, path: str) -> VolumeMount:
    """Read a mount, whose source is a path of the host or an image (KEP-4639)."""
    if bool(mount.host_path) == bool(mount.image.image):
        how = "both set" if mount.host_path else "both missing"
        raise InvalidArgument(f"{path}: host_path and image.image are {how}; a mount has one of them")
    if mount.image.image and not mount.readonly:
        raise InvalidArgument(f"{path}.readonly is not set; the volume of an image can only be read")
    if mount.image_sub_path and not mount.image.image:
        raise InvalidArgument(f"{path}.image_sub_path is set without image.image")
    # api.proto, Mount.recursive_read_only: it needs readonly and a private propagation. A mount that comes in from the
    # host later on would be writable.
    if mount.recursive_read_only and not mount.readonly:
        raise InvalidArgument(f"{path}.recursive_read_only is set without readonly")
    if mount.recursive_read_only and mount.propagation != api_pb2.PROPAGATION_PRIVATE:
        raise InvalidArgument(f"{path}.recursive_read_only is set with a propagation that is not private")
    return VolumeMount(
        container_path=check_path(_from_root(mount.container_path, f"{path}.container_path"), f"{path}.container_path"),
        host_path=check_path(mount.host_path, f"{path}.host_path"),
        readonly=mount.readonly,
        recursive_read_only=mount.recursive_read_only,
        selinux_relabel=mount.selinux_relabel,
        propagation=_PROPAGATIONS[mount.propagation],
        uid_mappings=decode_id_mappings(mount.uidMappings, f"{path}.uidMappings"),
        gid_mappings=decode_id_mappings(mount.gidMappings, f"{path}.gidMappings"),
        image=check_reference(mount.image.image, f"{path}.image.image"),
        image_sub_path=check_inner_path(mount.image_sub_path, f"{path}.image_sub_path"),
        mount_options=check_words(mount.mount_options, f"{path}.mount_options"),
    )


def _from_root(text: str, path: str) -> str:
    """Return a path in the container from its root on: relative ones begin there, too."""
    return "/" + require_text(text, path).removeprefix("/")


def _decode_device(device: api_pb2.Device, path: str) -> DeviceMapping:
    host = check_path(require_text(device.host_path, f"{path}.host_path"), f"{path}.host_path")
    return DeviceMapping(
        container_path=check_path(device.container_path, f"{path}.container_path") or host,
        host_path=host,
        permissions=check_choice(device.permissions, _EVERY_PERMISSION, f"{path}.permissions") or _EVERY_PERMISSION,
    )


def _decode_security(context: api_pb2.LinuxContainerSecurityContext, path: str) -> ContainerSecurity:
    # api.proto, LinuxContainerSecurityContext: one of run_as_user and run_as_username, and run_as_group only with one.
    named = bool(context.run_as_username)
    if context.HasField("run_as_user") and named:
        raise InvalidArgument(f"{path}: run_as_user and run_as_username are both set")
    if context.HasField("run_as_group") and not (named or context.HasField("run_as_user")):
        raise InvalidArgument(f"{path}.run_as_group is set without run_as_user or run_as_username")
    capabilities, below = context.capabilities, f"{path}.capabilities"
    return ContainerSecurity(
        capabilities=Capabilities(
            add=check_words(capabilities.add_capabilities, f"{below}.add_capabilities"),
            drop=check_words(capabilities.drop_capabilities, f"{below}.drop_capabilities"),
            add_ambient=check_words(capabilities.add_ambient_capabilities, f"{below}.add_ambient_capabilities"),
        ),
        privileged=context.privileged,
        namespaces=decode_namespaces(context.namespace_options, f"{path}.namespace_options"),
        selinux=decode_selinux(context, path),
        run_as_user=decode_id(context, "run_as_user", path),
        run_as_group=decode_id(context, "run_as_group", path),
        run_as_username=check_line(context.run_as_username, MAX_NAME, f"{path}.run_as_username"),
        readonly_rootfs=context.readonly_rootfs,
        supplemental_groups=decode_groups(context.supplemental_groups, f"{path}.supplemental_groups"),
        strict_groups=context.supplemental_groups_policy == api_pb2.Strict,
        no_new_privs=context.no_new_privs,
        masked_paths=_decode_paths(context.masked_paths, f"{path}.masked_paths"),
        readonly_paths=_decode_paths(context.readonly_paths, f"{path}.readonly_paths"),
        seccomp=decode_seccomp(context, path),
        # The kubelet before 1.30 knows the deprecated field only; the new one counts where both are there.
        apparmor=decode_apparmor(context, path)
        or decode_old_profile(context.apparmor_profile, f"{path}.apparmor_profile"),
    )


def _decode_paths(paths: Iterable[str], path: str) -> tuple[str, ...]:
    return tuple(
        check_path(require_text(one, f"{path}[{index}]"), f"{path}[{index}]") for index, one in enumerate(paths)
    )
