"""The contract of the snapshotter role, applied to our own drivers."""

from crinoid.core.api.host import Host
from crinoid.core.api.testing.snapshotters import SnapshotterContract
from crinoid.plugins.snapshotters.copying import Reflink
from crinoid.plugins.snapshotters.erofs.driver import ErofsConfig, ErofsSnapshotter
from crinoid.plugins.snapshotters.native import NativeConfig, NativeSnapshotter
from crinoid.plugins.snapshotters.overlay import OverlayConfig, OverlaySnapshotter
from support.layer_forms import BlobSnapshotter, TarSnapshotter


class TestOverlay(SnapshotterContract):
    def make_driver(self, host: Host) -> object:
        return OverlaySnapshotter(OverlayConfig(), host)


class TestOverlayWithOptions(SnapshotterContract):
    """As a site may set it: elsewhere, and with options of its own."""

    def make_driver(self, host: Host) -> object:
        options = ("redirect_dir=nofollow", "xino=off")
        config = OverlayConfig(root=host.state_dir / "else where, with: odd name", mount_options=options)
        return OverlaySnapshotter(config, host)


class TestErofs(SnapshotterContract):
    def make_driver(self, host: Host) -> object:
        return ErofsSnapshotter(ErofsConfig(), host)


class TestArchives(SnapshotterContract):
    """A driver that takes layers as uncompressed archives."""

    def make_driver(self, host: Host) -> object:
        return TarSnapshotter(OverlayConfig(), host)


class TestBlobs(SnapshotterContract):
    """A driver that takes layers as they come."""

    def make_driver(self, host: Host) -> object:
        return BlobSnapshotter(OverlayConfig(), host)


class TestNative(SnapshotterContract):
    def make_driver(self, host: Host) -> object:
        return NativeSnapshotter(NativeConfig(), host)


class TestNativeWithoutReflink(SnapshotterContract):
    def make_driver(self, host: Host) -> object:
        return NativeSnapshotter(NativeConfig(reflink=Reflink.NEVER), host)
