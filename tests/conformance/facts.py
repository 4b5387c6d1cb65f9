"""``fields.toml``, read: what crinoid does with each RPC and each field, and the test that shows it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor import Descriptor

from crinoid.core.cri.wire import api_pb2

FILE = Path(__file__).with_name("fields.toml")
STATES = ("honoured", "refused", "meaningless")


@dataclass(frozen=True, slots=True)
class Fact:
    """One line: ``test`` is a path below ``tests``, with the function's name after ``::`` or without; or empty."""

    state: str
    test: str
    note: str = ""


def read() -> tuple[dict[str, Fact], dict[str, Fact]]:
    """Return the facts of RPCs (``Service.Rpc``) and of fields (``Message.field``, some with ``*``)."""
    tables = tomllib.loads(FILE.read_text())
    fields = {name: _fact(values) for name, values in tables.pop("fields").items()}
    rpcs = {f"{service}.{rpc}": _fact(values) for service, lines in tables.items() for rpc, values in lines.items()}
    return rpcs, fields


def _fact(values: list[str]) -> Fact:
    state, test, *note = values
    if test and "/" not in test:
        test = f"conformance/{test}"
    return Fact(state, test, *note)


def all_rpcs() -> list[str]:
    """Return the API's RPCs, as the facts name them."""
    services = api_pb2.DESCRIPTOR.services_by_name.values()
    return [f"{service.name}.{rpc.name}" for service in services for rpc in service.methods]


def all_fields() -> list[str]:
    """Return all fields of all messages of the API."""
    return [f"{message.name}.{field.name}" for message in _messages() for field in message.fields]


def _messages() -> list[Descriptor]:
    return list(api_pb2.DESCRIPTOR.message_types_by_name.values())


def fact_of(field: str, facts: dict[str, Fact]) -> Fact | None:
    """Return what is known of a field: its own line, else that of its message."""
    return facts.get(field) or facts.get(f"{field.partition('.')[0]}.*")
