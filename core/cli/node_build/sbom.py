"""A bill of materials in CycloneDX 1.6's JSON form: every wheel with its hash, licence and what it needs.

Source: cyclonedx.org, the JSON reference of version 1.6; purl of the type pypi.
"""

import datetime
import json
import re
import uuid
from typing import Any

from crinoid.core.cli.node_build.licences import Distribution
from crinoid.core.cli.node_build.lock import Locked
from crinoid.core.cli.node_build.site_file import Site

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def make_sbom(site: Site, wheels: list[Locked], found: list[Distribution], epoch: int) -> bytes:
    """Write the document; equal input gives equal bytes, its serial number too."""
    by_name = {lock.name: lock for lock in wheels}
    known = {one.name: one for one in found}
    root = f"{site.name}@{site.version}"
    components = [_component(lock, known[lock.name]) for lock in sorted(wheels)]
    edges = [{"ref": root, "dependsOn": sorted(_ref(by_name[name]) for name in _asked(site) if name in by_name)}]
    for lock in sorted(wheels):
        needs = {_normal(_NAME.match(text)) for text in known[lock.name].requires if "extra ==" not in text}
        edges.append({"ref": _ref(lock), "dependsOn": sorted(_ref(by_name[name]) for name in needs if name in by_name)})
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": "",
        "version": 1,
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": site.name,
                "version": site.version,
                "description": site.description,
            },
        },
        "components": components,
        "dependencies": edges,
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document, sort_keys=True))
    return json.dumps({**document, "serialNumber": f"urn:uuid:{serial}"}, indent=2).encode() + b"\n"


def _component(lock: Locked, one: Distribution) -> dict[str, Any]:
    licences: list[dict[str, Any]] = []
    if one.is_expression:
        licences = [{"expression": one.licence}]
    elif one.licence != "not said":
        licences = [{"license": {"name": one.licence}}]
    return {
        "type": "library",
        "bom-ref": _ref(lock),
        "name": lock.name,
        "version": lock.version,
        "purl": _ref(lock),
        "hashes": [{"alg": "SHA-256", "content": lock.sha256}],
        **({"licenses": licences} if licences else {}),
    }


def _ref(lock: Locked) -> str:
    return f"pkg:pypi/{lock.name}@{lock.version.replace('+', '%2B')}"


def _asked(site: Site) -> list[str]:
    return [_normal(_NAME.match(text)) for text in site.requirements]


def _normal(match: re.Match[str] | None) -> str:
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""
