"""Where a container's checkpoint comes from when CreateContainer is given one, and what becomes of it.

``assembly`` asks ``find`` whether an image name stands for a checkpoint: the path of an archive on this node, or an
image whose manifest has a checkpoint's annotation (a layer with the archive's parts). The root file system is brought
to the state that it had; the processes go on when the container is started.
"""

import asyncio
import dataclasses
import functools
import gzip
import hashlib
import io
import logging
import os
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter

from crinoid.core.api.errors import CorruptContent, FailedPrecondition, InvalidArgument, NotFound, Unsupported
from crinoid.core.api.frozen import dataclass
from crinoid.core.api.linux import files, mount
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.values.checkpoint import RestoreRequest
from crinoid.core.api.values.container import ContainerConfig
from crinoid.core.api.values.runtime import ContainerProcess, ContainerRequest
from crinoid.core.api.values.snapshot import WhiteoutForm
from crinoid.core.config.models import Config
from crinoid.core.lifecycle import userns
from crinoid.core.lifecycle.checkpoint import archive
from crinoid.core.lifecycle.images.service import ImageService
from crinoid.core.lifecycle.images.unpack.layer import UnpackRequest, unpack_alone
from crinoid.core.lifecycle.imagevolumes import checkpoint_key
from crinoid.core.lifecycle.resources import Resources
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.records import ContainerRecord, ImageRecord, PodRecord

LOG = logging.getLogger(__name__)
REQUEST_FILE = "restore.json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found and not looked into: an archive or an image. ``exact`` is that of RestorePod: the
    container asked for must be the one that was checkpointed."""

    name: str
    archive: Path | None = None
    image: ImageRecord | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint whose parts lie in ``folder``: ``base`` is the image that its container was made of."""

    name: str
    folder: Path
    base: ImageRecord
    process: archive.ProcessDump
    exact: bool


class CheckpointSources:
    """Finds, opens and applies checkpoints for containers that are being made."""

    def __init__(self, config: Config, images: ImageService, resources: Resources) -> None:
        self._config = config
        self._images = images
        self._resources = resources

    def find(self, config: ContainerConfig) -> Checkpoint | None:
        """Return the checkpoint that an image name stands for; ``None``: it is a plain image's, or nobody's."""
        if config.image.startswith("/"):
            path = Path(config.image)
            if not path.is_file():
                raise NotFound(f"image {config.image!r}: there is no checkpoint archive of this name")
            return Checkpoint(config.image, archive=path)
        image = self._images.find(config.image)
        if image is None or not archive.ANNOTATIONS & image.annotations.keys():
            return None
        return Checkpoint(config.image, image=image)

    async def open(
        self, found: Checkpoint, owner: str, pod: PodRecord, slot: RuntimeSlot, snapshotter: SnapshotterSlot
    ) -> OpenedCheckpoint:
        """Make the parts of a checkpoint readable for the container ``owner``.

        Raises Unsupported where nothing can be restored here, CorruptContent for what is no checkpoint, NotFound when
        its base image is not on this node.
        """
        if userns.wanted_by(pod.config) is not None:
            raise Unsupported(f"checkpoint {found.name}: nothing can be restored in a pod with a user namespace")
        await slot.check_checkpoint()
        folder = self._config.root / "checkpoints" / owner
        await self._resources.make_directory(owner, folder, mode=0o700)
        if found.archive is not None:
            source, given_up = found.archive, threading.Event()
            await call_in_thread(lambda: archive.unpack(source, folder, given_up), given_up.set)
        else:
            assert found.image is not None, "a checkpoint is an archive or an image"
            await self._mount(owner, found.image, snapshotter, folder)
        await asyncio.to_thread(archive.check_folder, folder, found.name)
        dump = archive.read_dump(archive.ContainerDump, folder / archive.CONFIG, found.name)
        spec = archive.read_dump(archive.SpecDump, folder / archive.SPEC, found.name)
        return OpenedCheckpoint(found.name, folder, self._base(found.name, dump), spec.process, found.exact)

    async def apply(self, opened: OpenedCheckpoint, rootfs: Path) -> None:
        """Bring a mounted root file system, of the base image alone, to the state that it had: in a confined child."""
        deleted = await asyncio.to_thread(archive.read_deleted, opened.folder, opened.name)
        if deleted:
            hidden = opened.folder.with_name(f"{opened.folder.name}.deleted")
            try:
                await asyncio.to_thread(_write_whiteouts, hidden, deleted)
                await _unpack(hidden, rootfs)
            finally:
                await asyncio.to_thread(hidden.unlink, missing_ok=True)
        if (opened.folder / archive.ROOT_DIFF).exists():
            await _unpack(opened.folder / archive.ROOT_DIFF, rootfs)

    def annotate(self, opened: OpenedCheckpoint, config: ContainerConfig) -> ContainerConfig:
        """Return what the container is to be: where the request names no command, that of the checkpoint counts."""
        if config.tty != opened.process.terminal:
            raise InvalidArgument(f"checkpoint {opened.name}: its container had tty {opened.process.terminal}")
        if opened.exact or config.command or config.args:
            return config
        return dataclasses.replace(
            config, command=opened.process.args, working_dir=config.working_dir or opened.process.cwd
        )

    async def _mount(self, owner: str, image: ImageRecord, slot: SnapshotterSlot, target: Path) -> None:
        chain_id = await self._images.ensure_unpacked(image, slot.name)
        mounts = await self._resources.create_snapshot(owner, checkpoint_key(owner), slot, chain_id, readonly=True)
        await self._resources.mount(owner, mounts, target)

    def _base(self, name: str, dump: archive.ContainerDump) -> ImageRecord:
        for reference in filter(None, (dump.image_ref, dump.image_name, dump.image)):
            if (found := self._images.find(reference)) is not None:
                return found
        wanted = dump.image_name or dump.image or dump.image_ref or "that it does not name"
        raise NotFound(f"checkpoint {name} stands on image {wanted}, which is not on this node: pull it")


