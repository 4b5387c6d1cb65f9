"""Where a container's checkpoint comes from when CreateContainer is given one, and what becomes of it.

``builder`` asks ``find`` whether an image name stands for a checkpoint: the path of an archive on this node, or an
image whose manifest has a checkpoint's annotation (a layer with the archive's parts). The root file system is brought
to the state that it had; the processes go on when the container is started.
"""

import asyncio
import dataclasses
import functools
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import FileIO
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported
from crinoid.core.api.linux import files, mount
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.values.checkpoint import RestoreRequest
from crinoid.core.api.values.container import ContainerConfig
from crinoid.core.api.values.runtime import ContainerProcess, ContainerRequest
from crinoid.core.api.values.snapshot import WhiteoutForm
from crinoid.core.config.models import Config
from crinoid.core.lifecycle.checkpoints import archive
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.images.unpack.layer import UnpackRequest, unpack_alone
from crinoid.core.lifecycle.resources import user_namespaces
from crinoid.core.lifecycle.resources.ownership import checkpoint_key
from crinoid.core.lifecycle.resources.resources import Resources
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.records import ContainerRecord, ImageRecord, PodRecord

LOG = logging.getLogger(__name__)
REQUEST_FILE = "restore.json"
_SHOWN = 500
_LAYER = "application/vnd.oci.image.layer.v1.tar"


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
    """A checkpoint whose parts lie in ``directory``: ``base`` is the image that its container was made of."""

    name: str
    directory: Path
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
        """Return the checkpoint that an image name stands for; ``None``: it is a plain image's, or nobody's.

        Raises FailedPrecondition for a checkpoint image that the configuration does not allow. An archive's path needs
        no such leave: only who may use the CRI socket can name one, as the kubelet takes no path for an image.
        """
        if config.image.startswith("/"):
            return Checkpoint(config.image, archive=Path(config.image))
        image = self._images.find(config.image)
        if image is None or not archive.ANNOTATIONS & image.annotations.keys():
            return None
        names = (*image.tags, *image.digests)
        allowed = self._config.pods.checkpoint_images
        if not any(fnmatchcase(name, pattern) for name in names for pattern in allowed):
            raise FailedPrecondition(
                f"image {config.image!r} is a checkpoint, and what is restored from one chooses its own user, "
                "capabilities and mounts: to trust it, name it in pods.checkpoint_images"
            )
        return Checkpoint(config.image, image=image)

    async def open(
        self, found: Checkpoint, owner: str, pod: PodRecord, slot: RuntimeSlot, snapshotter: SnapshotterSlot
    ) -> OpenedCheckpoint:
        """Make the parts of a checkpoint readable for the container ``owner``.

        Raises Unsupported where nothing can be restored here, CorruptContent for what is no checkpoint,
        ResourceExhausted for one beyond the limits, NotFound when it or its base image is not on this node.
        """
        if user_namespaces.wanted_by(pod.config) is not None:
            raise Unsupported(f"checkpoint {found.name}: nothing can be restored in a pod with a user namespace")
        await slot.check_checkpoint()
        directory = self._config.root / "checkpoints" / owner
        await self._resources.make_directory(owner, directory)
        if found.archive is not None:
            await unpack_archive(found.archive, directory, self._config)
        else:
            assert found.image is not None, "a checkpoint is an archive or an image"
            chain_id = await self._images.ensure_unpacked(found.image, snapshotter.name)
            key = checkpoint_key(owner)
            mounts = await self._resources.create_snapshot(owner, key, snapshotter, chain_id, readonly=True)
            await self._resources.mount(owner, mounts, directory)
        await asyncio.to_thread(archive.check_directory, directory, found.name)
        dump = await asyncio.to_thread(archive.read_dump, archive.ContainerDump, directory / archive.CONFIG, found.name)
        spec = await asyncio.to_thread(archive.read_dump, archive.SpecDump, directory / archive.SPEC, found.name)
        # The id first: a name may mean another image by now, whose files the differences don't fit.
        for reference in filter(None, (dump.image_ref, dump.image_name, dump.image)):
            if (base := self._images.find(reference)) is not None:
                return OpenedCheckpoint(found.name, directory, base, spec.process, found.exact)
        wanted = dump.image_name or dump.image or dump.image_ref or "that it does not name"
        raise NotFound(f"checkpoint {found.name} stands on image {wanted}, which is not on this node: pull it")

    async def apply(self, opened: OpenedCheckpoint, rootfs: Path) -> None:
        """Bring a mounted root file system, of the base image alone, to the state that it had: in confined children,
        first what was deleted, then what was changed."""
        forms: tuple[tuple[str, Literal["layer", "deleted"]], ...]
        forms = ((archive.DELETED, "deleted"), (archive.ROOT_DIFF, "layer"))
        for part, form in forms:
            if (opened.directory / part).exists():
                name = f"checkpoint {opened.name}, {part}"
                request = _request(opened.directory / part, rootfs, name, self._config)
                most = dict(archive.PARTS)[part] or request.max_bytes
                await unpack_alone(dataclasses.replace(request, form=form, max_bytes=most))

    def annotate(self, opened: OpenedCheckpoint, config: ContainerConfig) -> ContainerConfig:
        """Return what the container is to be: where the request names no command, that of the checkpoint counts."""
        if config.tty != opened.process.terminal:
            raise InvalidArgument(f"checkpoint {opened.name}: its container had tty {opened.process.terminal}")
        if opened.exact or config.command or config.args:
            return config
        return dataclasses.replace(
            config, command=opened.process.args, working_dir=config.working_dir or opened.process.cwd
        )


