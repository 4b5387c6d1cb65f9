"""Our descriptor against facts.txt, which was read off the published interface: nothing missing, nothing more."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

from crinoid.core.cri.wire import api_pb2, api_pb2_grpc

FACTS = Path(__file__).with_name("facts.txt")
PACKAGE = ".runtime.v1."


def read_facts() -> set[str]:
    lines = FACTS.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def read_file() -> FileDescriptorProto:
    return FileDescriptorProto.FromString(api_pb2.DESCRIPTOR.serialized_pb)


def describe_file(file: FileDescriptorProto) -> Iterator[str]:
    for message in file.message_type:
        yield from describe_message(message, "")
    for enum in file.enum_type:
        yield from describe_enum(enum, "")
    for service in file.service:
        yield from describe_service(service)


def describe_message(message: DescriptorProto, prefix: str) -> Iterator[str]:
    name = prefix + message.name
    yield f"message {name}"
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for field in message.field:
        yield f"field {name} {field.number} {field.name} {describe_type(field, entries)}"
    for nested in message.nested_type:
        if nested.name not in entries:
            yield from describe_message(nested, f"{name}.")
    for enum in message.enum_type:
        yield from describe_enum(enum, f"{name}.")
    for span in message.reserved_range:
        yield f"reserved {name} {span.start} {span.end}"


def describe_type(field: FieldDescriptorProto, entries: dict[str, DescriptorProto]) -> str:
    entry = entries.get(field.type_name.rsplit(".", 1)[-1])
    if entry is not None:
        words = ["map", ",".join(name_type(half) for half in entry.field)]
    elif field.label == FieldDescriptorProto.LABEL_REPEATED:
        words = ["repeated", name_type(field)]
    else:
        words = ["single", name_type(field)]
    return " ".join(words + describe_options(field))


def describe_options(field: FieldDescriptorProto) -> list[str]:
    options = sorted(option.name for option, value in field.options.ListFields() if value)
    return options + ["oneof"] * field.HasField("oneof_index")


def name_type(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return field.type_name.removeprefix(PACKAGE)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def describe_enum(enum: EnumDescriptorProto, prefix: str) -> Iterator[str]:
    yield f"enum {prefix}{enum.name}"
    for value in enum.value:
        yield f"value {prefix}{enum.name} {value.number} {value.name}"


def describe_service(service: ServiceDescriptorProto) -> Iterator[str]:
    yield f"service {service.name}"
    for method in service.method:
        assert not method.client_streaming
        ends = f"{method.input_type} {method.output_type}".replace(PACKAGE, "")
        kind = "stream" if method.server_streaming else "unary"
        yield f"rpc {service.name} {method.name} {ends} {kind}"


def test_the_table_is_whole() -> None:
    kinds = [fact.split()[0] for fact in read_facts()]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert counts == {"service": 2, "rpc": 43, "message": 175, "field": 478, "enum": 11, "value": 95}


def test_package_and_syntax() -> None:
    file = read_file()
    assert (file.package, file.syntax) == ("runtime.v1", "proto3")
    assert not file.dependency


def test_nothing_of_the_interface_is_missing() -> None:
    assert sorted(read_facts() - set(describe_file(read_file()))) == []


def test_nothing_is_there_beyond_the_interface() -> None:
    assert sorted(set(describe_file(read_file())) - read_facts()) == []


def test_a_changed_field_is_noticed() -> None:
    file = read_file()
    config = next(message for message in file.message_type if message.name == "AuthConfig")
    next(field for field in config.field if field.name == "password").options.debug_redact = False
    assert set(describe_file(file)) ^ read_facts() == {
        "field AuthConfig 2 password single string",
        "field AuthConfig 2 password single string debug_redact",
    }


class RecordingChannel:
    """Stands in for a grpc channel: notes which call a stub prepares instead of preparing it."""

    def __init__(self) -> None:
        self.calls: set[tuple[str, str]] = set()

    def unary_unary(self, path: str, **_codecs: object) -> None:
        self.calls.add((path, "unary"))

    def unary_stream(self, path: str, **_codecs: object) -> None:
        self.calls.add((path, "stream"))


@pytest.mark.parametrize("service", ["RuntimeService", "ImageService"])
def test_stub_calls_the_full_names(service: str) -> None:
    rpcs = [fact.split() for fact in read_facts() if fact.startswith(f"rpc {service} ")]
    channel = RecordingChannel()
    getattr(api_pb2_grpc, f"{service}Stub")(channel)
    assert channel.calls == {(f"/runtime.v1.{service}/{rpc[2]}", rpc[5]) for rpc in rpcs}
