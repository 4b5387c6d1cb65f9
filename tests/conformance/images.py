"""The images of the tests, by name; ``publish`` builds and pushes them to a registry."""

from pathlib import Path

from support.images import Entry, ImageConfig, build_busybox, build_image, build_index, make_layer
from support.registry import RunningRegistry

PREFIX = "conformance"
WRITTEN = Entry(path="bin/.wh.nc"), Entry(path="extra/file", content=b"second layer\n")
CONFIGS = {
    "busybox:1": ImageConfig(),
    "user-name:1": ImageConfig(user="alice", working_dir="/home/alice"),
    "user-id:1": ImageConfig(user="1000"),
    "user-pair:1": ImageConfig(user="1000:51"),
    "entry:1": ImageConfig(
        entrypoint=("/bin/echo", "entry"), cmd=("cmd",), env=("PATH=/bin", "FROM=image", "BOTH=image")
    ),
    "stop:1": ImageConfig(stop_signal="SIGUSR1"),
    "volume:1": ImageConfig(volumes=("/data",)),
    "plain:1": ImageConfig(working_dir="/not/there"),
}


def publish(directory: Path, registry: RunningRegistry) -> str:
    """Build all images in a layout in the directory and push them; return the prefix of their names."""
    for name, config in CONFIGS.items():
        build_busybox(directory, name, config)
        registry.push(directory, name, f"{PREFIX}/{name}")
    one = build_busybox(directory, "layers:1", ImageConfig(labels={"layers": "2"}), extra=WRITTEN)
    other = build_busybox(directory, "other:1", ImageConfig(architecture="s390x"))
    for name in ("layers:1", "same:1", "same:2", "same:3"):
        registry.push(directory, "layers:1", f"{PREFIX}/{name}")
    build_index(directory, "index:1", [other, one])
    registry.push(directory, "index:1", f"{PREFIX}/index:1")
    zstd = build_image(directory, "zstd:1", [make_layer([Entry(path="file", content=b"z")])], compression="zstd")
    registry.push(directory, zstd.reference, f"{PREFIX}/zstd:1")
    pause = make_layer([Entry(path="pause", content=Path("/usr/bin/catatonit").read_bytes(), mode=0o755)])
    build_image(directory, "pause:1", [pause], ImageConfig(entrypoint=("/pause", "-P"), cmd=()))
    registry.push(directory, "pause:1", f"{PREFIX}/pause:1")
    return f"{registry.host}/{PREFIX}"
