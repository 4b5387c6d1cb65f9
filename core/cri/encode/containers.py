"""Containers as lists and statuses show them."""

from collections.abc import Mapping

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.container import ContainerMetadata, MountPropagation, VolumeMount
from crinoid.core.api.values.image import ImageReference
from crinoid.core.cri.encode.pods import encode_id_mappings, encode_resources
from crinoid.core.cri.encode.texts import clean
from crinoid.core.cri.signals import encode_signal
from crinoid.core.cri.wire import api_pb2
from crinoid.core.state.records import ContainerRecord, ContainerState, ImageRecord, ProcessUser

_STATES: Mapping[ContainerState, api_pb2.ContainerState] = {
    ContainerState.CREATED: api_pb2.CONTAINER_CREATED,
    ContainerState.RUNNING: api_pb2.CONTAINER_RUNNING,
    ContainerState.EXITED: api_pb2.CONTAINER_EXITED,
    ContainerState.UNKNOWN: api_pb2.CONTAINER_UNKNOWN,
}
_PROPAGATIONS: Mapping[MountPropagation, api_pb2.MountPropagation] = {
    MountPropagation.PRIVATE: api_pb2.PROPAGATION_PRIVATE,
    MountPropagation.HOST_TO_CONTAINER: api_pb2.PROPAGATION_HOST_TO_CONTAINER,
    MountPropagation.BIDIRECTIONAL: api_pb2.PROPAGATION_BIDIRECTIONAL,
}


def encode_container(record: ContainerRecord) -> api_pb2.Container:
    """A container as ListContainers shows it."""
    return api_pb2.Container(
        id=record.id,
        pod_sandbox_id=record.pod_id,
        metadata=encode_container_metadata(record.config.metadata),
        image=_encode_image(record, record.config.image),
        image_ref=record.image_ref,
        state=_STATES[record.state],
        created_at=record.created_at_ns,
        labels=record.config.labels,
        annotations=record.config.annotations,
        image_id=record.image_id,
    )


def encode_container_status(record: ContainerRecord, image: ImageRecord | None) -> api_pb2.ContainerStatus:
    """A container in full; ``image`` is its image while that is still there."""
    return api_pb2.ContainerStatus(
        id=record.id,
        metadata=encode_container_metadata(record.config.metadata),
        state=_STATES[record.state],
        created_at=record.created_at_ns,
        started_at=record.started_at_ns,
        finished_at=record.finished_at_ns,
        exit_code=record.exit_code,
        image=_encode_image(record, name_image(record, image)),
        image_ref=record.image_ref,
        reason=record.reason,
        message=clean(record.message),
        labels=record.config.labels,
        annotations=record.config.annotations,
        mounts=[_encode_mount(mount, record.volume_images) for mount in record.config.mounts],
        log_path=record.log_path,
        resources=api_pb2.ContainerResources(linux=encode_resources(record.resources)),
        image_id=record.image_id,
        user=_encode_user(record.user),
        stop_signal=encode_signal(record.stop_signal),
    )


def encode_container_metadata(metadata: ContainerMetadata) -> api_pb2.ContainerMetadata:
    """What Kubernetes calls the container within its pod."""
    return api_pb2.ContainerMetadata(name=metadata.name, attempt=metadata.attempt)


def name_image(record: ContainerRecord, image: ImageRecord | None) -> str:
    """Choose the name to show: of the image's names the one in the pod's manifest, else its first, else what was asked.

    The kubelet asks by id, and shows this name to people as the container's image.
    """
    if image is None:
        return record.config.image
    wanted = _full_form(record.config.user_specified_image or record.config.image)
    if wanted in image.tags or wanted in image.digests:
        return wanted
    return next(iter((*image.tags, *image.digests)), record.config.image)


def _full_form(reference: str) -> str:
    try:
        return str(ImageReference.parse(reference))
    except InvalidArgument:
        return reference


def _encode_image(record: ContainerRecord, name: str) -> api_pb2.ImageSpec:
    return api_pb2.ImageSpec(
        image=name,
        annotations=record.config.image_annotations,
        user_specified_image=record.config.user_specified_image,
    )


def _encode_mount(mount: VolumeMount, images: Mapping[str, str]) -> api_pb2.Mount:
    """A mount as it was asked for; an image volume tells the id of its image too."""
    image = api_pb2.ImageSpec(image=mount.image, image_ref=images.get(mount.image, ""))
    return api_pb2.Mount(
        container_path=mount.container_path,
        host_path=mount.host_path,
        readonly=mount.readonly,
        selinux_relabel=mount.selinux_relabel,
        propagation=_PROPAGATIONS[mount.propagation],
        uidMappings=encode_id_mappings(mount.uid_mappings),
        gidMappings=encode_id_mappings(mount.gid_mappings),
        recursive_read_only=mount.recursive_read_only,
        image=image if mount.image else None,
        image_sub_path=mount.image_sub_path,
        mount_options=mount.mount_options,
    )


def _encode_user(user: ProcessUser) -> api_pb2.ContainerUser:
    linux = api_pb2.LinuxContainerUser(uid=user.uid, gid=user.gid, supplemental_groups=user.supplemental_groups)
    return api_pb2.ContainerUser(linux=linux)
