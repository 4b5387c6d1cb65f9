"""What a runtime's binary says about itself, read with the care that output of an unknown program needs."""

import json
import re
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import Unsupported

_USER_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")


def read_version(name: str, said: str) -> str:
    """Return the version from the first line of ``--version``. Raises Unsupported when that is not what it says."""
    found = re.match(rf"{re.escape(name)} version (\S+)", said)
    if found is None:
        raise Unsupported(f"{name} --version says {said[:80]!r}: this is no {name}; name another binary")
    return found[1]


def numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version, to compare."""
    found = [int(number) for number in re.findall(r"\d+", version)[:2]]
    return found[0] if found else 0, found[1] if len(found) > 1 else 0


def read_features(said: str) -> dict[str, Any]:
    """Return the object that ``features`` prints (OCI runtime-spec, features.md); empty for anything else."""
    try:
        found = json.loads(said)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def host_has_user_namespaces() -> bool:
    """Return whether the kernel lets user namespaces be made."""
    try:
        return int(_USER_NAMESPACES.read_text()) > 0
    except (OSError, ValueError):
        return False
