"""Who is told which secret: token servers, Basic, the node's own credentials, and all that must not get them."""

import asyncio
import base64
import json
import logging
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from crinoid.core.api.errors import (
    ConfigurationError,
    CorruptContent,
    CrinoidError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from crinoid.core.api.host import Host
from crinoid.core.api.testing.registries import BoundRegistry
from crinoid.core.api.values.image import (
    BlobRequest,
    Credentials,
    Descriptor,
    ImageReference,
    Platform,
    ResolvedImage,
    ResolveRequest,
    SourceStatus,
)
from crinoid.plugins.registries.distribution import DistributionRegistry
from support.faults import FaultRegistry, challenge, guard, manifest_of, redirect, refuse, send, stream
from support.images import digest_of

from .conftest import MakeRegistry

AMD64 = Platform("linux", "amd64")
MANIFEST = manifest_of(b"{}", b"layer")
ALICE = Credentials("alice", "s3cret:with:colons")
ALICE_BASIC = "Basic " + base64.b64encode(b"alice:s3cret:with:colons").decode()
BLOB = b"a blob"


def bearer(tokens: FaultRegistry, extra: str = "") -> str:
    return f'Bearer realm="{tokens.url}/token",service="the registry"{extra}'


async def resolve(
    registry: BoundRegistry, server: FaultRegistry, credentials: Credentials | None = None
) -> ResolvedImage:
    reference = ImageReference.parse(f"{server.host}/app:1")
    return await registry.resolve(ResolveRequest(reference, AMD64, credentials))


def json_answer(**fields: object) -> bytes:
    return json.dumps(fields).encode()


@pytest.fixture
def tokens(server: FaultRegistry, mirror: FaultRegistry) -> FaultRegistry:
    """A token server; the registry wants its token."""
    mirror.on("/token", send(json_answer(token="t0ken", expires_in=300), "application/json"))
    answer = guard("Bearer t0ken", bearer(mirror, ',scope="repository:app:pull"'), send(MANIFEST))
    server.on_manifest("1", answer)
    return mirror


class TestBearer:
    async def test_anonymous(self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry) -> None:
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST
        (asked,) = tokens.asked
        assert asked.query == "service=the+registry&scope=repository:app:pull"
        assert "Authorization" not in asked.headers

    async def test_the_requests_credentials_go_to_the_token_server_only(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry
    ) -> None:
        await resolve(make_registry(), server, ALICE)
        assert [asked.headers["Authorization"] for asked in tokens.asked] == [ALICE_BASIC]
        assert [asked.headers.get("Authorization") for asked in server.asked] == [None, "Bearer t0ken"]

    async def test_a_token_serves_until_it_ends(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = make_registry()
        for _ in range(3):
            await resolve(registry, server)
        assert len(tokens.asked) == 1
        assert len(server.asked) == 4, "a challenge is asked for once"
        now = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now() + 296)
        await resolve(registry, server)
        assert len(tokens.asked) == 2

    async def test_a_token_that_is_refused_early_is_fetched_anew(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry
    ) -> None:
        registry = make_registry()
        await resolve(registry, server)
        tokens.on("/token", send(json_answer(access_token="n3w"), "application/json"))
        server.on_manifest("1", guard("Bearer n3w", bearer(tokens), send(MANIFEST)))
        assert (await resolve(registry, server)).manifest_content == MANIFEST
        assert tokens.asked[-1].query.endswith("scope=repository:app:pull"), "the usual scope when none is told"

    async def test_streams_at_once_fetch_one_token(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry
    ) -> None:
        server.on_blob(digest_of(BLOB), guard("Bearer t0ken", bearer(tokens), stream(BLOB)))
        request = BlobRequest(
            ImageReference.parse(f"{server.host}/app:1"), Descriptor("x/y", digest_of(BLOB), len(BLOB))
        )
        registry = make_registry()
        assert set(await asyncio.gather(*(registry.read(request) for _ in range(8)))) == {BLOB}
        assert len(tokens.asked) == 1

    async def test_one_users_token_is_not_anothers(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry
    ) -> None:
        registry = make_registry()
        await resolve(registry, server, ALICE)
        tokens.on("/token", refuse(401))
        with pytest.raises(Unauthenticated):
            await resolve(registry, server)

    async def test_an_identity_token_is_posted_as_refresh_token(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry
    ) -> None:
        await resolve(make_registry(), server, Credentials(identity_token="1dentity"))
        (asked,) = tokens.asked
        assert asked.query == ""
        assert asked.form == {
            "grant_type": "refresh_token",
            "client_id": "crinoid",
            "refresh_token": "1dentity",
            "service": "the registry",
            "scope": "repository:app:pull",
        }

    async def test_a_registry_token_is_sent_as_it_is(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry
    ) -> None:
        await resolve(make_registry(), server, Credentials(registry_token="t0ken"))
        assert not tokens.asked
        assert [asked.headers["Authorization"] for asked in server.asked] == ["Bearer t0ken"]

    async def test_a_registry_token_that_is_no_header(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        with pytest.raises(Unauthenticated, match="registry token"):
            await resolve(make_registry(), server, Credentials(registry_token="x\r\nHost: evil"))

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"<html>", "token server"),
            (b"{}", "no usable token"),
            (json_answer(token="a\r\nb"), "no usable token"),
            (json_answer(token=5), "token"),
            (b" " * (2 << 20), "longer than"),
        ],
    )
    async def test_a_token_server_that_answers_rubbish(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry, body: bytes, words: str
    ) -> None:
        tokens.on("/token", send(body, "application/json"))
        with pytest.raises(CorruptContent, match=words) as caught:
            await resolve(make_registry(), server, ALICE)
        assert f"token server {tokens.host}" in caught.value.message

    @pytest.mark.parametrize("status", [400, 401, 403])
    async def test_a_token_server_that_refuses(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry, status: int
    ) -> None:
        tokens.on("/token", refuse(status, "DENIED", "incorrect username or password"))
        with pytest.raises(Unauthenticated, match="incorrect username or password") as caught:
            await resolve(make_registry(), server, ALICE)
        assert "s3cret" not in caught.value.message
        assert len(tokens.asked) == 1

    async def test_a_token_server_that_is_overloaded_is_asked_again(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry
    ) -> None:
        good = send(json_answer(token="t0ken"), "application/json")
        tokens.on("/token", refuse(503), good)
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    async def test_a_token_that_is_not_good_enough(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry
    ) -> None:
        server.on_manifest("1", challenge(bearer(tokens)))
        with pytest.raises(Unauthenticated, match="or the repository does not exist"):
            await resolve(make_registry(), server, ALICE)
        assert len(server.asked) == 2, "refused for good"

    @pytest.mark.parametrize("life", [-1, 0, None, "soon", 1e400, [], True])
    async def test_a_token_of_a_strange_life(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry, life: object
    ) -> None:
        tokens.on("/token", send(json_answer(token="t0ken", expires_in=life), "application/json"))
        registry = make_registry()
        for _ in range(2):
            assert (await resolve(registry, server)).manifest_content == MANIFEST
        assert len(tokens.asked) == 1, "it lives as long as the specification says at least"

    async def test_tokens_that_are_good_for_one_request(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry
    ) -> None:
        good: set[str] = set()

        async def issue(request: web.Request) -> web.StreamResponse:
            good.add(token := f"t{len(tokens.asked)}")
            return await send(json_answer(token=token), "application/json")(request)

        async def serve(request: web.Request) -> web.StreamResponse:
            sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if sent not in good:
                return await challenge(bearer(tokens))(request)
            good.remove(sent)
            return await stream(BLOB)(request)

        tokens.on("/token", issue)
        server.on_blob(digest_of(BLOB), serve)
        wanted = BlobRequest(
            ImageReference.parse(f"{server.host}/app:1"), Descriptor("x/y", digest_of(BLOB), len(BLOB))
        )
        registry = make_registry()
        assert await asyncio.gather(*(registry.read(wanted) for _ in range(8))) == [BLOB] * 8

    async def test_a_realm_with_a_port_that_is_none(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", challenge('Bearer realm="http://127.0.0.1:99999/token"'))
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:99999"):
            await resolve(make_registry(), server, ALICE)

    async def test_a_realm_that_is_no_url(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", challenge('Bearer realm="file:///etc/passwd"'))
        with pytest.raises(Unauthenticated, match="not reached by https"):
            await resolve(make_registry(), server, ALICE)


class TestBasic:
    async def test_the_header_is_kept(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", guard(ALICE_BASIC, 'Basic realm="x"', send(MANIFEST)))
        registry = make_registry()
        await resolve(registry, server, ALICE)
        await resolve(registry, server, ALICE)
        assert len(server.asked) == 3

    async def test_wrong_credentials(
        self, make_registry: MakeRegistry, server: FaultRegistry, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        server.on_manifest("1", challenge('Basic realm="x"'))
        with pytest.raises(Unauthenticated, match=server.host) as caught:
            await resolve(make_registry(), server, ALICE)
        everything = caught.value.message + caplog.text + repr(caught.value.__cause__)
        assert "s3cret" not in everything
        assert ALICE_BASIC.split()[1] not in everything
        assert len(server.asked) == 2

    @pytest.mark.parametrize("given", [None, Credentials(), Credentials(server_address="elsewhere.test")])
    async def test_no_credentials(
        self, make_registry: MakeRegistry, server: FaultRegistry, given: Credentials | None
    ) -> None:
        server.on_manifest("1", challenge('Basic realm="x"'))
        with pytest.raises(Unauthenticated, match="imagePullSecrets"):
            await resolve(make_registry(), server, given)

    async def test_a_way_that_is_not_known(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        server.on_manifest("1", challenge("Negotiate, NTLM"))
        with pytest.raises(Unauthenticated, match="negotiate, ntlm"):
            await resolve(make_registry(), server, ALICE)


class TestWhoseCredentials:
    @pytest.mark.parametrize("address", ["elsewhere.test", "https://elsewhere.test/v1/"])
    async def test_those_for_another_server_are_not_sent(
        self, make_registry: MakeRegistry, server: FaultRegistry, address: str
    ) -> None:
        server.on_manifest("1", challenge('Basic realm="x"'))
        with pytest.raises(Unauthenticated, match=r"elsewhere\.test"):
            await resolve(make_registry(), server, Credentials("alice", "s3cret", address))
        assert all("Authorization" not in asked.headers for asked in server.asked)

    @pytest.mark.parametrize("form", ["{}", "http://{}", "https://{}/v2/"])
    async def test_those_for_this_server_are_sent(
        self, make_registry: MakeRegistry, server: FaultRegistry, form: str
    ) -> None:
        server.on_manifest("1", guard(ALICE_BASIC, 'Basic realm="x"', send(MANIFEST)))
        given = Credentials(ALICE.username, ALICE.password, form.format(server.host))
        assert (await resolve(make_registry(), server, given)).manifest_content == MANIFEST

    async def test_a_mirror_does_not_get_them(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, certs_d: Path
    ) -> None:
        write_hosts(certs_d, server, f'[host."{mirror.url}"]')
        mirror.on_manifest("1", challenge('Basic realm="x"'))
        server.on_manifest("1", guard(ALICE_BASIC, 'Basic realm="x"', send(MANIFEST)))
        assert (await resolve(make_registry(), server, ALICE)).manifest_content == MANIFEST
        assert [asked.headers.get("Authorization") for asked in mirror.asked] == [None]

    async def test_a_mirror_has_its_own(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, certs_d: Path, tmp_path: Path
    ) -> None:
        write_hosts(certs_d, server, f'[host."{mirror.url}"]')
        write_docker(tmp_path, auths={mirror.host: {"auth": encode("bob:b0b")}})
        mirror.on_manifest("1", guard(f"Basic {encode('bob:b0b')}", 'Basic realm="x"', send(MANIFEST)))
        await resolve(make_registry(), server, ALICE)
        assert not server.asked

    async def test_a_redirect_takes_neither_authorization_nor_headers_elsewhere(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, certs_d: Path
    ) -> None:
        write_hosts(certs_d, server, 'header = { X-Secret = "hush" }')
        server.on_manifest("1", guard(ALICE_BASIC, 'Basic realm="x"', redirect(f"{mirror.url}/manifest")))
        mirror.on("/manifest", send(MANIFEST))
        assert (await resolve(make_registry(), server, ALICE)).manifest_content == MANIFEST
        assert [asked.headers.get("X-Secret") for asked in server.asked] == ["hush", "hush"]
        assert {"Authorization", "X-Secret"}.isdisjoint(mirror.asked[0].headers)

    async def test_a_challenge_from_where_a_redirect_led_is_not_answered(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        server.on_manifest("1", redirect(f"{mirror.url}/manifest"))
        mirror.on("/manifest", challenge('Basic realm="x"'))
        with pytest.raises(Unauthenticated):
            await resolve(make_registry(), server, ALICE)
        assert [asked.headers.get("Authorization") for asked in mirror.asked] == [None]

    async def test_a_token_server_that_redirects_a_post_does_not_get_it_sent_on(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry
    ) -> None:
        tokens.on("/token", redirect(f"{server.url}/stolen"))
        with pytest.raises(CrinoidError, match="307"):
            await resolve(make_registry(), server, Credentials(identity_token="1dentity"))
        assert "/stolen" not in server.paths()

    async def test_netrc_is_not_read(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login eve password eve\n")
        monkeypatch.setenv("NETRC", str(netrc))
        server.on_manifest("1", send(MANIFEST))
        await resolve(make_registry(), server)
        assert "Authorization" not in server.asked[0].headers


def write_hosts(certs_d: Path, server: FaultRegistry, text: str) -> None:
    directory = certs_d / server.host
    directory.mkdir()
    (directory / "hosts.toml").write_text(f'server = "{server.url}"\n{text}\n')


def write_docker(directory: Path, **config: object) -> None:
    (directory / "docker.json").write_text(json.dumps(config))


def encode(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


class TestNodeCredentials:
    @pytest.fixture(autouse=True)
    def closed(self, server: FaultRegistry) -> None:
        server.on_manifest("1", guard(ALICE_BASIC, 'Basic realm="x"', send(MANIFEST)))

    @pytest.fixture
    def helper(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An executable ``docker-credential-test``, to be written."""
        directory = tmp_path / "bin"
        directory.mkdir()
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        path = directory / "docker-credential-test"
        path.touch()
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    @pytest.mark.parametrize("form", ["{}", "https://{}", "http://{}/v1/", "{}/app", "{}/"])
    async def test_the_forms_of_a_key(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path, form: str
    ) -> None:
        write_docker(tmp_path, auths={form.format(server.host): {"auth": encode("alice:s3cret:with:colons")}})
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    @pytest.mark.parametrize(
        "more",
        [
            {"credHelpers": None, "credsStore": None},
            {"credHelpers": {"elsewhere.test": None}},
            {"auths": {"elsewhere.test": None}},
            {"auths": {"elsewhere.test": {"auth": None, "username": None}}},
            {"auths": {"elsewhere.test": {"auth": "!! no base64 !!"}, "other.test": 5}},
        ],
    )
    async def test_what_is_null_or_somebody_elses_harms_nobody(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path, more: dict[str, Any]
    ) -> None:
        auths = {server.host: {"auth": encode("alice:s3cret:with:colons"), "email": None}}
        write_docker(tmp_path, **more | {"auths": more.get("auths", {}) | auths})
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    async def test_auths_that_are_null(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path
    ) -> None:
        write_docker(tmp_path, auths=None)
        with pytest.raises(Unauthenticated, match="imagePullSecrets"):
            await resolve(make_registry(), server)

    async def test_white_space_round_and_in_an_entry(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path
    ) -> None:
        text = encode("alice:s3cret:with:colons")
        write_docker(tmp_path, auths={server.host: {"auth": f" {text[:8]}\n{text[8:]}\r\n"}})
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"credsHelpers": {}}, 'credsHelpers: unknown key, which is passed over; did you mean "credHelpers"?'),
            ({"credStore": "pass"}, 'credStore: unknown key, which is passed over; did you mean "credsStore"?'),
            ({"x.test": {"auth": "s3cret"}}, 'x.test: credentials that are not below "auths" are passed over'),
            ({"auths": {"x.test": {"user": "s3cret", "Password": "s3cret"}}}, "auths.x.test.user: unknown key"),
            (
                {"auths": {"x.test": {"pasword": "s3cret"}}},
                "auths.x.test.pasword: unknown key, which is passed over; did",
            ),
        ],
    )
    async def test_a_key_that_nothing_reads_is_told_and_not_quoted(
        self, make_registry: MakeRegistry, tmp_path: Path, more: dict[str, Any], words: str
    ) -> None:
        write_docker(tmp_path, **more)
        (note,) = (await make_registry().status()).notes
        assert note.startswith(f"docker configuration {tmp_path}/docker.json: {words}")
        assert "s3cret" not in note

    async def test_a_file_that_was_named_and_is_not_there_is_told(
        self, make_registry: MakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        status = await make_registry().status()
        assert status == SourceStatus(ready=True, notes=(f"{tmp_path}/docker.json is not there",))
        monkeypatch.setenv("HOME", str(tmp_path))
        driver = DistributionRegistry(
            DistributionRegistry.Config(), Host("test", tmp_path, tmp_path, logging.getLogger())
        )
        assert await BoundRegistry(driver).status() == SourceStatus(ready=True), "defaults may be missing"

    async def test_a_file_of_a_user_that_is_not_there_is_told(self, make_registry: MakeRegistry) -> None:
        status = await make_registry(docker_configs=("~nobody-of-this-name/config.json",)).status()
        assert status == SourceStatus(ready=True, notes=("~nobody-of-this-name/config.json is not there",))

    async def test_docker_s_other_settings_are_no_news(self, make_registry: MakeRegistry, tmp_path: Path) -> None:
        others = ["HttpHeaders", "aliases", "cliPluginsExtraDirs", "currentContext", "experimental", "features"]
        others += ["detachKeys", "imagesFormat", "plugins", "proxies", "psFormat", "stackOrchestrator", "pruneFilters"]
        entry = {"auth": encode("a:b"), "email": "a@b.test", "serveraddress": "x.test", "Username": "a"}
        write_docker(tmp_path, **{name: {"a": "b"} for name in others}, auths={"x.test": entry}, credsstore="")
        assert await make_registry().status() == SourceStatus(ready=True)

    async def test_a_file_that_can_not_be_read_is_told_by_the_status(
        self, make_registry: MakeRegistry, tmp_path: Path
    ) -> None:
        write_docker(tmp_path, auths={"x.test": {"auth": "!"}})
        where = f"docker configuration {tmp_path}/docker.json: auths.x.test"
        message = f"{where}: auth is not the base64 form of user:password"
        assert await make_registry().status() == SourceStatus(ready=True, message=message)

    async def test_the_most_specific_key_counts(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path
    ) -> None:
        mine = {"username": ALICE.username, "password": ALICE.password}
        write_docker(tmp_path, auths={server.host: {"auth": encode("eve:x")}, f"{server.host}/app": mine})
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    async def test_the_first_file_that_has_some_counts(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path
    ) -> None:
        empty = tmp_path / "empty.json"
        empty.write_text('{"auths": {"elsewhere.test": {}}}')
        write_docker(tmp_path, auths={server.host: {"auth": encode("alice:s3cret:with:colons")}})
        paths = (tmp_path / "absent.json", empty, tmp_path / "docker.json")
        assert (await resolve(make_registry(docker_configs=paths), server)).manifest_content == MANIFEST

    async def test_an_identity_token_of_the_file(
        self, make_registry: MakeRegistry, server: FaultRegistry, tokens: FaultRegistry, tmp_path: Path
    ) -> None:
        write_docker(tmp_path, auths={server.host: {"identitytoken": "1dentity"}})
        await resolve(make_registry(), server)
        assert tokens.asked[0].form["refresh_token"] == "1dentity"

    @pytest.mark.parametrize("text", ['{"auths": {"HOST": {"auth": "!!s3cret!!"}}}', '{"auths": "s3cret"}', "s3cret {"])
    async def test_a_file_that_can_not_be_read_is_named_but_not_quoted(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path, text: str
    ) -> None:
        (tmp_path / "docker.json").write_text(text.replace("HOST", server.host))
        with pytest.raises(ConfigurationError, match=r"docker\.json") as caught:
            await resolve(make_registry(), server)
        assert "s3cret" not in caught.value.message

    @pytest.mark.parametrize("key", ["credHelpers", "credsStore"])
    async def test_a_helper_is_asked_for_the_host(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path, helper: Path, key: str
    ) -> None:
        answer = json.dumps({"ServerURL": "x", "Username": ALICE.username, "Secret": ALICE.password})
        helper.write_text(f'#!/bin/sh\n[ "$1" = get ] && [ "$(cat)" = {server.host} ] && echo \'{answer}\'\n')
        write_docker(tmp_path, **{key: {server.host: "test"} if key == "credHelpers" else "test"})
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    async def test_a_helper_that_has_an_identity_token(
        self,
        make_registry: MakeRegistry,
        server: FaultRegistry,
        tokens: FaultRegistry,
        tmp_path: Path,
        helper: Path,
    ) -> None:
        helper.write_text('#!/bin/sh\necho \'{"Username": "<token>", "Secret": "1dentity"}\'\n')
        write_docker(tmp_path, credsStore="test")
        await resolve(make_registry(), server)
        assert tokens.asked[0].form["refresh_token"] == "1dentity"

    async def test_a_helper_that_has_nothing_leaves_it_to_the_file(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path, helper: Path
    ) -> None:
        helper.write_text("#!/bin/sh\necho credentials not found in native keychain; exit 1\n")
        write_docker(tmp_path, credsStore="test", auths={server.host: {"auth": encode("alice:s3cret:with:colons")}})
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("exec sleep 60", "docker-credential-test"),
            ("echo no keychain >&2; exit 3", "ended with 3: no keychain"),
            ("echo rubbish s3cret", "no JSON"),
        ],
    )
    async def test_a_helper_that_fails_is_named(
        self,
        make_registry: MakeRegistry,
        server: FaultRegistry,
        tmp_path: Path,
        helper: Path,
        script: str,
        words: str,
    ) -> None:
        helper.write_text(f"#!/bin/sh\n{script}\n")
        write_docker(tmp_path, credsStore="test")
        began = time.monotonic()
        with pytest.raises(Unauthenticated, match=words) as caught:
            await resolve(make_registry(helper_timeout_s=3), server)
        assert time.monotonic() - began < 40
        assert "s3cret" not in caught.value.message

    @pytest.mark.parametrize("name", ["absent", "../../bin/sh", "-x"])
    async def test_a_helper_that_does_not_exist_or_may_not(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path, name: str
    ) -> None:
        write_docker(tmp_path, credHelpers={server.host: name})
        with pytest.raises((Unauthenticated, ConfigurationError), match=name):
            await resolve(make_registry(), server)

    async def test_a_public_image_needs_no_helper(
        self, make_registry: MakeRegistry, server: FaultRegistry, tmp_path: Path
    ) -> None:
        write_docker(tmp_path, credsStore="absent")
        server.on_manifest("1", send(MANIFEST))
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST


async def test_a_refusal_of_the_registry_is_no_question_of_who(
    make_registry: MakeRegistry, server: FaultRegistry
) -> None:
    server.on_manifest("1", refuse(403, "DENIED", "requested access to the resource is denied"))
    with pytest.raises(PermissionDenied, match="requested access") as caught:
        await resolve(make_registry(), server, ALICE)
    assert not isinstance(caught.value, Unauthenticated)
