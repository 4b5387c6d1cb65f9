"""What a connection that failed means, in the words that people search for, and which setting mends it.

``transport`` comes here with whatever aiohttp raises. Answers that will be the same in a second are final: a name that
does not resolve, a port where nobody listens, a certificate; the kubelet asks again soon enough.
"""

import errno
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from crinoid.core.api.errors import ConfigurationError, Unavailable
from crinoid.plugins.registries.distribution.attempts import HostFault

_UNTRUSTED = {2, 18, 19, 20, 21}
"""X509_V_ERR_* of an authority that is not known: its certificate is missing here, or signed by itself."""
_EXPIRED, _NOT_YET_VALID = 10, 9
_PLAIN_HTTP = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"})
"""What OpenSSL makes of an answer that is plain text."""
_FINAL = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})


@dataclass(frozen=True, slots=True)
class Route:
    """Which host is spoken to, by which proxy (without its password), and the file that has settings of the host."""

    host: str
    secure: bool
    settings: Path
    proxy: str = ""
    has_client_certificate: bool = False


def connection_fault(error: Exception, route: Route) -> HostFault:
    """Return the fault for a connection that could not be made or was lost, in words that hold no URL and no header."""
    if route.proxy and isinstance(error, aiohttp.ClientHttpProxyError):
        return _proxy_fault(route, f"it answered {error.status} to CONNECT {route.host}", passing=error.status >= 500)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate_fault(error.certificate_error, route)
    if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError):
        return _tls_fault(error, route)
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
        return HostFault(Unavailable("i/o timeout: it stalled, no bytes came in time"), passing=True)
    words, passing = _plain_words(error)
    if route.proxy:
        return _proxy_fault(route, words, passing)
    # A server that requires a client certificate says so after the handshake, in a record that is mostly lost.
    broke_off = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError | BrokenPipeError) or (
        isinstance(error, aiohttp.ClientOSError) and error.errno == errno.ECONNRESET
    )
    hint = f"if it requires a client certificate, name one as client in {route.settings}"
    wants_advice = broke_off and route.secure and not route.has_client_certificate
    return HostFault(Unavailable(words), passing, advice=hint if wants_advice else "")


def proxy_fault(variable: str, proxy: str, why: str) -> HostFault:
    """Return the fault for a proxy that can't be used; its text may hold a password, so only the end is shown."""
    return HostFault(ConfigurationError(f"proxy {proxy.rpartition('@')[2]!r} of {variable}: {why}"))


def _proxy_fault(route: Route, words: str, passing: bool) -> HostFault:
    """Blame the proxy: the registry was never reached."""
    return HostFault(Unavailable(f"proxy {route.proxy}: {words}"), passing)


def _plain_words(error: Exception) -> tuple[str, bool]:
    """Return what happened to a connection, and whether it may be better in a moment."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, socket.gaierror):
        if cause.errno == socket.EAI_AGAIN:
            return "lookup failed: the name servers of /etc/resolv.conf give no answer (i/o timeout)", False
        return "no such host: its name does not resolve", False
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "dial: i/o timeout, no connection in time", True
    if isinstance(cause, OSError):
        number = cause.errno
        words = os.strerror(number).lower() if number and number > 0 else "the connection broke"
        return words, number not in _FINAL
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "EOF: it broke off", True
    if isinstance(error, aiohttp.ClientResponseError):
        return "its answer is not HTTP", True
    return f"the request failed ({type(error).__name__})", False


def _certificate_fault(said: Exception, route: Route) -> HostFault:
    """Say what is wrong with a certificate as Go does, with OpenSSL's own words and what to do about it."""
    code, detail = getattr(said, "verify_code", 0), getattr(said, "verify_message", "") or type(said).__name__
    if code in _UNTRUSTED:
        advice = f"if it is to be trusted, name the certificate of its authority as ca in {route.settings}"
        advice += "; docs/troubleshooting.md#unknown-authority"
        words = f"x509: certificate signed by unknown authority ({detail})"
        return HostFault(Unavailable(words), advice=advice)
    if code in (_EXPIRED, _NOT_YET_VALID):
        return HostFault(Unavailable(f"x509: certificate has expired or is not yet valid ({detail})"))
    return HostFault(Unavailable(f"x509: certificate is not valid ({detail})"))


def _tls_fault(error: Exception, route: Route) -> HostFault:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    reason = getattr(cause, "reason", None) or type(cause).__name__
    if reason in _PLAIN_HTTP:
        words = f"server gave HTTP response to HTTPS client ({reason})"
        by_slot = f"name {route.host!r} in plain_http of the slot"
        by_file = f'write server = "http://{route.host}" in {route.settings}'
        return HostFault(
            Unavailable(words),
            advice=(
                f"if it is to be asked by plain http, {by_slot}, or {by_file}; "
                "docs/troubleshooting.md#http-where-https-was-tried"
            ),
        )
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        advice = f"if it requires a client certificate, name one as client in {route.settings}"
        return HostFault(Unavailable(f"TLS failed: {reason}"), advice=advice)
    return HostFault(Unavailable(f"TLS failed: {reason}"))
