"""Documents for programs, held against what protobuf itself says of the API."""

import json
from collections.abc import Iterator

import pytest
import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from crinoid.core.cli.ctl.json_documents import MAP_FIELDS, make_status, name_field, print_document, to_camel
from crinoid.core.cri.wire import api_pb2


def walk(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from walk(field.message_type, seen)


def fields_of_answers() -> Iterator[FieldDescriptor]:
    seen: set[str] = set()
    for service in api_pb2.DESCRIPTOR.services_by_name.values():
        for rpc in service.methods:
            yield from walk(rpc.output_type, seen)


def test_every_map_of_an_answer_keeps_its_keys() -> None:
    maps = {f.name for f in fields_of_answers() if f.message_type and f.message_type.GetOptions().map_entry}
    assert maps == MAP_FIELDS


def test_names_are_those_of_protobuf() -> None:
    names = {(field.name, field.json_name) for field in fields_of_answers()}
    assert {(name, name_field(name)) for name, _ in names} == names
    assert name_field("CDI_devices") == "CDIDevices"


def test_keys_of_labels_are_data() -> None:
    answer = {"items": [{"created_at": "1", "labels": {"a_b": "c_d"}, "linux": {"run_as_user": {"value": "1"}}}]}
    assert to_camel(answer) == {
        "items": [{"createdAt": "1", "labels": {"a_b": "c_d"}, "linux": {"runAsUser": {"value": "1"}}}]
    }


def test_a_status_has_readable_times_and_unfolded_info() -> None:
    info = {"info": '{"a_b": [1]}', "list": "[1, 2]", "text": '"OK"', "broken": "{no"}
    document = make_status({"id": "x", "created_at": "0", "exit_code": 3}, info)
    assert document == {
        "status": {"id": "x", "createdAt": "0001-01-01T00:00:00Z", "exitCode": 3},
        "info": {"a_b": [1]},
        "list": [1, 2],
        "text": "OK",
        "broken": "{no",
    }


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_both_forms_say_the_same(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = {"size": "12", "on": "yes", "empty": {}, "list": [True, None, "é"]}
    print_document(document, form)
    text = capsys.readouterr().out
    assert (json.loads(text) if form == "json" else yaml.safe_load(text)) == document
