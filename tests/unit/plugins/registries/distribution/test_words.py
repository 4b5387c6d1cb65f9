"""What a host's refusal says to people: of registries, and of all that stands before one or beside it."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from crinoid.core.api.errors import (
    CorruptContent,
    CrinoidError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from crinoid.core.api.values.image import BlobRequest, Descriptor, ImageReference, Platform, ResolveRequest
from crinoid.plugins.registries.distribution import transport
from crinoid.plugins.registries.distribution.answers import page_words, words_of
from support.faults import Answer, FaultRegistry, challenge, manifest_of, redirect, refuse, send

from .conftest import MakeRegistry

MANIFEST = manifest_of(b"{}", b"layer")
PAGE = b"<!DOCTYPE html><html><head><title>Sign in &amp; go on</title></head><body>secret=s3cret</body></html>"


def answer(status: int, body: bytes, media_type: str = "text/html", **headers: str) -> Answer:
    """Answer with a body in a form of its own."""

    async def reply(request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers={"Content-Type": media_type, **named})

    return reply


async def fail(make_registry: MakeRegistry, server: FaultRegistry, kind: type[CrinoidError], **options: object) -> str:
    reference = ImageReference.parse(f"{server.host}/app:1")
    with pytest.raises(CrinoidError) as caught:
        await make_registry(**options).resolve(ResolveRequest(reference, Platform("linux", "amd64")))
    assert type(caught.value) is kind, caught.value
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"quota exceeded for project", "quota exceeded for project"),
        (b'{"errors": [{"code": "DENIED", "message": "no"}]}', "DENIED: no"),
        (b'{"errors": [{"code": "A", "message": "one"}, {"code": "B", "message": "two"}]}', "A: one; B: two"),
        (b'{"errors": [{"code": "DENIED", "detail": {"reason": "billing is off"}}]}', "DENIED: billing is off"),
        (b'{"errors": ["by rule 7"]}', "by rule 7"),
        (b'{"error": {"code": 403, "message": "permission download denied"}}', "permission download denied"),
        (b'{"error": "invalid_grant", "error_description": "token expired"}', "invalid_grant: token expired"),
        (b'{"message": "IP not allowed"}', "IP not allowed"),
        (b'{"details": "incorrect username or password"}', "incorrect username or password"),
        (b"<?xml version='1.0'?><Error><Code>X</Code><Message>Request has expired</Message></Error>", "has expired"),
        (PAGE, "Sign in & go on"),
        (b"<html><body>nothing</body></html>", ""),
        (b'{"unknown": {"errors": 5}}', ""),
        (b"[" * 100_000, "[" * 200),
        (b"\xff\xfe\x00", ""),
        (b"", ""),
    ],
)
def test_bodies_of_all_forms(body: bytes, words: str) -> None:
    assert words in words_of(body)
    assert "s3cret" not in words_of(body)
    assert words_of(body).isascii() and len(words_of(body)) <= 200


@pytest.mark.parametrize("make", [lambda: b'{"error": ' * 400 + b"{}" + b"}" * 400, lambda: b"<title>" * 1_000_000])
def test_a_body_that_is_made_to_take_long_does_not(make: Callable[[], bytes]) -> None:
    """Whoever names a registry of his own would hold up the daemon's loop: for ever, or for hours."""
    assert page_words(make(), "") in ("", ": it is a web page: does a proxy or a login stand before the registry?")
    assert words_of(make()) == ""


async def test_they_stand_behind_the_status(make_registry: MakeRegistry, server: FaultRegistry) -> None:
    server.on_manifest("1", answer(403, b'{"message": "IP not allowed"}', "application/json"))
    assert "403 Forbidden (IP not allowed) at http://" in await fail(make_registry, server, PermissionDenied)


async def test_a_page_where_a_manifest_is_due(make_registry: MakeRegistry, server: FaultRegistry) -> None:
    server.on_manifest("1", answer(200, PAGE))
    message = await fail(make_registry, server, CorruptContent)
    words = "it is a web page 'Sign in & go on': does a proxy or a login stand before the registry?"
    assert f"{words} at {server.url}" in message


async def test_an_error_that_comes_as_a_success(make_registry: MakeRegistry, server: FaultRegistry) -> None:
    body = b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}'
    server.on_manifest("1", answer(200, body, "application/json"))
    message = await fail(make_registry, server, CorruptContent)
    assert f"it says: UNAUTHORIZED: authentication required at {server.url}" in message


