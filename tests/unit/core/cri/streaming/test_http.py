"""Heads of requests: what upgrades need, and what is refused."""

import contextlib
import time
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crinoid.core.cri.streaming.http import MAX_FIELDS, BadRequest, make_answer, parse_request


def head(*lines: str) -> bytes:
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def test_a_request_to_upgrade() -> None:
    request = parse_request(
        head(
            "POST /exec/token?x=1 HTTP/1.1",
            "Host: node:1234",
            "connection: keep-alive, Upgrade",
            "Upgrade: SPDY/3.1",
            "X-Stream-Protocol-Version: v4.channel.k8s.io, v3.channel.k8s.io",
            "x-stream-protocol-version:v2.channel.k8s.io  ",
            "Empty:",
        )
    )
    assert (request.method, request.path, request.get("empty"), request.get("none")) == (
        "POST",
        "/exec/token?x=1",
        "",
        "",
    )
    assert request.words("x-stream-protocol-version") == ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io")
    assert request.upgrades_to("spdy/3.1")
    assert not request.upgrades_to("websocket")
    assert not parse_request(head("GET / HTTP/1.1", "Upgrade: websocket")).upgrades_to("websocket")


@pytest.mark.parametrize(
    "lines",
    [
        ("",),
        ("GET /",),
        ("GET / HTTP/2",),
        ("get / HTTP/1.1",),
        ("GET exec HTTP/1.1",),
        ("GET /a b HTTP/1.1",),
        ("GET / HTTP/1.1", "No colon"),
        ("GET / HTTP/1.1", "Name : value"),
        ("GET / HTTP/1.1", " folded: value"),
        ("GET / HTTP/1.1", "Name: a\x00b"),
        ("GET / HTTP/1.1", "Name: a\nOther: b"),
        ("POST / HTTP/1.1", "Content-Length: 5"),
        ("POST / HTTP/1.1", "Transfer-Encoding: chunked"),
    ],
)
def test_what_is_no_request_to_upgrade(lines: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_request(head(*lines))
    assert refused.value.status is HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    "field",
    ["a:" + " " * 60_000 + "\x01", "a:" + "\t " * 30_000 + "\x00b", " " * 60_000 + ":", "a" * 60_000, ":" * 60_000],
)
def test_a_line_costs_what_it_is_long(field: str) -> None:
    """The first of these took 13 s, and anybody who can connect may send it."""
    began = time.process_time()
    with pytest.raises(BadRequest):
        parse_request(head("GET / HTTP/1.1", field))
    assert time.process_time() - began < 0.5


def test_blanks_around_a_value_are_no_part_of_it() -> None:
    assert parse_request(head("GET / HTTP/1.1", "A: \t a b\t ", "B:")).fields == (("a", "a b"), ("b", ""))


def test_fields_are_counted() -> None:
    parse_request(head("GET / HTTP/1.1", *["a: b"] * MAX_FIELDS))
    with pytest.raises(BadRequest) as refused:
        parse_request(head("GET / HTTP/1.1", *["a: b"] * (MAX_FIELDS + 1)))
    assert refused.value.status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


@given(st.binary(max_size=300))
def test_rubbish_is_refused(rubbish: bytes) -> None:
    with contextlib.suppress(BadRequest):
        parse_request(rubbish + b"\r\n\r\n")


def test_answers() -> None:
    assert make_answer(HTTPStatus.SWITCHING_PROTOCOLS, (("Upgrade", "SPDY/3.1"),)) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\n\r\n"
    )
    answer = make_answer(HTTPStatus.NOT_FOUND, (), "no such URL")
    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"Content-Length: 12\r\nConnection: close\r\n\r\nno such URL\n")
