"""The format on disk: it does not change by chance, and what earlier versions wrote is read for good."""

import dataclasses
import enum
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.runtime import ContainerHandle, PodSandbox
from crinoid.core.state import bodies

GOLDEN = Path(__file__).with_name("golden")
VERSIONS = sorted(int(path.stem.partition("-")[2]) for path in GOLDEN.glob("records-*.jsonl"))
VALUES: Any = {"handle": ContainerHandle, "request": NetworkRequest, "sandbox": PodSandbox}


def golden(version: int) -> list[dict[str, str]]:
    """Records that this version of the format wrote; never to be changed."""
    return [json.loads(line) for line in (GOLDEN / f"records-{version}.jsonl").read_text().splitlines()]


def written_again(row: dict[str, str]) -> Any:
    if row["table"] == "ledger":
        return bodies.dump_value(bodies.parse_value(VALUES[row["id"]], json.loads(row["body"])))
    return json.loads(bodies.dump(bodies.parse(row["table"], row["id"], row["body"])))


def test_every_version_has_golden_records() -> None:
    assert list(range(1, bodies.VERSION + 1)) == VERSIONS
    assert sorted(bodies.UPGRADES) == VERSIONS[:-1]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_version_wrote_is_what_this_one_would_write(version: int) -> None:
    """So a field that gets another name, type or meaning on disk fails here: it needs a new version, and an upgrade."""
    for old, new in zip(golden(version), golden(bodies.VERSION), strict=True):
        again, due = written_again(old), json.loads(new["body"])
        for later in due.keys() - json.loads(old["body"]).keys() - {"v"}:  # a field with a default came with it
            assert not again.pop(later, None)
            del due[later]
        assert again == due


def test_the_golden_records_have_every_field_with_a_value_of_its_own() -> None:
    seen: dict[type, set[str]] = {}

    def look(found: object) -> None:
        if isinstance(found, BaseModel):
            for name, field in type(found).model_fields.items():
                if getattr(found, name) != field.get_default(call_default_factory=True):
                    seen.setdefault(type(found), set()).add(name)
                look(getattr(found, name))
        elif isinstance(found, tuple):
            for one in found:
                look(one)

    for row in golden(bodies.VERSION):
        body = json.loads(row["body"])
        cls = bodies._BODIES[VALUES[row["id"]]] if row["table"] == "ledger" else bodies._KINDS[row["table"]]
        look(cls.model_validate(body))
    lacking = {(cls.__name__, name) for cls in bodies.PAIRS for name in set(cls.model_fields) - seen[cls] - {"v"}}
    assert lacking == set()


@pytest.mark.parametrize("body", bodies.PAIRS, ids=lambda body: body.__name__)
def test_every_field_of_a_value_is_kept_or_named_as_left_out(body: Any) -> None:
    """A new field of the API: keep it in ``bodies`` (with a default), or name it in ``LEFT_OUT``."""
    value = bodies.PAIRS[body]
    kept, left_out = set(body.model_fields) - {"v"}, set(bodies.LEFT_OUT.get(value, ()))
    fields = {field.name: field for field in dataclasses.fields(value)}
    assert kept | left_out == set(fields)
    assert not kept & left_out
    assert all(fields[name].default is not dataclasses.MISSING for name in left_out)


def test_the_values_of_enums_are_part_of_the_format() -> None:
    found = {
        kind: [member.value for member in kind]
        for cls in bodies.PAIRS
        for field in cls.model_fields.values()
        if isinstance(kind := field.annotation, type) and issubclass(kind, enum.Enum)
    }
    assert {kind.__name__: values for kind, values in found.items()} == {
        "PodState": ["ready", "not-ready"],
        "ContainerState": ["created", "running", "exited", "unknown"],
        "Protocol": ["tcp", "udp", "sctp"],
        "NamespaceMode": ["pod", "container", "node", "target"],
        "ProfileType": ["runtime-default", "unconfined", "localhost"],
        "MountPropagation": ["rprivate", "rslave", "rshared"],
    }


def test_fields_that_came_later_may_be_missing() -> None:
    later = {"pods": ("resources", "overhead"), "containers": ("volume_images", "checkpoint"), "images": ("artifact",)}
    for row in golden(1)[:3]:
        body = json.loads(row["body"])
        for name in later[row["table"]]:
            del body[name]
        assert bodies.parse(row["table"], row["id"], json.dumps(body)).id == row["id"]