async def test_where_a_redirect_led_is_blamed_and_not_the_registry(
    make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
) -> None:
    server.on_manifest("1", redirect("http://user:s3cret@127.0.0.1:1/x?signature=s3cret"))
    message = await fail(make_registry, server, Unavailable)
    assert "it redirects to http://127.0.0.1:1, and that says: connection refused" in message
    server.on_manifest("1", redirect(f"{mirror.url}/x?signature=s3cret"))
    mirror.on("/x", answer(451, b"not in your country", "text/plain"))
    message += await fail(make_registry, server, Unavailable)
    assert f"it redirects to {mirror.url}, and that says: 451 " in message
    assert "(not in your country)" in message
    assert "s3cret" not in message


async def test_a_host_in_capitals_is_no_other(
    make_registry: MakeRegistry, server: FaultRegistry, certs_d: Path
) -> None:
    """Nor is one by its IPv6 address, or by a name that is not ASCII: a client may write them otherwise."""
    server.on_manifest("1", refuse(403))
    (certs_d / server.host).mkdir()
    port = server.host.rpartition(":")[2]
    (certs_d / server.host / "hosts.toml").write_text(f'server = "http://LOCALHOST:{port}"\n')
    message = await fail(make_registry, server, PermissionDenied)
    assert f"403 Forbidden at http://LOCALHOST:{port}" in message
    assert "redirect" not in message


async def test_a_foreign_layer_at_no_address(make_registry: MakeRegistry, server: FaultRegistry) -> None:
    blob = Descriptor("application/x", f"sha256:{64 * 'a'}", 5, urls=("https://[elsewhere/layer?signature=s3cret",))
    with pytest.raises(NotFound, match="'https://\\[elsewhere/layer', which is no address") as caught:
        await make_registry().open_blob(BlobRequest(ImageReference.parse(f"{server.host}/app:1"), blob))
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it names none"),
        ('Bearer service="x"', "names bearer without the address of a token server"),
        ("Negotiate", "names none that is known here: negotiate"),
        ('Bearer realm="/token"', "its token server '/token' is not reached by https"),
        ('Bearer realm="https://[token"', "its token server 'https://[token' is not reached by https"),
    ],
)
async def test_challenges_that_can_t_be_answered(
    make_registry: MakeRegistry, server: FaultRegistry, text: str, words: str
) -> None:
    server.on_manifest("1", challenge(text))
    assert words in await fail(make_registry, server, Unauthenticated)


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (answer(404, PAGE), Unavailable, "404 Not Found (Sign in & go on)"),
        (answer(200, PAGE), CorruptContent, "it is a web page 'Sign in & go on'"),
        (
            answer(400, json.dumps({"error": "invalid_grant", "error_description": "expired"}).encode()),
            Unauthenticated,
            "400 Bad Request (invalid_grant: expired)",
        ),
    ],
)
async def test_a_token_server_s_words(
    make_registry: MakeRegistry,
    server: FaultRegistry,
    mirror: FaultRegistry,
    reply: Answer,
    kind: type[CrinoidError],
    words: str,
) -> None:
    """Its 404 says nothing of the image: a pull that is told "not found" is one that nobody looks into."""
    server.on_manifest("1", challenge(f'Bearer realm="{mirror.url}/token"'))
    mirror.on("/token", reply)
    assert f"token server {mirror.host}" in await fail(make_registry, server, kind)
    assert words in await fail(make_registry, server, kind)


@pytest.mark.parametrize("text", ["²", "٣", "-5", "1e400", "soon", "Wed, 99 Oct 2015 07:28:00 GMT"])
async def test_a_retry_after_that_is_none_is_passed_over(
    make_registry: MakeRegistry, server: FaultRegistry, text: str
) -> None:
    server.on_manifest("1", refuse(429, Retry_After=text), send(MANIFEST))
    reference = ImageReference.parse(f"{server.host}/app:1")
    image = await make_registry().resolve(ResolveRequest(reference, Platform("linux", "amd64")))
    assert image.manifest_content == MANIFEST


def dripping(head: bytes, drop: bytes) -> Answer:
    """Send a drop now and then for ever: never silent long enough to be a stall."""

    async def reply(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(head)
        while not request.transport.is_closing():
            request.transport.write(drop)
            await asyncio.sleep(0.02)
        return web.Response()

    return reply


async def test_a_head_that_comes_in_drops_ends(make_registry: MakeRegistry, server: FaultRegistry) -> None:
    server.on_manifest("1", dripping(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"))
    message = await fail(make_registry, server, Unavailable, tries=1, dial_timeout_s=0.3)
    assert "i/o timeout" in message


async def test_a_document_that_comes_in_drops_ends(
    make_registry: MakeRegistry, server: FaultRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_DOCUMENT_S", 0.5)
    server.on_manifest("1", dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"{"))
    assert "too slow: " in await fail(make_registry, server, Unavailable)
