"""What a plugin answers to ADD, in any version of the specification, and what the kernel wants to know of it.

Inside the driver a result is a JSON object in the form of the version that the chain speaks: it is given to the next
plugin as ``prevResult``, recorded, and given to every plugin again at CHECK and DEL (SPEC.md, "Section 5").
"""

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from crinoid.core.api.values.pod import DnsConfig
from crinoid.plugins.networks.cni import versions

Result = dict[str, Any]
"""A result as a JSON object; ``Any`` because plugins may add keys of their own, which are kept."""


class InvalidResult(Exception):
    """A plugin printed something else than a result; the text says what."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)


class _Interface(_Part):
    name: str = ""
    sandbox: str = ""


class _Address(_Part):
    address: str
    interface: int | None = None


class _Dns(_Part):
    nameservers: tuple[str, ...] | None = None
    domain: str = ""
    search: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None


class _OldAddress(_Part):
    ip: str
    routes: tuple[Mapping[str, Any], ...] | None = None


class _Model(_Part):
    ip4: _OldAddress | None = None
    ip6: _OldAddress | None = None
    interfaces: tuple[_Interface, ...] | None = None
    ips: tuple[_Address, ...] | None = None
    routes: tuple[Mapping[str, Any], ...] | None = None
    dns: _Dns | None = None


def read_result(output: bytes, version: str) -> Result:
    """Read what a plugin printed and bring it into the form of ``version``; raise InvalidResult."""
    try:
        content = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise InvalidResult(f"printed no CNI result but {shorten(output)}") from error
    if not isinstance(content, dict):
        raise InvalidResult(f"printed no CNI result but {shorten(output)}")
    own_version = content.get("cniVersion") or version
    if own_version not in versions.KNOWN:
        raise InvalidResult(f"printed a result of the unknown CNI version {own_version!r}")
    _validate(content, own_version)
    return convert(content, own_version, version)


def shorten(output: bytes, limit: int = 200) -> str:
    """Quote a program's output for a message, cut where it is long."""
    text = output.decode(errors="replace").strip()
    return repr(text[:limit]) + (f"… ({len(output)} bytes)" if len(text) > limit else "") if text else "nothing"


def _validate(result: Mapping[str, Any], version: str) -> None:
    """Check the parts that are used."""
    try:
        _Model.model_validate(result)
        for item in _Model.model_validate(convert(result, version, "1.1.0")).ips or ():
            ipaddress.ip_interface(item.address)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidResult(
            f"printed an invalid CNI result: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error
    except ValueError as error:
        raise InvalidResult(f"printed an invalid CNI result: {error}") from error


def convert(result: Mapping[str, Any], source: str, target: str) -> Result:
    """Bring a result from one version's form into another's; keys that no version knows are kept.

    There are three: ``ip4`` and ``ip6`` (0.1, 0.2); ``ips`` with a ``version`` each (0.3, 0.4), and without (1.x).
    """
    newest = _from_oldest(result) if _form(source) == 0 else dict(result)
    if isinstance(newest.get("ips"), list):
        newest["ips"] = [_set_family(item, _form(target) == 1) for item in newest["ips"]]
    converted = _to_oldest(newest) if _form(target) == 0 else newest
    return {**converted, "cniVersion": target}


def _form(version: str) -> int:
    return 0 if not versions.at_least(version, "0.3.0") else 1 if not versions.at_least(version, "1.0.0") else 2


def _from_oldest(result: Mapping[str, Any]) -> Result:
    kept = {key: value for key, value in result.items() if key not in ("ip4", "ip6")}
    old = [result[key] for key in ("ip4", "ip6") if isinstance(result.get(key), dict)]
    ips = [{"address": item.get("ip"), **_only(item, "gateway")} for item in old]
    return {**kept, "ips": ips, "routes": [route for item in old for route in item.get("routes") or []]}


def _to_oldest(result: Mapping[str, Any]) -> Result:
    """Keep the first address of each family and the routes of that family: there is no room for more."""
    kept = {key: value for key, value in result.items() if key not in ("ips", "routes", "interfaces")}
    for key, family in (("ip4", 4), ("ip6", 6)):
        item = next((item for item in result.get("ips") or [] if _family(item.get("address")) == family), None)
        if item is not None:
            routes = [route for route in result.get("routes") or [] if _family(route.get("dst")) == family]
            kept[key] = {"ip": item["address"], **_only(item, "gateway"), **({"routes": routes} if routes else {})}
    return kept


def _set_family(item: object, wanted: bool) -> object:
    """Add or drop the ``version`` of an address, ``"4"`` or ``"6"``."""
    if not isinstance(item, dict):
        return item
    kept = {key: value for key, value in item.items() if key != "version"}
    return {"version": str(_family(item.get("address"))), **kept} if wanted else kept


def _only(item: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: item[key] for key in keys if item.get(key)}


def _family(address: object) -> int:
    return 6 if ":" in str(address) else 4


def pod_addresses(result: Mapping[str, Any], version: str, interface: str) -> tuple[str, ...]:
    """Return the pod's addresses on the interface, without prefix, in the plugin's order.

    An address that names an interface of the host, or another of the pod's, is not the pod's own.
    """
    model = _Model.model_validate(convert(result, version, "1.1.0"))
    interfaces = model.interfaces or ()
    found = [item.address for item in model.ips or () if _belongs(item, interfaces, interface)]
    return tuple(dict.fromkeys(str(ipaddress.ip_interface(address).ip) for address in found))


def _belongs(item: _Address, interfaces: Sequence[_Interface], name: str) -> bool:
    if item.interface is None or not 0 <= item.interface < len(interfaces):
        return True
    owner = interfaces[item.interface]
    return bool(owner.sandbox) and owner.name in (name, "")


def sort_addresses(addresses: Iterable[str], first_family: int | None) -> tuple[str, ...]:
    """Put one family first, 4 or 6, keeping the order within each; ``None``: leave them as they are."""
    return tuple(sorted(addresses, key=lambda address: first_family is not None and _family(address) != first_family))


def dns_of(result: Mapping[str, Any]) -> DnsConfig | None:
    """Return what the network says of name resolution, ``None`` when it says nothing."""
    dns = _Model.model_validate({"dns": result.get("dns")}).dns
    if dns is None or not (dns.nameservers or dns.domain or dns.search or dns.options):
        return None
    searches = dict.fromkeys(([dns.domain] if dns.domain else []) + list(dns.search or ()))
    return DnsConfig(servers=dns.nameservers or (), searches=tuple(searches), options=dns.options or ())
