"""Arguments and answers of all hooks go through JSON and come back as they were."""

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api import errors
from crinoid.core.api.errors import CommandFailed, CrinoidError, DriverError, NotFound
from crinoid.core.api.hooks.conformance import hooks_of
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView, ExtensionHooks, PodView, PullView
from crinoid.core.api.hooks.network import NetworkHooks
from crinoid.core.api.hooks.runtime import RuntimeHooks
from crinoid.core.api.hooks.snapshotter import SnapshotterHooks
from crinoid.core.api.sessions import ExecSession
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata, VolumeMount
from crinoid.core.api.values.image import Descriptor, ImageReference, ResolvedImage
from crinoid.core.api.values.network import Attachment, NetworkRequest
from crinoid.core.api.values.pod import PodConfig, PodMetadata, PortMapping, Protocol
from crinoid.core.api.values.runtime import (
    ContainerHandle,
    ContainerRequest,
    ExecOutput,
    RuntimeTraits,
)
from crinoid.core.api.values.snapshot import LayerForm, LayerTarget, Mount, WhiteoutForm
from crinoid.core.api.values.stats import CgroupUsage
from crinoid.core.slots import values
from crinoid.core.slots.roles import ROLES

CONFIG = PodConfig(
    metadata=PodMetadata("a", "b", "c"), port_mappings=(PortMapping(80, protocol=Protocol.UDP),), labels={"x": "ü"}
)
HANDLE = ContainerHandle("c1", "p1", Path("/run/x"), "/crinoid/c1")
VIEW = ContainerView(
    "c1",
    PodView("p1", CONFIG, "runc", namespaces={"network": Path("/run/ns")}),
    ContainerConfig(
        metadata=ContainerMetadata("n"), envs=(("A", "\udcff\udc80"),), mounts=(VolumeMount(container_path="/x"),)
    ),
    "sha256:1",
    spec={"process": {"args": ["a", "\udc80"], "terminal": False}, "linux": {"n": None, "f": 1.5}},
)
DESCRIPTOR = Descriptor("a/b", "sha256:2", 3, {"k": "v"})


def there_and_back(kind: Any, value: object) -> object:
    return values.load(kind, json.loads(json.dumps(values.dump(kind, value))))


@pytest.mark.parametrize("role", ROLES)
def test_every_hook_has_types_that_json_can_hold(role: str) -> None:
    """A hook whose values can't be read by pydantic would be found by its first user only."""
    specification = ROLES[role].specification
    hooks = hooks_of(specification)
    assert hooks
    for hook in hooks:
        types = values.types_of(specification, hook)
        for kind in (*types.arguments.values(), types.answer):
            if not values.is_live(kind) and not values._live_fields(kind):
                values._adapter(kind)


@pytest.mark.parametrize(
    ("specification", "hook", "arguments"),
    [
        (ExtensionHooks, "adjust_container", {"container": VIEW}),
        (RuntimeHooks, "create", {"request": ContainerRequest(handle=HANDLE, spec=VIEW.spec, log_path=Path("/l"))}),
        (RuntimeHooks, "stats_many", {"handles": (HANDLE, HANDLE)}),
        (RuntimeHooks, "update_pod", {"resources": None, "overhead": None}),
        (NetworkHooks, "detach", {"request": NetworkRequest(pod_id="p", metadata=CONFIG.metadata, netns=None)}),
        (NetworkHooks, "attach", {"plan": {"links": ["a"], "n": {"x": 1}}}),
        (NetworkHooks, "collect_garbage", {"valid": ()}),
        (SnapshotterHooks, "create_snapshot", {"key": "k", "parent": None, "readonly": True}),
    ],
)
def test_arguments(specification: type, hook: str, arguments: dict[str, object]) -> None:
    written = json.loads(json.dumps(values.dump_arguments(specification, hook, arguments)))
    assert values.load_arguments(specification, hook, written) == arguments


