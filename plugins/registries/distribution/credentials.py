"""Whose name a host is asked in: the pull request's credentials, or the node's own from Docker's configuration files.

The request's are for the registry of the reference: a mirror gets them only if their ``server_address`` names it, since
a mirror may be anyone. A mirror, and a request without credentials, get what ``config.json`` has for the host: a
credential helper, an entry of ``auths``, an identity token.
"""

import asyncio
import base64
import binascii
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from crinoid.core.api.errors import ConfigurationError, CrinoidError, Unauthenticated
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.linux.files import read_regular
from crinoid.core.api.linux.process import run
from crinoid.core.api.manifests import Document, TextMap
from crinoid.core.api.timeline import note
from crinoid.core.api.values.image import DEFAULT_REGISTRY, Credentials, ImageReference
from crinoid.plugins.registries.distribution.hosts import Endpoint
from crinoid.plugins.registries.distribution.unknown_keys import unknown_keys

_MAX_FILE_BYTES = 4 << 20
_HUB_NAMES = frozenset({DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io"})
_HUB_KEY = "https://index.docker.io/v1/"
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IDENTITY_USER = "<token>"
_AUTH_KEYS = ("auth", "username", "password", "email", "serveraddress", "identitytoken", "registrytoken")
"""What docker keeps in an entry of ``auths`` (github.com/docker/cli, config/types, AuthConfig)."""
_CREDENTIAL_KEYS = {name.lower(): name for name in ("auths", "credHelpers", "credsStore")}
_NEAR = 0.7


def applies(credentials: Credentials, endpoint: Endpoint, registry: str) -> bool:
    """Return whether a pull request's credentials are meant for this host."""
    if not credentials.server_address:
        return not endpoint.is_mirror
    named = _same_host(_host_of(credentials.server_address))
    return named == _same_host(endpoint.host) or (not endpoint.is_mirror and named == _same_host(registry))


def is_empty(credentials: Credentials) -> bool:
    """Return whether there is nothing in them but perhaps an address."""
    return not (credentials.username or credentials.identity_token or credentials.registry_token)


class NodeCredentials:
    """The node's own credentials. Files are read and helpers asked anew each time: both may change at any moment."""

    def __init__(
        self, paths: tuple[Path, ...], helper_timeout_s: float = 0, tell: Callable[[str], None] = note
    ) -> None:
        self._paths = paths
        self._helper_timeout_s = helper_timeout_s
        self._tell = tell

    async def find(self, host: str, reference: ImageReference) -> Credentials | None:
        """Return the credentials for a host, ``None`` where no file has any.

        Raises ConfigurationError for a file that can't be read, Unauthenticated when a helper fails.
        """
        for path, config in await asyncio.to_thread(lambda: list(self._read_configs())):
            if found := await self._look_up(path, config, host, reference):
                return found
        return None

    def _read_configs(self) -> "Iterator[tuple[Path, _DockerConfig]]":
        for path in self._paths:
            try:
                path = path.expanduser()
                touching(path)
                content = read_regular(path, _MAX_FILE_BYTES)
            except (FileNotFoundError, NotADirectoryError, RuntimeError):  # RuntimeError: there is no home
                continue
            except OSError as error:
                raise ConfigurationError(f"docker configuration {path}: {error.strerror}") from error
            config = _read(_DockerConfig, content, f"docker configuration {path}")
            for text in config.passed_over():
                self._tell(f"docker configuration {path}: {text}")
            yield path, config

    def check(self) -> str:
        """Read all files; return what is wrong with the first that can't be read."""
        try:
            for path, config in self._read_configs():
                for name, entry in config.auths.items():
                    where = f"docker configuration {path}: auths.{name}"
                    self._read_entry(where, entry)
        except ConfigurationError as error:
            return error.message
        return ""

    def _read_entry(self, where: str, entry: object) -> Credentials | None:
        auth = _read(_Auth, entry, where)
        for text in unknown_keys(auth.strange(), _AUTH_KEYS):
            self._tell(f"{where}.{text}")
        return auth.credentials(where)

    async def _look_up(
        self, path: Path, config: "_DockerConfig", host: str, reference: ImageReference
    ) -> Credentials | None:
        for key in _keys(host, reference):
            if helper := config.helpers.get(key):
                note(f"credentials: helper docker-credential-{helper}, by credHelpers of {path}")
                return await self._ask_helper(helper, _store_key(host))
        if config.store and (found := await self._ask_helper(config.store, _store_key(host))):
            note(f"credentials: helper docker-credential-{config.store}, by credsStore of {path}")
            return found
        by_key = {_key_of(key): (key, auth) for key, auth in config.auths.items()}
        for wanted in _keys(host, reference):
            if (entry := by_key.get(_key_of(wanted))) is not None:
                where = f"docker configuration {path}: auths.{entry[0]}"
                note(f"credentials: {where}")
                return self._read_entry(where, entry[1])
        return None

    async def _ask_helper(self, name: str, server: str) -> Credentials | None:
        """Run ``docker-credential-NAME get``; it says so, and fails, when it has nothing for the server."""
        program = f"docker-credential-{name}"
        if not _HELPER.fullmatch(name):
            raise ConfigurationError(f"docker configuration: {name!r} is not the name of a credential helper")
        try:
            done = await run([program, "get"], timeout_s=self._helper_timeout_s, stdin=server.encode())
        except CrinoidError as error:
            raise Unauthenticated(f"credential helper {program} for {server}: {error.message}") from error
        if done.exit_code:
            words = (done.stdout or done.stderr).decode(errors="replace").strip()[:200]
            if "not found" in words.lower():
                return None
            raise Unauthenticated(f"credential helper {program} for {server} ended with {done.exit_code}: {words}")
        try:
            return _HelperAnswer.model_validate_json(done.stdout).credentials()
        except ValidationError:
            raise Unauthenticated(f"credential helper {program} for {server} gave no JSON answer") from None


class _Document(Document):
    model_config = ConfigDict(hide_input_in_errors=True)


_D = TypeVar("_D", bound=_Document)


def _read(model: type[_D], content: bytes | object, what: str) -> _D:
    """Validate a file, or a part of one. Raises ConfigurationError, which quotes nothing of it: there are passwords."""
    try:
        return model.model_validate_json(content) if isinstance(content, bytes) else model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{what}: {place + ': ' if place else ''}{first['msg']}") from None


class _Auth(_Document):
    model_config = ConfigDict(extra="allow")

    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: Annotated[str, Field(alias="identitytoken")] = ""
    registry_token: Annotated[str, Field(alias="registrytoken")] = ""

    def credentials(self, where: str) -> Credentials | None:
        """Return what the entry holds, ``None`` for an empty one (Docker leaves those beside a store)."""
        username, password = self.username, self.password
        if self.auth:
            username, password = _decode(self.auth, where)
        found = Credentials(username, password, "", self.identity_token, self.registry_token)
        return None if is_empty(found) else found

    def strange(self) -> dict[str, object]:
        """Return what docker does not write there."""
        return {name: value for name, value in (self.model_extra or {}).items() if name.lower() not in _AUTH_KEYS}


class _HelperAnswer(_Document):
    username: Annotated[str, Field(alias="Username")] = ""
    secret: Annotated[str, Field(alias="Secret")]

    def credentials(self) -> Credentials:
        if self.username == _IDENTITY_USER:
            return Credentials(identity_token=self.secret)
        return Credentials(self.username, self.secret)


class _DockerConfig(_Document):
    model_config = ConfigDict(extra="allow")

    auths: Mapping[str, object] = {}
    """Read when asked for: an entry that is broken harms its own registry alone."""
    helpers: TextMap = Field(alias="credHelpers", default={})
    store: Annotated[str, Field(alias="credsStore")] = ""

    def passed_over(self) -> Iterator[str]:
        """Say which keys were meant for credentials, it seems; the file is full of docker's other settings."""
        for name, value in (self.model_extra or {}).items():
            near = difflib.get_close_matches(name.lower(), _CREDENTIAL_KEYS, n=1, cutoff=_NEAR)
            if near:
                yield f'{name}: unknown key, which is passed over; did you mean "{_CREDENTIAL_KEYS[near[0]]}"?'
            elif isinstance(value, dict) and any(key in value for key in _AUTH_KEYS):
                yield f'{name}: credentials that are not below "auths" are passed over'


def _decode(auth: str, where: str) -> tuple[str, str]:
    try:
        username, colon, password = base64.b64decode("".join(auth.split()), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise ConfigurationError(f"{where}: auth is not the base64 form of user:password")
    return username, password.strip("\0")


def _host_of(address: str) -> str:
    """Return host and port of a server address, which may be a URL with a path."""
    return address.rpartition("://")[2].partition("/")[0]


def _same_host(host: str) -> str:
    return DEFAULT_REGISTRY if host in _HUB_NAMES else host.lower()


def _store_key(host: str) -> str:
    return _HUB_KEY if host in _HUB_NAMES else host


def _keys(host: str, reference: ImageReference) -> Iterator[str]:
    """Yield the keys that may hold a host's entry, the most specific first: with the repository, its parents, none."""
    parts = reference.repository.split("/")
    for name in sorted(_HUB_NAMES) if host in _HUB_NAMES else [host]:
        yield from (f"{name}/{'/'.join(parts[:length])}" for length in range(len(parts), 0, -1))
    yield from ([_HUB_KEY, *sorted(_HUB_NAMES)] if host in _HUB_NAMES else [host, f"https://{host}"])


def _key_of(key: str) -> str:
    """Bring a key of ``auths`` into one form: no scheme, no API version, no slash at the end."""
    return re.sub(r"/v[12]/?$", "", key.rpartition("://")[2]).rstrip("/").lower()