def check_same(opened: OpenedCheckpoint, image: ImageRecord, process: dict[str, object]) -> None:
    """Raise InvalidArgument where the container asked for is not the one that was checkpointed (RestorePod)."""
    was, name = opened.process, opened.name
    if image.id != opened.base.id:
        raise InvalidArgument(f"checkpoint {name} is of image {opened.base.id}, and {image.id} is asked for")
    now = archive.ProcessDump.model_validate(process)
    for field in ("args", "cwd", "user"):
        if getattr(now, field) != getattr(was, field):
            raise InvalidArgument(
                f"checkpoint {name}: the container's {field} was {getattr(was, field)}, not {getattr(now, field)}"
            )
    changed = sorted(_environment(was).items() ^ _environment(now).items())
    if changed:
        raise InvalidArgument(f"checkpoint {name}: the container's environment differs in {changed[0][0]}")


def write_request(bundle: Path, request: ContainerRequest) -> ContainerProcess:
    """Keep what ``restore`` needs until the container is started; no process is there yet."""
    files.write_atomically(bundle / REQUEST_FILE, _request_codec().dump_json(request))
    return ContainerProcess(0)


async def restore(record: ContainerRecord, slot: RuntimeSlot, resources: Resources, limit_s: float) -> ContainerProcess:
    """Let the processes of a created container go on. Raises what the runtime raises; then nothing of them is left."""
    assert record.checkpoint is not None, "the container is no restored one"
    try:
        request = _request_codec().validate_json((record.handle.bundle / REQUEST_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"container {record.id}: what to restore can't be read: {error}") from error
    spec = await asyncio.to_thread(archive.read_dump, archive.SpecDump, record.checkpoint / archive.SPEC, record.id)
    asked = RestoreRequest(
        container=request,
        images=record.checkpoint / archive.IMAGES,
        timeout_s=limit_s,
        former_cgroup=spec.linux.cgroup,
    )
    process = await resources.restore_container(record.id, slot, asked)
    await asyncio.to_thread(_drop_images, record.checkpoint)
    return process


def _drop_images(folder: Path) -> None:
    """Give back the room that the memory of the processes took, unless an image holds it. The rest goes with the
    container; so does this, where it fails."""
    if not mount.mountpoints(folder):
        try:
            files.remove_tree(folder / archive.IMAGES)
        except OSError as error:
            LOG.warning("%s is not needed any more, but could not be removed: %s", folder / archive.IMAGES, error)


def _environment(process: archive.ProcessDump) -> dict[str, str]:
    """The variables but for the host name, which is the new pod's."""
    pairs = (entry.partition("=")[::2] for entry in process.env)
    return {name: value for name, value in pairs if name != "HOSTNAME"}


def _write_whiteouts(target: Path, deleted: Iterable[str]) -> None:
    """Write a layer that deletes; its names are checked by whoever unpacks it."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as layer:
        for path in deleted:
            folder, _, name = path.strip("/").rpartition("/")
            if not name:
                raise CorruptContent(f"{archive.DELETED} names {path!r}, which can't be deleted")
            layer.addfile(tarfile.TarInfo(f"{folder}/.wh.{name}".lstrip("/")), io.BytesIO())


async def _unpack(layer: Path, rootfs: Path) -> None:
    request = UnpackRequest(
        blob=layer,
        media_type=_LAYER,
        target=rootfs,
        whiteouts=WhiteoutForm.DELETE,
        expected_diff_id=await asyncio.to_thread(_diff_id, layer),
        sync=False,
    )
    await unpack_alone(request)


def _diff_id(layer: Path) -> str:
    with layer.open("rb") as file:
        packed = os.pread(file.fileno(), 2, 0) == _GZIP
        with gzip.GzipFile(fileobj=file) if packed else file as content:
            try:
                return "sha256:" + hashlib.file_digest(content, "sha256").hexdigest()
            except (gzip.BadGzipFile, EOFError) as error:
                raise CorruptContent(f"{layer.name} is damaged: {error}") from error


@functools.cache
def _request_codec() -> TypeAdapter[ContainerRequest]:
    """Make it when it is needed: it takes milliseconds, and few nodes restore containers."""
    return TypeAdapter(ContainerRequest)
