"""Answers a host's challenge: a Basic header, or a bearer token fetched from where the challenge says, and kept.

The token server's protocol is Docker's (distribution: token and OAuth2 specifications): GET with the user's name and
password, or POST with an identity token as the refresh token. One fetch serves all streams that wait for it.
"""

import asyncio
import base64
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from crinoid.core.api.errors import CorruptContent, CrinoidError, NotFound, Unauthenticated, Unavailable
from crinoid.core.api.manifests import Document, parse
from crinoid.core.api.timeline import note, stage
from crinoid.core.api.values.image import Credentials, ImageReference
from crinoid.plugins.registries.distribution.answers import page_words
from crinoid.plugins.registries.distribution.attempts import HostFault
from crinoid.plugins.registries.distribution.credentials import NodeCredentials, applies, is_empty
from crinoid.plugins.registries.distribution.hosts import Endpoint
from crinoid.plugins.registries.distribution.transport import Exchange, Transport, read_answer, refusal

_BASIC_LIFE_S = 300.0
_SHORTEST_LIFE_S = 60.0  # token specification: "expires_in"
_MARGIN_S = 5.0
_MAX_ANSWER_BYTES = 1 << 20
_MAX_KEPT = 512
_SENDABLE = re.compile(r"[\x21-\x7e]{1,65536}")
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # a pattern
_PARAMETER = re.compile(rf'\s*,?\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*|(?=\s*(?:,|$))))')
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?=[\s,]|$)")
_TOKEN68 = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme, in lower case, with its parameters."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks which host for which repository."""

    endpoint: Endpoint
    reference: ImageReference
    credentials: Credentials | None


@dataclass(frozen=True, slots=True)
class _Pass:
    """An Authorization header and when it ends, by the monotonic clock."""

    header: str
    ends_at: float


class TokenAnswer(Document):
    """What a token server says."""

    token: str = ""
    access_token: str = ""
    expires_in: object = None
    """In seconds; what is no such number, as the -1 of some, is the specification's least."""


class Authorizer:
    """Keeps the Authorization headers of this slot, in memory only."""

    def __init__(self, transport: Transport, node: NodeCredentials) -> None:
        self._transport = transport
        self._node = node
        self._passes: dict[tuple[str, str, Credentials | None], _Pass] = {}
        self._locks: dict[tuple[str, str, Credentials | None], asyncio.Lock] = {}

    def known(self, asker: Asker) -> str:
        """Return the header that was good lately, or none; raise HostFault for a token that can't be sent."""
        if token := _registry_token(asker):
            if not _SENDABLE.fullmatch(token):
                raise HostFault(Unauthenticated("the pull request's registry token has characters no token has"))
            return f"Bearer {token}"
        found = self._passes.get(_key(asker))
        return found.header if found and found.ends_at > time.monotonic() else ""

    async def answer(self, asker: Asker, challenges: Sequence[Challenge], refused: str, shared: bool = True) -> str:
        """Return a header that answers the challenges, other than the one just refused.

        Unless ``shared``, it is made for this asker alone, and may be the one refused where there is no other.

        Raises HostFault: Unauthenticated when there is none, or what the token server said.
        """
        key = _key(asker)
        if not shared:
            return (await self._make(asker, challenges)).header
        async with self._locks.setdefault(key, asyncio.Lock()):
            if (known := self.known(asker)) and known != refused:
                return known
            made = await self._make(asker, challenges)
            if made.header == refused:
                raise _refused(asker)
            if len(self._passes) >= _MAX_KEPT:
                now = time.monotonic()
                self._passes = {one: kept for one, kept in self._passes.items() if kept.ends_at > now}
                self._locks = {one: lock for one, lock in self._locks.items() if lock.locked() or one in self._passes}
            self._passes[key] = made
            return made.header

    async def _make(self, asker: Asker, challenges: Sequence[Challenge]) -> _Pass:
        if _registry_token(asker):
            raise _refused(asker)
        given, credentials = asker.credentials, None
        if given and not is_empty(given) and applies(given, asker.endpoint, asker.reference.registry):
            credentials = given
            note("credentials: those of the pull request")
        elif not given or is_empty(given) or asker.endpoint.is_mirror:
            try:
                credentials = await self._node.find(_credential_host(asker), asker.reference)
            except CrinoidError as error:
                raise HostFault(error) from error
            if credentials is None:
                note("credentials: none, neither in the pull request nor on the node")
        else:  # they name another server: the peers go on without any, for a public image needs none
            note("credentials: none, as those of the pull request are for another server")
        for challenge in challenges:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                return await self._fetch(asker, challenge.parameters, credentials)
        if not any(challenge.scheme == "basic" for challenge in challenges):
            schemes = ", ".join(challenge.scheme for challenge in challenges)
            named = f"none that is known here: {schemes}" if schemes else "none"
            named = "bearer without the address of a token server" if schemes == "bearer" else named
            raise HostFault(Unauthenticated(f"401, and of the ways to authenticate it names {named}"))
        if credentials is None or not credentials.username:
            words = f"401: it wants a user and a password, and there are none {_where(asker)}"
            raise HostFault(Unauthenticated(words), advice="docs/troubleshooting.md#registry-wants-credentials")
        return _Pass(_basic(credentials), time.monotonic() + _BASIC_LIFE_S)

    async def _fetch(self, asker: Asker, wanted: Mapping[str, str], credentials: Credentials | None) -> _Pass:
        """Fetch a bearer token from the realm of a challenge."""
        if credentials and credentials.registry_token:
            return _Pass(f"Bearer {credentials.registry_token}", time.monotonic() + _BASIC_LIFE_S)
        try:
            realm = urlsplit(wanted["realm"])
        except ValueError:  # a bracket that is left open: no address at all
            realm = urlsplit("")
        if realm.scheme != "https" and not (realm.scheme == "http" and asker.endpoint.url.startswith("http://")):
            # It would carry secrets in the clear, where the registry itself is asked by https.
            words = f"401, and its token server {wanted['realm'][:200]!r} is not reached by https"
            raise HostFault(Unauthenticated(words))
        exchange = _token_exchange(asker, wanted, credentials)
        try:
            with stage(f"ask token server {realm.scheme}://{realm.netloc.rpartition('@')[2]}"):
                async with await self._transport.send(exchange) as response:
                    if response.status not in (200, 201, 203):
                        raise await refusal(response)
                    content = await read_answer(response, _MAX_ANSWER_BYTES)
                    answer = _read_answer(content, response.headers.get("Content-Type", ""))
            token, told = answer.token or answer.access_token, answer.expires_in
            if not _SENDABLE.fullmatch(token):
                raise CorruptContent("its answer holds no usable token")
        except (HostFault, CorruptContent) as error:
            # What a token server refuses are credentials, whatever status it chose for that.
            fault = error if isinstance(error, HostFault) else HostFault(error)
            kind = Unauthenticated if fault.status in (400, 401, 403) else type(fault.error)
            kind = Unavailable if kind is NotFound else kind  # of the image nothing was said
            words = f"token server {realm.netloc}: {fault}"
            raise HostFault(kind(words), fault.passing, fault.retry_after_s, fault.status) from error
        life_s = max(_SHORTEST_LIFE_S, told if isinstance(told, int | float) and told < math.inf else 0) - _MARGIN_S
        return _Pass(f"Bearer {token}", time.monotonic() + life_s)