@pytest.mark.parametrize(
    ("specification", "hook", "answer"),
    [
        (RuntimeHooks, "exec_sync", ExecOutput(1, b"\x00\xff", b"")),
        (RuntimeHooks, "traits", RuntimeTraits(artifact_types=frozenset({"a/b"}))),
        (RuntimeHooks, "stats_many", (CgroupUsage(timestamp_ns=1), None)),
        (RuntimeHooks, "start", None),
        (NetworkHooks, "plan", {"a": [1, None, {"b": "c"}]}),
        (NetworkHooks, "attach", Attachment(("10.0.0.1",), {"x": {"y": [True]}})),
        (SnapshotterHooks, "create_snapshot", (Mount("bind", "/x", ("ro",)),)),
        (SnapshotterHooks, "prepare_layer", LayerTarget("k", Path("/x"), WhiteoutForm.OVERLAY, form=LayerForm.TAR)),
        (SnapshotterHooks, "list_layers", (("a", None), ("b", "a"))),
        (ExtensionHooks, "adjust_container", ContainerAdjustment(envs=(("A", "\udcff"),), spec_patch={"a": None})),
        (ExtensionHooks, "adjust_container", None),
        (ExtensionHooks, "image_pulling", "fine"),
    ],
)
def test_answers(specification: type, hook: str, answer: object) -> None:
    written = json.loads(json.dumps(values.dump_answer(specification, hook, answer)))
    assert values.load_answer(specification, hook, written) == answer


def test_bytes_are_base64() -> None:
    image = ResolvedImage(DESCRIPTOR, b"\xff{}", DESCRIPTOR, b"{}")
    assert values.dump(ResolvedImage, image)["target_content"] == "_3t9"
    assert there_and_back(ResolvedImage, image) == image


def test_what_is_live_is_left_out_and_somebody_says_what_takes_its_place() -> None:
    class Documents:
        pass

    view = PullView(ImageReference.parse("busybox"), DESCRIPTOR, DESCRIPTOR, "mirror", Documents())  # type: ignore[arg-type]
    written = values.dump_arguments(ExtensionHooks, "image_pulling", {"image": view})
    assert "documents" not in written["image"]
    read = values.load_arguments(ExtensionHooks, "image_pulling", written, lambda kind: f"a {kind.__name__}")
    assert isinstance(read["image"], PullView)
    assert read["image"].reference == view.reference
    assert read["image"].documents == "a ImageDocuments"  # type: ignore[comparison-overlap]
    assert values.dump_arguments(ExtensionHooks, "connect", {"kernel": Documents()}) == {}
    assert values.load_arguments(ExtensionHooks, "connect", {}, lambda _: 1) == {"kernel": 1}
    for kind in (ExecSession, socket.socket, AsyncIterator[bytes]):
        assert values.is_live(kind)


def test_a_key_of_a_newer_writer_is_passed_over_and_nonsense_is_refused() -> None:
    assert values.load(Mount, {"type": "bind", "source": "/", "colour": "red"}) == Mount("bind", "/")
    with pytest.raises(ValueError, match="source"):
        values.load(Mount, {"type": "bind"})


def every_error() -> list[type[CrinoidError]]:
    return [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, CrinoidError)]


@pytest.mark.parametrize("kind", every_error())
def test_errors(kind: type[CrinoidError]) -> None:
    error = CommandFailed(("runc", "x"), 3, "no\n") if kind is CommandFailed else kind("no such thing")
    error.add_note("at noon")
    read = values.load_error(json.loads(json.dumps(values.dump_error(error))))
    assert type(read) is kind
    assert (read.message, read.grpc_status, read.reason) == (error.message, kind.grpc_status, kind.reason)
    if isinstance(read, CommandFailed):
        assert isinstance(error, CommandFailed)
        assert (read.command, read.exit_code, read.stderr) == (error.command, error.exit_code, error.stderr)


def test_an_error_of_a_drivers_own_class_keeps_status_and_reason() -> None:
    class Gone(NotFound):
        grpc_status = "DATA_LOSS"
        reason = "Gone"

    read = values.load_error(values.dump_error(Gone("x")))
    assert isinstance(read, NotFound)
    assert (read.grpc_status, read.reason, read.message) == ("DATA_LOSS", "Gone", "x")
    assert type(values.load_error({"class": "Path", "message": 3})) is DriverError
