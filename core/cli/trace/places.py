"""Where things are in a replay: below a scratch directory, whatever paths the trace has of the node.

``here`` takes JSON of the trace to the scratch directory, ``there`` back, so that arguments can be compared. A trace
may be a stranger's, made by hand: nothing that it names outside is written or removed.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import InvalidArgument


class Places:
    """The scratch directory's ``root``, ``run`` and ``host``, which stands for all else of the node that is named."""

    def __init__(self, scratch: Path, head: Mapping[str, Any]) -> None:
        self._scratch = scratch
        self.root, self.run, self.host = scratch / "root", scratch / "run", scratch / "host"
        for path in (self.root, self.run / "pods", self.run / "containers", self.host):
            path.mkdir(parents=True, exist_ok=True)
        pairs = {str(head["root"]): self.root, str(head["run"]): self.run, str(head["passage"]): self.run}
        # The longest first, as one may be the beginning of another.
        self._pairs = sorted(((one, str(other)) for one, other in pairs.items()), key=lambda pair: -len(pair[0]))
        back = {str(self.root): str(head["root"]), str(self.run): str(head["passage"]), str(self.host): ""}
        self._back = list(back.items())

    def here(self, value: Any) -> Any:
        """Return JSON of the trace as it is in the replay."""
        return _replace(value, self._pairs)

    def there(self, value: Any) -> Any:
        """Return JSON of the replay as the trace would have it."""
        return _replace(value, self._back)

    def of_request(self, value: Any, key: str = "") -> Any:
        """Return a request, or a record, with its log directory and volumes below the scratch directory, made there."""
        if isinstance(value, Mapping):
            is_device = "permissions" in value
            return {
                name: one if is_device and name == "host_path" else self.of_request(one, name)
                for name, one in value.items()
            }
        if isinstance(value, list):
            return [self.of_request(one, key) for one in value]
        if key in ("log_directory", "host_path", "log_path") and isinstance(value, str) and value.startswith("/"):
            return str(self._make(value, is_log=key == "log_path"))
        return _replace(value, self._pairs)

    def inside(self, path: Path | str) -> Path:
        """Return a path that is going to be written, or removed. Raises InvalidArgument where it lies outside."""
        if not os.path.normpath(path).startswith(f"{self._scratch}/"):
            raise InvalidArgument(f"the trace names {str(path)!r:.300}, which is not below the root or run of its node")
        return Path(path)

    def _make(self, path: str, *, is_log: bool) -> Path:
        if ".." in path.split("/"):
            path = os.path.normpath(path)
        for one, other in self._pairs:
            if path.startswith(f"{one}/"):
                return Path(other + path[len(one) :])
        made = Path(f"{self.host}{path}")
        with contextlib.suppress(OSError):
            (made.parent if is_log else made).mkdir(parents=True, exist_ok=True)
        return made


def _replace(value: Any, pairs: "list[tuple[str, str]]") -> Any:
    if isinstance(value, Mapping):
        return {_replace(name, pairs): _replace(one, pairs) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(one, pairs) for one in value]
    if isinstance(value, str):
        for one, other in pairs:
            if one in value:
                value = value.replace(one, other)
                break
    return value