def _read_answer(content: bytes, declared: str) -> TokenAnswer:
    try:
        return parse(TokenAnswer, content, "its answer")
    except CorruptContent as error:
        raise CorruptContent(f"{error}{page_words(content, declared)}") from error


def _key(asker: Asker) -> tuple[str, str, Credentials | None]:
    return asker.endpoint.url, asker.reference.name, asker.credentials


def _registry_token(asker: Asker) -> str:
    given = asker.credentials
    if given and given.registry_token and applies(given, asker.endpoint, asker.reference.registry):
        return given.registry_token
    return ""


def _credential_host(asker: Asker) -> str:
    """A mirror has credentials of its own; the registry's are kept by the name in the reference."""
    return asker.endpoint.host if asker.endpoint.is_mirror else asker.reference.registry


def _token_exchange(asker: Asker, wanted: Mapping[str, str], credentials: Credentials | None) -> Exchange:
    """Ask the realm as Docker's "Token Authentication Specification" says, or by its OAuth2 form."""
    realm, service = wanted["realm"], wanted.get("service", "")
    # A challenge without a scope, as of a registry's root, would give a token that is good for nothing.
    scope = wanted.get("scope") or f"repository:{asker.reference.repository}:pull"
    if credentials and credentials.identity_token:
        form = {
            "grant_type": "refresh_token",
            "client_id": "crinoid",
            "refresh_token": credentials.identity_token,
            "service": service,
            "scope": scope,
        }
        return Exchange("POST", realm, asker.endpoint, form=form)
    fields = [("service", service)] if service else []
    query = urlencode([*fields, *(("scope", each) for each in scope.split(" "))], safe="/:,")
    url = f"{realm}{'&' if '?' in realm else '?'}{query}"
    authorization = _basic(credentials) if credentials and credentials.username else ""
    return Exchange("GET", url, asker.endpoint, authorization=authorization)


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _refused(asker: Asker) -> HostFault:
    return HostFault(Unauthenticated(f"401: it refused the credentials {_where(asker)}"))


def _where(asker: Asker) -> str:
    given = asker.credentials
    if given and not is_empty(given) and applies(given, asker.endpoint, asker.reference.registry):
        return "of the pull request"
    host = _credential_host(asker)
    if given and not is_empty(given) and not asker.endpoint.is_mirror:
        return f"for {host}: those of the pull request are for {given.server_address!r}"
    return f"for {host}, neither in the pull request (imagePullSecrets) nor in a docker config.json of the node"


def read_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Read every challenge of every header ``WWW-Authenticate``, in order (RFC 9110, section 11.6.1).

    What is not in the form ends the reading of its header.
    """
    found = []
    for header in (header[:8192] for header in headers):
        position = 0
        while match := _SCHEME.match(header, position):
            scheme, position = match[1].lower(), match.end()
            parameters: dict[str, str] = {}
            while (parameter := _PARAMETER.match(header, position)) is not None:
                quoted, plain = parameter[2], parameter[3]
                parameters[parameter[1].lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                position = parameter.end()
            if not parameters and (skipped := _TOKEN68.match(header, position)):  # as Negotiate has it
                position = skipped.end()
            found.append(Challenge(scheme, parameters))
    return tuple(found)
