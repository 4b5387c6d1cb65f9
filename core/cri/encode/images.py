"""Images, and the disk space they take."""

from collections.abc import Iterable

from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.core.cri.encode.texts import clean
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.queries import FilesystemReport
from crinoid.core.state.records import ImageRecord


def encode_image(record: ImageRecord, user: tuple[int | None, str]) -> api_pb2.Image:
    """An image with all its names; ``user`` is the default user as a uid or, where it is no number, a name."""
    uid, username = user
    return api_pb2.Image(
        id=record.id,
        repo_tags=record.tags,
        repo_digests=record.digests,
        size=max(record.size_bytes, 1),  # 0 would read as "not there"
        uid=None if uid is None else api_pb2.Int64Value(value=uid),
        username=clean(username) if uid is None else "",
        spec=api_pb2.ImageSpec(image=next(iter((*record.tags, *record.digests)), record.id)),
        pinned=record.pinned,
    )


def encode_image_fs_info(
    images: Iterable[FilesystemReport], containers: Iterable[FilesystemReport]
) -> api_pb2.ImageFsInfoResponse:
    """The answer to ImageFsInfo."""
    return api_pb2.ImageFsInfoResponse(
        image_filesystems=[_encode_report(report) for report in images],
        container_filesystems=[_encode_report(report) for report in containers],
    )


def encode_disk_usage(timestamp_ns: int, mountpoint: str, usage: DiskUsage) -> api_pb2.FilesystemUsage:
    """Space and inodes in use on a file system."""
    return api_pb2.FilesystemUsage(
        timestamp=timestamp_ns,
        fs_id=api_pb2.FilesystemIdentifier(mountpoint=mountpoint),
        used_bytes=api_pb2.UInt64Value(value=usage.used_bytes),
        inodes_used=api_pb2.UInt64Value(value=usage.inodes),
    )


def _encode_report(report: FilesystemReport) -> api_pb2.FilesystemUsage:
    return encode_disk_usage(report.timestamp_ns, report.mountpoint, report.usage)
