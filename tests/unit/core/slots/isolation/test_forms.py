"""Values of the API there and back, as they travel to a driver in a process of its own."""

import dataclasses
import json
import typing
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import (
    BadAdjustment,
    CommandFailed,
    CrinoidError,
    DriverError,
    NotFound,
    RuntimeRefused,
)
from crinoid.core.api.hooks.conformance import hooks_of
from crinoid.core.api.hooks.extension import Kernel, PullView
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata, MountPropagation, VolumeMount
from crinoid.core.api.values.image import Descriptor, ResolvedImage
from crinoid.core.api.values.runtime import ContainerHandle, ContainerRequest, ContainerStatus, ExecOutput, RuntimeState
from crinoid.core.api.values.snapshot import FileDescriptor, Mount
from crinoid.core.slots.isolation.forms import Incoming, Outgoing, form_of, plain
from crinoid.core.slots.isolation.interfaces import Method
from crinoid.core.slots.isolation.wire_errors import KNOWN, read_error, write_error
from crinoid.core.slots.roles import ROLES


class NoObjects:
    def export(self, value: object, interface: Any, out: Outgoing) -> Any:
        raise AssertionError("no object is due")

    def adopt(self, named: Any, interface: Any, incoming: Incoming) -> object:
        raise AssertionError("no object is due")


def there_and_back(kind: Any, value: Any) -> Any:
    out = Outgoing(NoObjects())
    text = json.dumps(form_of(kind).write(value, out), default=plain)
    return form_of(kind).read(json.loads(text), Incoming(NoObjects(), memoryview(b"".join(out.pieces)), ()))


def read(kind: Any, written: Any) -> Any:
    return form_of(kind).read(written, Incoming(NoObjects(), memoryview(b"beside"), ()))


@pytest.mark.parametrize("role", ROLES)
def test_every_hook_of_every_role_can_travel(role: str) -> None:
    """One that could not would stop the start of every slot with ``isolation``."""
    for hook in hooks_of(ROLES[role].specification).values():
        method = Method.of(hook)
        assert [*method.parameters] == [*typing.get_type_hints(hook, include_extras=True)][:-1]


HANDLE = ContainerHandle("c", "p", Path("/b"), "/g")
VALUES = [
    (RuntimeState, RuntimeState(ContainerStatus.PAUSED, 7)),
    (ExecOutput, ExecOutput(1, b"\0\xff", b"")),
    (
        ContainerRequest,
        ContainerRequest(
            handle=HANDLE,
            spec={"process": {"args": ["a"], "n": 1.5}},
            log_path=Path("/l"),
            root_mounts=(Mount("bind", "/s", ("ro",), "t"),),
        ),
    ),
    (
        ContainerConfig,
        ContainerConfig(
            metadata=ContainerMetadata("n"),
            envs=(("A", "\udcff no UTF-8"),),
            mounts=(VolumeMount(container_path="/m", propagation=MountPropagation.BIDIRECTIONAL),),
        ),
    ),
    (ResolvedImage, ResolvedImage(Descriptor("t", "d", 1), b"{}", Descriptor("t", "d", 2, {"a": "b"}, ("u",)), b"")),
    (tuple[tuple[str, str | None], ...], (("a", None), ("b", "a"))),
    (Mapping[str, object], {"a": [1, {"b": None}]}),
    (frozenset[str], frozenset({"x"})),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=[str(kind)[:60] for kind, _ in VALUES])
def test_values_come_back_as_they_were(kind: Any, value: Any) -> None:
    assert there_and_back(kind, value) == value


def test_fields_at_their_default_may_be_left_out_and_unknown_ones_are_ignored() -> None:
    assert read(RuntimeState, {"status": "running", "of a later version": 1}) == RuntimeState(ContainerStatus.RUNNING)


