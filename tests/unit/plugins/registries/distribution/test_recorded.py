"""What a pull's timeline tells: which hosts, by which CA, in whose name, with which answer; and never a secret."""

import base64
import contextlib
import json
from pathlib import Path

import pytest

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.timeline import Act, acting
from crinoid.core.api.values.image import Credentials, ImageReference, Platform, ResolveRequest
from support.faults import FaultRegistry, guard, manifest_of, refuse, send

from .conftest import MakeRegistry

MANIFEST = manifest_of(b"{}", b"layer")
PASSWORD = "hunter2-hunter2"


async def recorded(
    make_registry: MakeRegistry, server: FaultRegistry, credentials: Credentials | None = None
) -> dict[str, list[str]]:
    act = Act("PullImage", lambda _act, _step: None)
    request = ResolveRequest(ImageReference.parse(f"{server.host}/app:1"), Platform("linux", "amd64"), credentials)
    with acting(act), contextlib.suppress(CrinoidError):
        await make_registry().resolve(request)
    assert PASSWORD not in str(act)
    assert base64.b64encode(f"alice:{PASSWORD}".encode()).decode() not in str(act)
    return {step.name: [step.outcome, *step.notes] for step in act.steps}


async def test_each_host_is_told_with_its_certificates_and_its_answer(
    make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, certs_d: Path
) -> None:
    mirror.on_manifest("1", refuse(404, "MANIFEST_UNKNOWN", "not here"))
    server.on_manifest("1", send(MANIFEST))
    (certs_d / server.host).mkdir()
    file = certs_d / server.host / "hosts.toml"
    file.write_text(f'server = "{server.url}"\n[host."{mirror.url}"]\n[host."https://127.0.0.1:9"]\nca = "ca.pem"\n')
    (certs_d / server.host / "ca.pem").write_text("")
    told = await recorded(make_registry, server)
    path = "/app/manifests/1"
    assert told[f"ask mirror {mirror.url} for {path}"] == [
        "NotFound",
        "plain http: it is not verified",
        "404 Not Found (MANIFEST_UNKNOWN: not here)",
    ]
    tls = told[f"ask mirror https://127.0.0.1:9 for {path}"]
    assert tls[1] == f"CA: those of the system, {certs_d / server.host / 'ca.pem'}"
    assert told[f"ask {server.url} for {path}"] == ["ok", "plain http: it is not verified", "answer: 200"]


async def test_the_source_of_credentials_is_told_and_not_the_credentials(
    make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, tmp_path: Path
) -> None:
    basic = "Basic " + base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
    mirror.on("/token", guard(basic, "Basic", send(b'{"token": "hunter2-hunter2-token"}', "application/json")))
    bearer = f'Bearer realm="{mirror.url}/token",service="x"'
    server.on_manifest("1", guard("Bearer hunter2-hunter2-token", bearer, send(MANIFEST)))
    step = f"ask {server.url} for /app/manifests/1"

    told = await recorded(make_registry, server, Credentials("alice", PASSWORD))
    assert told[step] == [
        "ok",
        "plain http: it is not verified",
        "credentials: those of the pull request",
        "answer: 200",
    ]
    assert told[f"ask token server {mirror.url}"] == ["ok"]

    told = await recorded(make_registry, server)
    assert "credentials: none, neither in the pull request nor on the node" in told[step]
    assert told[f"ask token server {mirror.url}"][0] == "Unauthenticated"

    config = tmp_path / "docker.json"
    config.write_text(json.dumps({"auths": {server.host: {"username": "alice", "password": PASSWORD}}}))
    told = await recorded(make_registry, server)
    assert f"credentials: docker configuration {config}: auths.{server.host}" in told[step]


@pytest.mark.parametrize("address", ["https://other.example"])
async def test_credentials_that_are_for_another_server_are_said_to_be(
    make_registry: MakeRegistry, server: FaultRegistry, address: str
) -> None:
    server.on_manifest("1", guard("Basic x", 'Basic realm="x"', send(MANIFEST)))
    told = await recorded(make_registry, server, Credentials("alice", PASSWORD, address))
    notes = told[f"ask {server.url} for /app/manifests/1"]
    assert "credentials: none, as those of the pull request are for another server" in notes