def test_a_body_is_upgraded_step_by_step_and_a_newer_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {1: lambda kind, body: {**body, "at": kind}, 2: lambda _, body: {**body, "at": body["at"] + "!"}}
    monkeypatch.setattr(bodies, "UPGRADES", steps)
    monkeypatch.setattr(bodies, "VERSION", 3)
    assert bodies.upgrade("pods", {"x": 1}) == {"x": 1, "at": "pods!", "v": 3}
    assert bodies.upgrade("pods", {"v": 2, "at": "here"}) == {"v": 3, "at": "here!"}
    assert bodies.upgrade("pods", {"v": 3}) == {"v": 3}
    with pytest.raises(bodies.Unreadable, match=r"a newer crinoid has written it \(version 4, this one knows 3\)"):
        bodies.upgrade("pods", {"v": 4})
    for nonsense in ("1", None, 0, True, 1.5):
        with pytest.raises(bodies.Unreadable, match="its version is no number"):
            bodies.upgrade("pods", {"v": nonsense})


POD = golden(bodies.VERSION)[0]
INSTEAD = {
    "id": POD["id"],
    "config": {"metadata": {"name": "?", "namespace": "?", "uid": "?"}},
    "runtime_handler": "",
    "runtime": "?",
    "network": "?",
    "snapshotter": "?",
    "state": "not-ready",
    "created_at_ns": 9,
}


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        ({"runtime": 7}, {"runtime": "?"}),
        ({"v": 99}, {}),
        ({"nonsense": 1}, {}),
        ({"answered": "perhaps"}, {"answered": False}),
        ({"namespaces": {"network": "/n", "ipc": 5}}, {"namespaces": {"network": Path("/n")}}),
        ({"attachment": {"addresses": 3}}, {"attachment": None}),
        ({"id": "other"}, {}),
    ],
)
def test_what_can_be_read_of_a_damaged_body_is_kept(damage: dict[str, object], lost: dict[str, object]) -> None:
    whole = bodies.parse("pods", POD["id"], POD["body"])
    mended = bodies.mend("pods", json.dumps({**json.loads(POD["body"]), **damage}), INSTEAD)
    assert mended == dataclasses.replace(whole, **lost)


def test_a_name_within_a_damaged_body_is_kept() -> None:
    body = json.loads(POD["body"])
    body["config"]["metadata"]["uid"] = 5
    body["config"]["labels"]["bad"] = None
    mended = bodies.mend("pods", json.dumps(body), INSTEAD)
    assert (mended.config.metadata.name, mended.config.metadata.uid) == ("web", "?")
    assert mended.config.labels == {"app": "web"}


@pytest.mark.parametrize("text", [None, 7, b"\xff\x00", "", "[]", '"x"', "{", "[" * 100_000, '{"v": []}'])
def test_nothing_readable_is_what_is_there_instead(text: object) -> None:
    with pytest.raises(bodies.Unreadable):
        bodies.parse("pods", POD["id"], text)
    assert bodies.mend("pods", text, INSTEAD).runtime == "?"


@pytest.mark.parametrize("key", ["../x", "", "a/b", ".", "..", b"a", 7, None, "a\n"])
def test_an_id_that_leads_somewhere_is_none(key: object) -> None:
    body = json.loads(POD["body"]) | {"id": key if isinstance(key, str) else "x"}
    with pytest.raises(bodies.Unreadable):
        bodies.parse("pods", key, json.dumps(body))


def test_a_field_that_came_later_is_written_only_where_it_says_something() -> None:
    """So a body without it reads the same to a program from before the field, which refuses what it does not know."""
    row = next(row for row in golden(bodies.VERSION) if row["table"] == "containers" and "start_error" in row["body"])
    record = bodies.parse(row["table"], row["id"], row["body"])
    assert "start_error" in bodies.dump(record)
    plain = dataclasses.replace(record, start_error="")
    assert "start_error" not in bodies.dump(plain)
    assert bodies.parse(row["table"], row["id"], bodies.dump(plain)) == plain


def test_a_field_that_came_later_to_an_inner_body_is_left_out_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field of PodConfig is in the records of pods, and in the ledger's rows of pods that a runtime has begun."""
    monkeypatch.setattr(bodies, "LATER", {bodies._PodConfig: ("hostname",), bodies._Port: ("host_ip",)})
    monkeypatch.setattr(bodies, "_has_later", functools.cache(bodies._has_later.__wrapped__))
    record: Any = bodies.parse("pods", POD["id"], POD["body"])
    port = dataclasses.replace(record.config.port_mappings[0], host_ip="")
    config = dataclasses.replace(record.config, hostname="", port_mappings=(*record.config.port_mappings, port))
    plain = dataclasses.replace(record, config=config)
    sandbox = PodSandbox(record.id, config, {}, "/x")
    for written in (json.loads(bodies.dump(plain)), bodies.dump_value(sandbox)):
        assert "hostname" not in written["config"]
        assert ["host_ip" in one for one in written["config"]["port_mappings"]] == [True, False]
    assert json.loads(bodies.dump(record))["config"]["hostname"] == record.config.hostname
    assert bodies.parse("pods", POD["id"], bodies.dump(plain)) == plain
