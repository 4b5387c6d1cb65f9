"""NRI's descriptor against facts.txt, read off the published interface, and the stubs against their source."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from crinoid.plugins.extensions.nri.wire import nri_pb2, ttrpc_pb2

ROOT = Path(__file__).parents[6]
COMMITTED = ROOT / "plugins" / "extensions" / "nri" / "wire"
STUBS = ["nri_pb2.py", "nri_pb2.pyi", "ttrpc_pb2.py", "ttrpc_pb2.pyi"]
PACKAGE = ".nri.pkg.api.v1alpha1."
RENAMED = {"value Field 0 NONE": "value Field 0 None"}
"""Python can't say ``None`` for a number; names of enumerators are not on the wire."""


def read_facts() -> set[str]:
    lines = Path(__file__).with_name("facts.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def read_file() -> FileDescriptorProto:
    return FileDescriptorProto.FromString(nri_pb2.DESCRIPTOR.serialized_pb)


def describe_file(file: FileDescriptorProto) -> Iterator[str]:
    for message in file.message_type:
        yield from describe_message(message, "")
    for enum in file.enum_type:
        yield from describe_enum(enum, "")
    for service in file.service:
        yield f"service {service.name}"
        for method in service.method:
            ends = f"{method.input_type} {method.output_type}".replace(PACKAGE, "")
            yield f"rpc {service.name} {method.name} {ends}"


def describe_message(message: DescriptorProto, prefix: str) -> Iterator[str]:
    name = prefix + message.name
    yield f"message {name}"
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for field in message.field:
        yield f"field {name} {field.number} {field.name} {describe_type(field, entries)}"
    for enum in message.enum_type:
        yield from describe_enum(enum, f"{name}.")


def describe_type(field: FieldDescriptorProto, entries: dict[str, DescriptorProto]) -> str:
    entry = entries.get(field.type_name.rsplit(".", 1)[-1])
    if entry is not None:
        return f"map {','.join(name_type(half) for half in entry.field)}"
    return f"{'repeated' if field.label == field.LABEL_REPEATED else 'single'} {name_type(field)}"


def name_type(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return field.type_name.rsplit(".", 1)[-1]
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def describe_enum(enum: EnumDescriptorProto, prefix: str) -> Iterator[str]:
    yield f"enum {prefix}{enum.name}"
    for value in enum.value:
        line = f"value {prefix}{enum.name} {value.number} {value.name}"
        yield RENAMED.get(line, line)


def test_the_table_is_whole() -> None:
    kinds = [fact.split()[0] for fact in read_facts()]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert counts == {"service": 2, "rpc": 20, "message": 84, "field": 250, "enum": 9, "value": 94}


def test_nothing_of_the_interface_is_missing_and_nothing_is_there_beyond_it() -> None:
    file = read_file()
    assert (file.package, file.syntax, len(file.dependency)) == ("nri.pkg.api.v1alpha1", "proto3", 0)
    assert sorted(read_facts() ^ set(describe_file(file))) == []


def test_a_changed_number_is_noticed() -> None:
    file = read_file()
    next(message for message in file.message_type if message.name == "KeyValue").field[0].number = 3
    assert set(describe_file(file)) ^ read_facts() == {
        "field KeyValue 3 key single string",
        "field KeyValue 1 key single string",
    }


def test_ttrpc_messages_are_these_bytes() -> None:
    request = ttrpc_pb2.Request(service="a", method="b", payload=b"c", timeout_nano=1)
    assert request.SerializeToString() == b"\x0a\x01a\x12\x01b\x1a\x01c\x20\x01"
    response = ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=5, message="no"), payload=b"p")
    assert response.SerializeToString() == b"\x0a\x06\x08\x05\x12\x02no\x12\x01p"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    generate = runpy.run_path(str(ROOT / "tools" / "generate_wire.py"))["generate_nri"]
    return {path.name: path for path in generate(tmp_path_factory.mktemp("wire"))}


@pytest.mark.parametrize("name", STUBS)
def test_committed_stub_equals_a_fresh_one(fresh: dict[str, Path], name: str) -> None:
    assert fresh[name].read_bytes() == (COMMITTED / name).read_bytes(), f"{name} is stale: run `make proto`"


def test_no_other_stub_is_generated_or_committed(fresh: dict[str, Path]) -> None:
    assert sorted(fresh) == STUBS == sorted(path.name for path in COMMITTED.glob("*_pb2*.py*"))
