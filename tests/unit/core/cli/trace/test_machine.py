"""The machine that is none: nothing that lifecycle asks of the kernel by its calls reaches it."""

from pathlib import Path

from crinoid.core.api.linux.idmaps import IdMaps
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.cli.trace.machine import FakeMachine
from crinoid.core.lifecycle.resources.host_calls import HostCalls
from crinoid.core.lifecycle.resources.resources import mounts_at


def test_every_call_has_its_fake() -> None:
    calls = {name for name in vars(HostCalls) if not name.startswith("_")}
    assert calls - vars(FakeMachine).keys() == set()


def test_roots_of_pods_with_user_namespaces_are_noted(tmp_path: Path) -> None:
    """A replay needs no root, and a mount of root's would stay on the laptop."""
    machine, pin = FakeMachine(), tmp_path / "user"
    pin.touch()
    mounts_at([Mount("bind", str(tmp_path))], tmp_path / "rootfs", IdMaps((), (), pin)).make(machine)
    assert machine.mounts == [tmp_path / "rootfs"]
