"""Mirrors in their order, what each may do, how each proves itself; all from files in ``certs.d``."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crinoid.core.api.errors import ConfigurationError, CorruptContent, CrinoidError, NotFound, Unavailable
from crinoid.core.api.testing.registries import BoundRegistry
from crinoid.core.api.timeline import Act, acting, stage
from crinoid.core.api.values.image import (
    BlobRequest,
    Descriptor,
    ImageReference,
    Platform,
    ResolvedImage,
    ResolveRequest,
)
from support.faults import FaultRegistry, fault_registry, manifest_of, redirect, refuse, send, stream
from support.images import digest_of
from support.registry import Certificates, make_certificates

from .conftest import MakeRegistry

AMD64 = Platform("linux", "amd64")
MANIFEST = manifest_of(b"{}", b"layer")
PINNED = f"app@{digest_of(MANIFEST)}"
BLOB = bytes(range(256)) * 8_000
DESCRIPTOR = Descriptor("x/y", digest_of(BLOB), len(BLOB))


async def resolve(registry: BoundRegistry, server: FaultRegistry, rest: str = "app:1") -> ResolvedImage:
    return await registry.resolve(ResolveRequest(ImageReference.parse(f"{server.host}/{rest}"), AMD64))


def write_hosts(certs_d: Path, name: str, text: str) -> None:
    (certs_d / name).mkdir()
    (certs_d / name / "hosts.toml").write_text(text)


async def test_a_key_that_nothing_reads_is_noted_with_each_pull_and_logged_once(
    make_registry: MakeRegistry, server: FaultRegistry, certs_d: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.on_manifest("1", send(MANIFEST))
    write_hosts(certs_d, server.host, f'server = "{server.url}"\nskip-verify = true\n')
    registry = make_registry()
    text = f"{certs_d}/{server.host}/hosts.toml: skip-verify: unknown key, which is passed over; "
    text += 'did you mean "skip_verify"?'
    for _ in range(2):
        act = Act("PullImage", lambda _act, _step: None)
        with acting(act), stage("resolve"):
            await resolve(registry, server)
        assert text in act.steps[0].notes
    assert [(record.levelname, record.message) for record in caplog.records if "unknown" in record.message] == [
        ("WARNING", text)
    ]
    assert (await registry.status()).notes[0] == text


class TestOrder:
    @pytest.fixture(autouse=True)
    def hosts(self, certs_d: Path, server: FaultRegistry, mirror: FaultRegistry) -> None:
        write_hosts(certs_d, server.host, f'server = "{server.url}"\n[host."{mirror.url}"]\n')

    async def test_a_mirror_that_has_it_spares_the_registry(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        mirror.on_manifest("1", send(MANIFEST))
        mirror.on_blob(DESCRIPTOR.digest, stream(BLOB))
        registry = make_registry()
        assert (await resolve(registry, server)).manifest_content == MANIFEST
        assert await registry.read(BlobRequest(ImageReference.parse(f"{server.host}/app:1"), DESCRIPTOR)) == BLOB
        assert not server.asked
        assert {asked.query for asked in mirror.asked} == {f"ns={server.host}"}

    @pytest.mark.parametrize("status", [404, 403, 400, 429, 500])
    async def test_a_mirror_that_fails_is_passed_by(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, status: int
    ) -> None:
        mirror.on_manifest("1", refuse(status))
        server.on_manifest("1", send(MANIFEST))
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST
        assert (len(mirror.asked), len(server.asked)) == (1, 1)
        assert server.asked[0].query == ""

    async def test_a_mirror_that_lies_is_passed_by(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        mirror.on_manifest(digest_of(MANIFEST), send(b"{}", digest=digest_of(MANIFEST)))
        server.on_manifest(digest_of(MANIFEST), send(MANIFEST))
        assert (await resolve(make_registry(), server, PINNED)).manifest_content == MANIFEST

    @pytest.mark.parametrize(
        "content", [b"{}", b'{"errors": [{"code": "UNAUTHORIZED"}]}', b"<html>Sign in</html>", b""]
    )
    async def test_a_mirror_whose_success_is_none_is_passed_by(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, content: bytes
    ) -> None:
        mirror.on_manifest("1", send(content, "application/json"))
        server.on_manifest("1", send(MANIFEST))
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST

    async def test_of_a_doubted_blob_the_registry_is_asked_first(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        mirror.on_blob(DESCRIPTOR.digest, stream(b"x" * len(BLOB)))
        server.on_blob(DESCRIPTOR.digest, stream(BLOB))
        request = BlobRequest(ImageReference.parse(f"{server.host}/app:1"), DESCRIPTOR, doubted=True)
        registry = make_registry()
        assert await registry.read(request) == BLOB
        assert not mirror.asked
        server.on_blob(DESCRIPTOR.digest, refuse(404))
        assert await registry.read(request) == b"x" * len(BLOB), "then the mirrors, in their order"

    async def test_everyones_words_are_told_and_the_registry_decides(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        mirror.on_manifest("1", refuse(503))
        server.on_manifest("1", refuse(404, "MANIFEST_UNKNOWN", "manifest unknown"))
        with pytest.raises(NotFound) as caught:
            await resolve(make_registry(), server)
        assert caught.value.message == (
            f"pull {server.host}/app:1: 404 Not Found (MANIFEST_UNKNOWN: manifest unknown) at {server.url}; "
            f"503 Service Unavailable at mirror {mirror.url}"
        )
        assert len(mirror.asked) == 1, "the registry's word is final"

    async def test_when_all_are_down_all_are_tried_again(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        mirror.on_manifest("1", refuse(404))
        server.on_manifest("1", refuse(503), refuse(503), send(MANIFEST))
        assert (await resolve(make_registry(), server)).manifest_content == MANIFEST
        assert len(mirror.asked) == 1, "a mirror without the image is not asked twice"

    async def test_a_stream_that_a_mirror_cuts_goes_on_at_the_registry(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        mirror.on_blob(DESCRIPTOR.digest, stream(BLOB, cut_at=700_000))
        server.on_blob(DESCRIPTOR.digest, stream(BLOB))
        request = BlobRequest(ImageReference.parse(f"{server.host}/app:1"), DESCRIPTOR)
        assert await make_registry().read(request) == BLOB
        assert 0 < int(server.asked[0].headers["Range"].removeprefix("bytes=").rstrip("-")) <= 700_000

    async def test_a_stream_only_the_mirror_has_survives_its_cuts(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry
    ) -> None:
        mirror.on_blob(DESCRIPTOR.digest, stream(BLOB, cut_at=1_500_000), stream(BLOB))
        request = BlobRequest(ImageReference.parse(f"{server.host}/app:1"), DESCRIPTOR)
        assert await make_registry().read(request) == BLOB

    async def test_a_change_counts_without_a_restart(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, certs_d: Path
    ) -> None:
        server.on_manifest("1", send(MANIFEST))
        mirror.on_manifest("1", send(MANIFEST))
        registry = make_registry()
        await resolve(registry, server)
        (certs_d / server.host / "hosts.toml").write_text(f'server = "{server.url}"\n')
        await resolve(registry, server)
        assert (len(mirror.asked), len(server.asked)) == (1, 1)


class TestCapabilities:
    async def test_a_mirror_that_may_not_resolve_is_asked_for_digests_only(
        self, make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, certs_d: Path
    ) -> None:
        text = f'server = "{server.url}"\n[host."{mirror.url}"]\ncapabilities = ["pull"]\n'
        write_hosts(certs_d, server.host, text)
        server.on_manifest("1", send(MANIFEST))
        mirror.on_manifest(digest_of(MANIFEST), send(MANIFEST))
        registry = make_registry()
        await resolve(registry, server)
        assert not mirror.asked
        await resolve(registry, server, PINNED)
        assert len(server.asked) == 1

    async def test_nobody_may_resolve(self, make_registry: MakeRegistry, server: FaultRegistry, certs_d: Path) -> None:
        write_hosts(certs_d, server.host, f'server = "{server.url}"\ncapabilities = ["pull"]\n')
        with pytest.raises(ConfigurationError, match=r"no host is configured that may be asked.*hosts\.toml"):
            await resolve(make_registry(), server)

    async def test_headers_and_an_overridden_path(
        self, make_registry: MakeRegistry, server: FaultRegistry, certs_d: Path
    ) -> None:
        text = f'server = "{server.url}/mirror/of"\noverride_path = true\n[header]\nx-a = ["1", "2"]\n'
        write_hosts(certs_d, server.host, text)
        server.on("/mirror/of/app/manifests/1", send(MANIFEST))
        await resolve(make_registry(), server)
        assert server.asked[0].headers["x-a"] in ("1", "2")

    async def test_a_broken_file_is_named(
        self, make_registry: MakeRegistry, server: FaultRegistry, certs_d: Path
    ) -> None:
        write_hosts(certs_d, server.host, "server = \n")
        registry = make_registry()
        with pytest.raises(ConfigurationError, match=r"hosts\.toml"):
            await resolve(registry, server)
        status = await registry.status()
        assert status.ready
        assert "hosts.toml" in status.message


class TestTls:
    @pytest.fixture(scope="class")
    @staticmethod
    def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
        return make_certificates(tmp_path_factory.mktemp("certificates"))

    @pytest.fixture
    async def secure(self, certificates: Certificates) -> AsyncIterator[FaultRegistry]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server_cert, certificates.server_key)
        async with fault_registry(context) as running:
            running.on_manifest("1", send(MANIFEST))
            yield running

    @pytest.fixture
    async def demanding(self, certificates: Certificates) -> AsyncIterator[FaultRegistry]:
        """Wants a client's certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server_cert, certificates.server_key)
        context.load_verify_locations(certificates.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        async with fault_registry(context) as running:
            running.on_manifest("1", send(MANIFEST))
            yield running

    async def test_an_unknown_authority(self, make_registry: MakeRegistry, secure: FaultRegistry) -> None:
        with pytest.raises(Unavailable, match=r"x509: certificate signed by unknown authority .*issuer") as caught:
            await resolve(make_registry(), secure)
        assert f"{secure.host}/hosts.toml" in caught.value.message
        assert not secure.asked

    async def test_a_server_that_wants_our_certificate(
        self, make_registry: MakeRegistry, demanding: FaultRegistry, certs_d: Path, certificates: Certificates
    ) -> None:
        (certs_d / demanding.host).mkdir()
        (certs_d / demanding.host / "hosts.toml").write_text(f'server = "{demanding.url}"\nca = "{certificates.ca}"\n')
        with pytest.raises(Unavailable, match=f"client certificate.* as client in .*{demanding.host}/hosts.toml"):
            await resolve(make_registry(), demanding)

    async def test_a_server_that_speaks_plain_http(self, make_registry: MakeRegistry, server: FaultRegistry) -> None:
        words = (
            f"server gave HTTP response to HTTPS client .* at https://{server.host}: .*'{server.host}' in plain_http"
        )
        with pytest.raises(Unavailable, match=words) as caught:
            await resolve(make_registry(plain_http=()), server)
        assert f"{server.host}/hosts.toml" in caught.value.message

    async def test_a_private_authority_of_a_hosts_file(
        self, make_registry: MakeRegistry, secure: FaultRegistry, certs_d: Path, certificates: Certificates
    ) -> None:
        write_hosts(certs_d, secure.host, 'ca = "mine.pem"\n')
        (certs_d / secure.host / "mine.pem").write_bytes(certificates.ca.read_bytes())
        assert (await resolve(make_registry(), secure)).manifest_content == MANIFEST

    async def test_a_private_authority_as_docker_has_it(
        self, make_registry: MakeRegistry, secure: FaultRegistry, certs_d: Path, certificates: Certificates
    ) -> None:
        (certs_d / secure.host).mkdir()
        (certs_d / secure.host / "ca.crt").write_bytes(certificates.ca.read_bytes())
        assert (await resolve(make_registry(), secure)).manifest_content == MANIFEST

    async def test_no_verification(self, make_registry: MakeRegistry, secure: FaultRegistry, certs_d: Path) -> None:
        write_hosts(certs_d, secure.host, "skip_verify = true\n")
        assert (await resolve(make_registry(), secure)).manifest_content == MANIFEST

    @pytest.mark.parametrize("form", ["pair", "one file", "docker"])
    async def test_a_clients_certificate(
        self,
        make_registry: MakeRegistry,
        demanding: FaultRegistry,
        certs_d: Path,
        certificates: Certificates,
        form: str,
    ) -> None:
        client = f'client = [["{certificates.client_cert}", "{certificates.client_key}"]]'
        if form == "one file":
            (certs_d / "both.pem").write_bytes(
                certificates.client_cert.read_bytes() + certificates.client_key.read_bytes()
            )
            client = 'client = "../both.pem"'
        write_hosts(certs_d, demanding.host, f'ca = "{certificates.ca}"\n{client}\n')
        if form == "docker":
            directory = certs_d / demanding.host
            (directory / "hosts.toml").unlink()
            for name, path in (
                ("ca.crt", certificates.ca),
                ("client.cert", certificates.client_cert),
                ("client.key", certificates.client_key),
            ):
                (directory / name).write_bytes(path.read_bytes())
        assert (await resolve(make_registry(), demanding)).manifest_content == MANIFEST

    async def test_a_client_without_the_certificate_wanted(
        self, make_registry: MakeRegistry, demanding: FaultRegistry, certs_d: Path, certificates: Certificates
    ) -> None:
        write_hosts(certs_d, demanding.host, f'ca = "{certificates.ca}"\n')
        with pytest.raises(Unavailable, match=demanding.url):
            await resolve(make_registry(), demanding)

    async def test_a_certificate_file_that_is_missing_or_none(
        self, make_registry: MakeRegistry, secure: FaultRegistry, certs_d: Path
    ) -> None:
        write_hosts(certs_d, secure.host, 'ca = "absent.pem"\n')
        with pytest.raises(ConfigurationError, match=r"absent\.pem"):
            await resolve(make_registry(), secure)
        (certs_d / secure.host / "absent.pem").write_text("rubbish")
        with pytest.raises(ConfigurationError, match=r"absent\.pem"):
            await resolve(make_registry(), secure)

    async def test_a_certificate_that_is_replaced_counts_at_once(
        self, make_registry: MakeRegistry, secure: FaultRegistry, certs_d: Path, certificates: Certificates
    ) -> None:
        write_hosts(certs_d, secure.host, 'ca = "ca.pem"\n')
        file = certs_d / secure.host / "ca.pem"
        file.write_text("rubbish")
        registry = make_registry()
        with pytest.raises(ConfigurationError):
            await resolve(registry, secure)
        file.write_bytes(certificates.ca.read_bytes())
        assert (await resolve(registry, secure)).manifest_content == MANIFEST

    async def test_https_never_redirects_to_plain_http(
        self,
        make_registry: MakeRegistry,
        secure: FaultRegistry,
        server: FaultRegistry,
        certs_d: Path,
    ) -> None:
        write_hosts(certs_d, secure.host, "skip_verify = true\n")
        secure.on_manifest("1", redirect(f"{server.url}/plain"))
        with pytest.raises(Unavailable, match="redirects to plain http"):
            await resolve(make_registry(), secure)
        assert not server.asked

    async def test_secrets_never_go_to_a_plain_token_server(
        self, make_registry: MakeRegistry, secure: FaultRegistry, server: FaultRegistry, certs_d: Path
    ) -> None:
        write_hosts(certs_d, secure.host, "skip_verify = true\n")
        secure.on_manifest("1", refuse(401, WWW_Authenticate=f'Bearer realm="{server.url}/token"'))
        with pytest.raises(CrinoidError, match="not reached by https"):
            await resolve(make_registry(), secure)
        assert not server.asked


async def test_a_mirror_that_lies_alone(
    make_registry: MakeRegistry, server: FaultRegistry, mirror: FaultRegistry, certs_d: Path
) -> None:
    write_hosts(certs_d, server.host, f'server = "{mirror.url}"\n')
    mirror.on_manifest(digest_of(MANIFEST), send(b"{}", digest=digest_of(MANIFEST)))
    with pytest.raises(CorruptContent, match=mirror.host):
        await resolve(make_registry(), server, PINNED)
    assert not server.asked, "the server of the file stands for the registry"


async def test_of_a_doubted_blob_nobody_else_can_be_asked(make_registry: MakeRegistry, server: FaultRegistry) -> None:
    request = BlobRequest(ImageReference.parse(f"{server.host}/app:1"), DESCRIPTOR, doubted=True)
    with pytest.raises(CorruptContent, match="no other host is configured"):
        await make_registry().read(request)
    assert not server.asked