@pytest.mark.parametrize(
    ("kind", "written", "words"),
    [
        (RuntimeState, {"pid": 1}, "RuntimeState without status"),
        (RuntimeState, {"status": "asleep"}, "status: returned str where ContainerStatus is due"),
        (RuntimeState, [], "returned list where RuntimeState is due"),
        (RuntimeState, {"status": "running", "pid": True}, "pid: returned bool where int is due"),
        (tuple[str, ...], ["a", 1], "returned int where str is due"),
        (tuple[str, str], ["a"], "returned list where tuple is due"),
        (str, None, "returned nothing where str is due"),
        (bytes, [0, 7], "names no bytes of its message"),
        (bytes, [-1, 2], "names no bytes of its message"),
        (bytes, "text", "names no bytes of its message"),
        (FileDescriptor, 0, "names no descriptor of its message"),
        (AsyncIterator[bytes], 5, "no object is due"),
    ],
)
def test_what_is_of_another_type_is_named(kind: Any, written: Any, words: str) -> None:
    with pytest.raises((DriverError, AssertionError), match=words):
        read(kind, written)


def test_an_answer_of_another_type_is_named_where_it_is_made() -> None:
    out = Outgoing(NoObjects())
    with pytest.raises(DriverError, match="returned dict where RuntimeState is due"):
        form_of(RuntimeState).write({"status": "running"}, out)
    with pytest.raises(DriverError, match="status: returned str where ContainerStatus is due"):
        form_of(RuntimeState).write(RuntimeState("running"), out)  # type: ignore[arg-type]


def test_a_type_that_can_not_travel_is_refused() -> None:
    with pytest.raises(TypeError, match="can't travel"):
        form_of(complex)


def test_live_objects_are_no_values() -> None:
    assert {field.name for field in dataclasses.fields(PullView)} >= {"documents"}
    with pytest.raises(AssertionError, match="no object is due"):
        form_of(Kernel).write(object(), Outgoing(NoObjects()))


class OfItsOwn(NotFound):
    """An error of a driver's own."""

    reason = "Lost"


@pytest.mark.parametrize("kind", [kind for kind in KNOWN.values() if kind is not CommandFailed])
def test_errors_of_the_tree_come_back(kind: type[CrinoidError]) -> None:
    back = read_error(json.loads(json.dumps(write_error(kind("a sentence")))))
    assert (type(back), str(back)) == (kind, "a sentence")


def test_errors_that_say_more_come_back() -> None:
    failed = read_error(write_error(CommandFailed(("runc", "x"), 3, "why")))
    assert isinstance(failed, CommandFailed)
    assert (failed.command, failed.exit_code, failed.stderr) == (("runc", "x"), 3, "why")
    assert isinstance(read_error(write_error(BrokenPipeError())), BrokenPipeError)
    assert len(KNOWN) == len({*KNOWN.values()}) > 20
    assert {RuntimeRefused, BadAdjustment} <= {*KNOWN.values()}


def test_an_error_of_a_drivers_own_counts_as_what_it_is_made_of() -> None:
    back = read_error(write_error(OfItsOwn("a sentence")))
    assert isinstance(back, NotFound)
    assert (back.reason, back.grpc_status, back.message) == ("Lost", "NOT_FOUND", "a sentence")


@pytest.mark.parametrize("reason", ["", "two lines\n", "Größe", "x" * 65, "-"])
def test_a_reason_that_no_answer_of_grpc_could_have_is_that_of_the_class(reason: str) -> None:
    """The client got INTERNAL, "Invalid metadata", and neither the status nor the message."""
    back = read_error({"reason": reason, "message": "a sentence", "is": "NotFound"})
    assert (type(back), str(back)) == (NotFound, "a sentence")


@pytest.mark.parametrize("told", [None, 5, {}, {"reason": 5, "message": "x"}, {"reason": "NotFound"}])
def test_what_is_no_error_is_one_of_the_driver(told: Any) -> None:
    assert type(read_error(told)) is DriverError
