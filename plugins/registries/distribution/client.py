"""Asks hosts for manifests and blobs: an authenticated exchange, its documents verified, its streams resumed.

Loaded by the driver at its first pull, for aiohttp takes a fifth of a second to import.
"""

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
from aiohttp import ClientResponse

from crinoid.core.api.errors import CorruptContent, NotFound, Unauthenticated, Unavailable, Unsupported
from crinoid.core.api.host import Host
from crinoid.core.api.manifests import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MAX_DOCUMENT_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    classify,
    digest_of,
    is_digest,
    read_index,
    read_manifest,
    verify,
)
from crinoid.core.api.timeline import note, stage
from crinoid.core.api.values.image import BlobRequest, Credentials, Descriptor, ImageReference, ReferrersRequest
from crinoid.plugins.registries.distribution.answers import page_words, words_of
from crinoid.plugins.registries.distribution.attempts import Attempts, HostFault, RetryPolicy
from crinoid.plugins.registries.distribution.credentials import NodeCredentials
from crinoid.plugins.registries.distribution.hosts import Endpoint, find_endpoints
from crinoid.plugins.registries.distribution.options import DistributionOptions
from crinoid.plugins.registries.distribution.ranges import Part, Places, RangedStream
from crinoid.plugins.registries.distribution.referrers import read_referrers, tag_of
from crinoid.plugins.registries.distribution.tokens import Asker, Authorizer, read_challenges
from crinoid.plugins.registries.distribution.transport import (
    ContentDecoder,
    Exchange,
    Transport,
    decoder_of,
    elsewhere,
    lost,
    origin,
    read_answer,
    refusal,
)
from crinoid.plugins.registries.distribution.unknown_keys import Teller

_ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))
_MAX_ASKS = 4
_GIVEN = frozenset({200, 203, 206})  # 203: what a proxy has passed on, maybe changed; the digest tells
_EXPIRED = frozenset({400, 403})
"""What object stores say of a presigned URL whose time is over."""
_MAX_PIECE_BYTES = 1 << 20
_PROGRESS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index, verified."""

    descriptor: Descriptor
    content: bytes


class RegistryClient:
    """The protocol's client of one slot; made in the daemon's loop, closed at its end."""

    def __init__(self, options: DistributionOptions, host: Host) -> None:
        self._options = options
        self._log = host.log
        user_agent = options.user_agent or f"crinoid/{host.version or '0'}"
        settings = next(iter(options.config_paths), Path("certs.d"))
        self._transport = Transport(user_agent, options.dial_timeout_s, options.stall_timeout_s, settings)
        self._tell = Teller(host.log)
        node = NodeCredentials(options.docker_configs, options.helper_timeout_s, self._tell)
        self._authorizer = Authorizer(self._transport, node)
        self._streams = asyncio.Semaphore(options.max_streams)
        self._policy = RetryPolicy(options.tries, options.backoff_s, options.patience_s)

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()

    async def fetch_document(
        self, reference: ImageReference, wanted: Descriptor | None, credentials: Credentials | None
    ) -> Document:
        """Fetch what the reference names, or, with ``wanted``, the manifest that an index of it names."""
        selector = wanted.digest if wanted else reference.selector
        if wanted and wanted.size > MAX_DOCUMENT_BYTES:
            raise CorruptContent(f"pull {reference}: manifest {selector} is announced with {wanted.size} bytes")
        capability = "pull" if is_digest(selector) else "resolve"
        attempts = await self._attempts(f"pull {reference}", reference, capability)
        async for endpoint in attempts:
            try:
                return await self._ask_for_document(Asker(endpoint, reference, credentials), selector, wanted)
            except HostFault as fault:
                self.note(attempts, endpoint, fault)
        raise attempts.failure()

    async def fetch_referrers(self, request: ReferrersRequest) -> tuple[Descriptor, ...]:
        """Fetch the list of what refers to the manifest of the reference's digest; nothing where there is none."""
        reference, digest = request.reference, request.reference.digest
        what = f"referrers of {digest}"
        attempts = await self._attempts(f"pull {reference}: {what}", reference, "pull")
        path = f"/{reference.repository}/referrers/{digest}"
        async for endpoint in attempts:
            asker = Asker(endpoint, reference, request.credentials)
            try:
                async with await self._ask(asker, path, {"Accept": OCI_INDEX}) as response:
                    return read_referrers(await read_answer(response, MAX_DOCUMENT_BYTES), request.artifact_type, what)
            except HostFault as fault:
                self.note(attempts, endpoint, fault)
        if not isinstance(failure := attempts.failure(), NotFound):
            raise failure
        tagged = replace(reference, tag=tag_of(digest), digest="")
        try:
            document = await self.fetch_document(tagged, None, request.credentials)
        except NotFound:
            return ()
        return read_referrers(document.content, request.artifact_type, what)

    async def open_blob(self, request: BlobRequest) -> "BlobStream | RangedStream":
        """Open a stream of a blob; waits while too many are open."""
        what = f"pull {request.reference}: blob {request.blob.digest}"
        if not is_digest(request.blob.digest):
            raise Unsupported(f"{what}: not a digest by sha256, sha384 or sha512")

        async def open_part(part: Part) -> BlobStream:
            attempts = await self._attempts(what, request.reference, "pull", request.doubted)
            stream = BlobStream(self, request, attempts, asyncio.Semaphore(), part)
            await stream.open()
            return stream

        options, size = self._options, request.blob.size
        stream: BlobStream | RangedStream
        if options.connections_per_blob > 1 and size - request.offset >= 2 * options.range_bytes:
            # Its parts have a semaphore of their own each: all their places are taken from the slot's by the whole.
            places = Places(self._streams, options.connections_per_blob)
            stream = RangedStream(open_part, places, request.offset, size, options.range_bytes)
        else:
            attempts = await self._attempts(what, request.reference, "pull", request.doubted)
            stream = BlobStream(self, request, attempts, self._streams, Part(request.offset, size))
        await stream.open()
        return stream

    async def ask_for_blob(self, endpoint: Endpoint, request: BlobRequest, part: Part) -> ClientResponse:
        """Ask one host for a part of a blob; the answer is 200 or 206. Raises HostFault."""
        asker = Asker(endpoint, request.reference, request.credentials)
        path = f"/{request.reference.repository}/blobs/{request.blob.digest}"
        headers = {"Accept": "*/*"}
        if part.end < request.blob.size:
            headers["Range"] = f"bytes={part.start}-{part.end - 1}"
        elif part.start:  # a whole blob needs none, which every host knows how to answer
            headers["Range"] = f"bytes={part.start}-"
        try:
            return await self._ask(asker, path, headers)
        except HostFault as fault:
            if fault.status == 416 and "Range" in headers:  # it has none: what is there is read again and dropped
                return await self.ask_for_blob(endpoint, request, Part(0, request.blob.size))
            if not request.blob.urls or endpoint.is_mirror or not isinstance(fault.error, NotFound):
                raise
        return await self._ask_elsewhere(endpoint, request.blob, headers)

    def note(self, attempts: Attempts, endpoint: Endpoint, fault: HostFault) -> None:
        """Record a fault, and tell the log."""
        attempts.record(endpoint, fault)
        self._log.info("registry host %s: %s", endpoint.label, fault)

    async def _attempts(self, what: str, reference: ImageReference, capability: str, doubted: bool = False) -> Attempts:
        """Find the hosts; of what a mirror may have had wrong the registry is asked first."""
        options = self._options
        found = await asyncio.to_thread(
            find_endpoints, reference.registry, options.config_paths, options.plain_http, self._tell
        )
        able = [endpoint for endpoint in found if capability in endpoint.capabilities]
        if doubted:
            able.sort(key=lambda endpoint: endpoint.is_mirror)
            if len(able) < 2:
                raise CorruptContent(f"{what}: what came is not of the digest, and no other host is configured")
        return Attempts(what, able, self._policy)

    async def _ask_for_document(self, asker: Asker, selector: str, wanted: Descriptor | None) -> Document:
        what = f"manifest {selector}"
        path = f"/{asker.reference.repository}/manifests/{selector}"
        async with await self._ask(asker, path, {"Accept": _ACCEPT}) as response:
            content = await read_answer(response, MAX_DOCUMENT_BYTES)
            declared, announced = (response.headers.get(name, "") for name in ("Content-Type", "Docker-Content-Digest"))
        try:
            # The digest asked for, else the one announced, else sha256: each that is there must be true. Of a tag, the
            # registry may announce one by another algorithm than ours (distribution-spec, "Pulling manifests").
            requested = selector if is_digest(selector) else ""
            for digest in (requested, announced):
                if digest and (is_digest(digest) or digest == requested):
                    verify(content, digest, what)
            digest = requested or (announced if is_digest(announced) else digest_of(content))
            media_type = classify(content, wanted.media_type if wanted else declared, what)
            if wanted and (len(content), media_type) != (wanted.size, wanted.media_type):
                raise CorruptContent(f"{what} is not of the type and size that the index says")
            # Read here, so that the next host is asked where this one has another's document, or an error as a success.
            (read_index if media_type in INDEX_TYPES else read_manifest)(content, what)
        except Unsupported as error:
            raise HostFault(error) from error
        except CorruptContent as error:
            raise HostFault(CorruptContent(f"{error}{_add_words(content, declared)}")) from error
        return Document(Descriptor(media_type, digest, len(content)), content)

    async def _ask(self, asker: Asker, path: str, headers: dict[str, str]) -> ClientResponse:
        """One exchange, authenticated when the host wants it; 200 or 206, else HostFault."""
        with stage(f"ask {asker.endpoint.label} for {path[:200]}") as step:
            step.note(asker.endpoint.trust)
            try:
                response = await self._converse(asker, path, headers)
            except HostFault as fault:
                step.note(str(fault))
                raise
            if not str(response.url).startswith(asker.endpoint.url):
                step.note(f"redirected to {response.url.host}")
            step.note(f"answer: {response.status}")
            return response

    async def _converse(self, asker: Asker, path: str, headers: dict[str, str]) -> ClientResponse:
        endpoint = asker.endpoint
        url = f"{endpoint.url}{path}" + (f"?ns={endpoint.namespace}" if endpoint.namespace else "")
        if authorization := self._authorizer.known(asker):
            note("credentials: the token of before, or of the pull request")
        may_have_expired = True
        for attempt in range(_MAX_ASKS):
            response = await self._transport.send(Exchange("GET", url, endpoint, headers, authorization))
            if response.status in _GIVEN:
                return response
            fault = await refusal(response)
            if isinstance(fault.error, Unauthenticated):  # registries don't tell whether a private repository exists
                said = "it refused the credentials or token" if authorization else "it wants credentials"
                words = f"{fault}; {said}, or the repository does not exist"
                fault = HostFault(Unauthenticated(words), status=fault.status)
            is_home = str(response.url).startswith(endpoint.url)
            if origin(str(response.url)) != origin(endpoint.url):
                fault = elsewhere(fault, str(response.url))
            if response.status == 401 and is_home:
                challenges = read_challenges(response.headers.getall("WWW-Authenticate", ()))
                # Where a token is good for one request alone, other streams use up the one that is shared.
                fresh = await self._authorizer.answer(asker, challenges, authorization, shared=attempt == 0)
                if fresh == authorization:
                    break
                authorization = fresh
            elif response.status in _EXPIRED and not is_home and may_have_expired:
                may_have_expired = False  # a presigned URL that had run out: the registry makes another
            else:
                break
        raise fault

    async def _ask_elsewhere(self, endpoint: Endpoint, blob: Descriptor, headers: dict[str, str]) -> ClientResponse:
        """Ask the addresses that the descriptor of a "foreign" layer names, by https and with no credentials."""
        said = []
        bare = Endpoint(endpoint.url, tls=endpoint.tls, dial_timeout_s=endpoint.dial_timeout_s)
        for url in (url for url in blob.urls[:4] if url.startswith(("https://", endpoint.url.partition("//")[0]))):
            try:
                response = await self._transport.send(Exchange("GET", url, bare, headers))
                if response.status in _GIVEN:
                    return response
                raise await refusal(response)
            except HostFault as fault:
                said.append(f"{url.partition('?')[0]}: {fault}")
        raise HostFault(NotFound("; ".join(["404, a foreign layer", *said])))


