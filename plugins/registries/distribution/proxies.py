"""Which proxy a URL goes through, by the environment's HTTPS_PROXY, HTTP_PROXY and NO_PROXY.

aiohttp's own ``trust_env`` would read ``~/.netrc`` too, and knows no address ranges in NO_PROXY, which nodes have.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from crinoid.plugins.registries.distribution.connections import proxy_fault


def find_proxy(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the proxy's URL, or ``None`` to connect directly; loopback is never reached through a proxy.

    Raises HostFault for a proxy that is no URL, or of a kind that is not spoken here.
    """
    parts = urlsplit(url)
    host, name = parts.hostname or "", f"{parts.scheme}_proxy"
    text = _variable(environment, name)
    if not text or _is_exempt(host, parts.port, _variable(environment, "no_proxy")):
        return None
    proxy = text if "://" in text else f"http://{text}"
    try:
        wanted = urlsplit(proxy)
        usable = bool(wanted.hostname) and wanted.port != 0 and not set(proxy) & set(" \t\r\n")
    except ValueError:
        usable = False
    if not usable:
        raise proxy_fault(name.upper(), text, "it is not of the form http://[user:password@]host:port")
    if wanted.scheme not in ("http", "https"):
        raise proxy_fault(name.upper(), text, f"{wanted.scheme} proxies are not supported: name an http:// one")
    return proxy


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.upper()) or ""


def _is_exempt(host: str, port: int | None, no_proxy: str) -> bool:
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    for item in no_proxy.lower().split(","):
        name, colon, number = item.strip().rpartition(":")
        if not (colon and number.isdigit() and "]" not in number and name.count(":") == 0):
            name, number = item.strip(), ""
        if number and number != str(port):
            continue
        if name and _covers(name, host.lower(), address):
            return True
    return False


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _covers(name: str, host: str, address: _Address | None) -> bool:
    if name == "*":
        return True
    if address is None:
        suffix = name.removeprefix("*").removeprefix(".")
        return host.endswith(f".{suffix}") or (host == suffix and not name.startswith((".", "*.")))
    try:
        return address in ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        return False


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