def check_same(opened: OpenedCheckpoint, image: ImageRecord, process: dict[str, object]) -> None:
    """Raise InvalidArgument where the container asked for is not the one that was checkpointed (RestorePod)."""
    was, name = opened.process, opened.name
    if image.id != opened.base.id:
        raise InvalidArgument(f"checkpoint {name} is of image {opened.base.id}, and {image.id} is asked for")
    now = archive.ProcessDump.model_validate(process)
    for field in ("args", "cwd", "user"):
        if getattr(now, field) != getattr(was, field):
            then, asked = _shown(getattr(was, field)), _shown(getattr(now, field))
            raise InvalidArgument(f"checkpoint {name}: the container's {field} was {then}, not {asked}")
    changed = sorted(_environment(was).items() ^ _environment(now).items())
    if changed:
        raise InvalidArgument(f"checkpoint {name}: the container's environment differs in {_shown(changed[0][0])}")


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


def _drop_images(directory: Path) -> None:
    """Give back the room that the memory of the processes took, unless an image holds it. The rest goes with the
    container; so does this, where it fails."""
    if not mount.mountpoints(directory):
        try:
            files.remove_tree(directory / archive.IMAGES)
        except OSError as error:
            LOG.warning("%s is not needed any more, but could not be removed: %s", directory / archive.IMAGES, error)


def _shown(value: object) -> str:
    """Write a value for a message; megabytes of a stranger's arguments are nobody's reading."""
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _environment(process: archive.ProcessDump) -> dict[str, str]:
    """The variables but for the host name, which is the new pod's."""
    pairs = (entry.partition("=")[::2] for entry in process.env)
    return {name: value for name, value in pairs if name != "HOSTNAME"}


async def unpack_archive(source: Path, directory: Path, config: Config) -> None:
    """Unpack the parts of an archive that are known into an empty directory; what else it has is passed over.

    In a confined child, as a layer. Raises CorruptContent for what is no such archive, ResourceExhausted for one beyond
    the limits, Unsupported, NotFound, InvalidArgument where it can't be read, DeadlineExceeded.
    """
    request = _request(source, directory, f"checkpoint archive {source}", config)
    with ExitStack() as opened:
        # By the thread, so that it is closed as well where the caller is cancelled before it has the file.
        file = await call_in_thread(lambda: opened.enter_context(_open_archive(source)))
        request = dataclasses.replace(request, form="parts", parts=archive.PARTS, max_entries=archive.MAX_MEMBERS)
        await unpack_alone(dataclasses.replace(request, blob_fd=file.fileno()))


def _request(blob: Path, target: Path, name: str, config: Config) -> UnpackRequest:
    return UnpackRequest(
        blob=blob,
        media_type=_LAYER,
        target=target,
        whiteouts=WhiteoutForm.DELETE,
        expected_diff_id="",
        max_bytes=config.pods.checkpoint_max_bytes,
        keep_free_percent=config.images.keep_free_percent,
        sync=False,
        timeout_s=config.pods.checkpoint_timeout_s,
        name=name,
    )


def _open_archive(path: Path) -> FileIO:
    """Open an archive that anybody may have named. Raises NotFound, and InvalidArgument for what is no plain file."""
    try:
        return files.open_regular(path)
    except FileNotFoundError as error:
        raise NotFound(f"image {str(path)!r}: there is no checkpoint archive of this name") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidArgument(f"image {str(path)!r}: the checkpoint archive can't be read: {reason}") from error


@functools.cache
def _request_codec() -> TypeAdapter[ContainerRequest]:
    """Make it when it is needed: it takes milliseconds, and few nodes restore containers."""
    return TypeAdapter(ContainerRequest)