def _add_words(content: bytes, declared: str) -> str:
    """Return what there is to say of a document that is no manifest."""
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return page_words(content, declared)
    said = words_of(content)
    return f"; it says: {said}" if said else ""


class BlobStream:
    """An asynchronous iterator of a part's pieces; a break is resumed where it was, at the next host if need be.

    ``is_ranged``: the host gave no more than the part.
    """

    def __init__(
        self, client: RegistryClient, request: BlobRequest, attempts: Attempts, streams: asyncio.Semaphore, part: Part
    ) -> None:
        self._client = client
        self._request = request
        self._attempts = attempts
        self._streams = streams
        self._position = self._connected_at = part.start
        self._end = part.end
        self._is_strict = part.strict
        self.is_ranged = False
        self._skip = 0
        self._decoder: ContentDecoder | None = None
        self._endpoint: Endpoint | None = None
        self._response: ClientResponse | None = None
        self._is_open = False

    def __aiter__(self) -> "BlobStream":
        return self

    def widen(self) -> None:
        """Go on to the blob's end."""
        self._end = self._request.blob.size

    async def open(self) -> None:
        """Wait for a free stream and connect; nothing is held when it raises."""
        await self._streams.acquire()
        self._is_open = True
        try:
            if self._position < self._end:
                await self._connect()
        except BaseException:
            await self.aclose()
            raise

    async def __anext__(self) -> bytes:
        try:
            while self._is_open and self._position < self._end:
                piece = await self._read()
                # A host that ignores ranges sends the blob from its start: what was had before is dropped, and what
                # goes beyond the part's end.
                dropped = min(self._skip, len(piece))
                self._skip -= dropped
                kept = piece[dropped : dropped + self._end - self._position]
                self._position += len(kept)
                if kept:
                    return kept
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Give up the connection. Idempotent."""
        if self._response is not None:
            if self._position < self._end:
                self._response.close()
            self._response.release()  # a whole answer leaves its connection for the next blob
            self._response = None
        if self._is_open:
            self._is_open = False
            self._streams.release()

    async def _connect(self) -> None:
        """Ask one host after the other for what is left; ``_read`` reads the answer that stands up to inspection."""
        async for endpoint in self._attempts:
            part, size = Part(self._position, self._end), self._request.blob.size
            try:
                response = await self._client.ask_for_blob(endpoint, self._request, part)
                self.is_ranged = response.status == 206
                if self._is_strict and not self.is_ranged:
                    response.close()
                    raise HostFault(Unavailable("it gives no ranges any more"))
                self._decoder = decoder_of(response, self._request.blob.media_type)
                # Compressed on the way, the length announced is that of something else.
                length = None if self._decoder is not None else response.content_length
                if self.is_ranged:
                    self._skip = 0
                    wrong = _range_fault(response.headers.get("Content-Range", ""), length, part, size)
                else:
                    self._skip = self._position
                    wrong = "" if length in (None, size) else f"the blob has {length} bytes there, not {size}"
                if wrong:
                    response.close()
                    raise HostFault(CorruptContent(wrong))
            except HostFault as fault:
                self._client.note(self._attempts, endpoint, fault)
                continue
            self._response, self._endpoint, self._connected_at = response, endpoint, self._position
            return
        raise self._attempts.failure()

    async def _read(self) -> bytes:
        """Return the next bytes of the connection, connecting anew as often as it breaks and may be tried."""
        assert self._response is not None
        try:
            content = self._response.content
            if self._decoder is None:
                piece = await content.read(_MAX_PIECE_BYTES)
            else:
                piece = await self._decoder.read(content, _MAX_PIECE_BYTES)
        except HostFault as fault:
            return await self._resume(fault)
        except (aiohttp.ClientError, OSError) as error:
            return await self._resume(lost(error, self._response))
        if piece:
            return piece
        size = self._request.blob.size
        return await self._resume(HostFault(Unavailable(f"cut off at byte {self._position} of {size}"), passing=True))

    async def _resume(self, fault: HostFault) -> bytes:
        assert self._response is not None and self._endpoint is not None
        self._response.close()
        self._response = None
        if self._position - self._connected_at >= _PROGRESS_BYTES:
            self._attempts.forgive(self._endpoint)
        self._client.note(self._attempts, self._endpoint, fault)
        await self._connect()
        return b""


def _range_fault(header: str, length: int | None, part: Part, size: int) -> str:
    """Check ``Content-Range: bytes FIRST-LAST/TOTAL`` (RFC 9110, section 14.4); it may be less than was asked for.

    Without it, the length says what it is: some hosts and caches leave it out.
    """
    position = part.start
    if not header and length == part.end - position:
        return ""
    unit, _, rest = header.partition(" ")
    span, _, total = rest.partition("/")
    first, _, last = span.partition("-")
    is_it = unit.lower() == "bytes" and first == str(position) and total in ("*", str(size))
    end = int(last) + 1 if last.isascii() and last.isdigit() and len(last) < 20 else 0
    if is_it and position < end <= size and length in (None, end - position):
        return ""
    return f"asked for bytes {position}- of {size}, it sent {header[:80]!r} and announced {length} bytes"
