"""A registry on loopback that misbehaves as a test tells it to.

Each path answers by a script: the first request by its first answer, the next by the next, the last one for ever.
An answer is a function of the request; those below make the usual ones.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from support.images import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, digest_of

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came in; ``form`` is the body of a POST."""

    path: str
    query: str
    headers: Mapping[str, str]
    form: Mapping[str, str]


@dataclass(slots=True)
class FaultRegistry:
    """A running server; ``asked`` has every request in order."""

    host: str
    scheme: str
    scripts: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def on(self, path: str, *answers: Answer) -> None:
        """Script a path, without its query."""
        self.scripts[path] = list(answers)

    def on_manifest(self, selector: str, *answers: Answer) -> None:
        self.on(f"/v2/app/manifests/{selector}", *answers)

    def on_blob(self, digest: str, *answers: Answer) -> None:
        self.on(f"/v2/app/blobs/{digest}", *answers)

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append(Asked(request.path, request.rel_url.raw_query_string, dict(request.headers), form))
        script = self.scripts.get(request.path)
        if not script:
            return await refuse(404, "MANIFEST_UNKNOWN", "no such thing")(request)
        return await (script.pop(0) if len(script) > 1 else script[0])(request)


@asynccontextmanager
async def fault_registry(context: ssl.SSLContext | None = None) -> AsyncIterator[FaultRegistry]:
    """Run one on a port of the kernel's choice, by https if there is a context."""
    app = web.Application()
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    server = FaultRegistry("", "https" if context else "http")
    app.router.add_route("*", "/{path:.*}", server.handle)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    server.host = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


def manifest_of(config: bytes, *layers: bytes) -> bytes:
    """Return an OCI manifest over the contents."""

    def describe(media_type: str, content: bytes) -> dict[str, object]:
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": describe(OCI_CONFIG, config),
        "layers": [describe("application/vnd.oci.image.layer.v1.tar", layer) for layer in layers],
    }
    return json.dumps(document).encode()


def index_of(*entries: Mapping[str, object]) -> bytes:
    """Return an OCI index of the entries."""
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


def send(content: bytes, media_type: str = OCI_MANIFEST, digest: str = "") -> Answer:
    """Answer 200 with a document; ``digest`` empty: the true one."""

    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest or digest_of(content)}
        return web.Response(body=content, headers=headers)

    return answer


def refuse(status: int, code: str = "", message: str = "", **headers: str) -> Answer:
    """Answer with an error in the registry's form; header names have ``_`` for ``-``."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = json.dumps({"errors": [{"code": code, "message": message}]}) if code else ""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=body, headers=named)

    return answer


def redirect(location: str, status: int = 307) -> Answer:
    """Answer with a redirect."""
    return refuse(status, Location=location)


def challenge(text: str) -> Answer:
    """Answer 401 with a challenge."""
    return refuse(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate=text)


def guard(authorization: str, text: str, answer: Answer) -> Answer:
    """Answer only who sends the Authorization header; challenge the others."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        is_right = request.headers.get("Authorization") == authorization
        return await (answer if is_right else challenge(text))(request)

    return guarded


def range_of(request: web.Request, size: int) -> tuple[int, int]:
    """Return where the range begins that a request asks for, and where it ends, the byte after the last."""
    first, _, last = request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1 if last else size


def stream(
    content: bytes, cut_at: int | None = None, stall_at: int | None = None, ranges: bool = True, length: bool = True
) -> Answer:
    """Answer with a blob, or the range asked for.

    The connection is cut, or nothing comes any more, at that byte of the blob. Without ``ranges`` it is always all of
    it; without ``length`` it is chunked.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        start, stop = range_of(request, len(content)) if ranges else (0, len(content))
        response = web.StreamResponse(status=206 if (start, stop) != (0, len(content)) else 200)
        if response.status == 206:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        if length:
            response.content_length = stop - start
        await response.prepare(request)
        end = next((at for at in (cut_at, stall_at) if at is not None), stop)
        await response.write(content[start : min(stop, max(start, end))])
        if stall_at is not None:
            await asyncio.sleep(60)
        if cut_at is not None and request.transport is not None:
            await asyncio.sleep(0.01)  # so that what was written gets out
            request.transport.abort()
        return response

    return answer
