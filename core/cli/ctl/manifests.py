"""Reads what users write down: crictl's pod and container configurations, and the YAML below our short form.

crictl's files are the messages PodSandboxConfig and ContainerConfig as JSON or YAML, with the field names of the
``.proto`` or their camelCase, enums by number or by name, and environment values as plain text.
"""

import base64
import json
import re
import sys
import uuid
from pathlib import Path
from typing import Any

import yaml

from crinoid.core.api.errors import InvalidArgument, NotFound
from crinoid.core.cli.ctl.session import Json
from crinoid.core.config.origins import Origin
from crinoid.core.config.positions import KeyPath

STDIN = Path("-")
_DROPPED = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")


class _Loader(yaml.SafeLoader):
    """YAML without its two surprises: ``8080:50`` is no number of base 60, and a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


for _tag, _pattern in (
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9]*|0o?[0-7]+|0x[0-9a-fA-F]+)$"),
    ("tag:yaml.org,2002:float", r"^[-+]?[0-9]+(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)$"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+0123456789"))


def read_pod_config(path: Path) -> Json:
    """Read a PodSandboxConfig; a uid is made where there is none. Raises InvalidArgument or NotFound."""
    config = _read_message(path, ("metadata", "name"), ("metadata", "namespace"))
    config["metadata"].setdefault("uid", str(uuid.uuid4()))
    return config


def read_container_config(path: Path) -> Json:
    """Read a ContainerConfig. Raises InvalidArgument or NotFound."""
    config = _read_message(path, ("metadata", "name"), ("image", "image"))
    for variable in config.get("envs") or ():
        variable["value"] = encode_bytes(str(variable.get("value", "")))
    if not config["image"].keys() & {"user_specified_image", "userSpecifiedImage"}:
        config["image"]["user_specified_image"] = config["image"]["image"]
    return config


def encode_bytes(text: str) -> str:
    """Write text as protobuf's JSON writes bytes."""
    return base64.b64encode(text.encode()).decode()


def read_text(path: Path) -> str:
    """Read a file, or standard input for ``-``. Raises NotFound or InvalidArgument."""
    try:
        return sys.stdin.read() if path == STDIN else path.read_text()
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: can't be read: {error}") from error


def read_mapping(path: Path, text: str) -> Json:
    """Read JSON or YAML that must hold a mapping. Raises InvalidArgument with file and line."""
    value = _parse(path, text)
    if not isinstance(value, dict):
        what = "is empty" if value is None else f"must hold a mapping, not {type(value).__name__}"
        raise InvalidArgument(f"{path}: {what}")
    return value


def index_lines(path: Path, text: str) -> dict[KeyPath, Origin]:
    """Return the place of every key and list element of a YAML text that ``read_mapping`` has accepted."""
    found: dict[KeyPath, Origin] = {}

    def walk(node: Any, base: KeyPath) -> None:  # Any: PyYAML has no types for nodes
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*base, str(key.value))
                found[place] = Origin(path, key.start_mark.line + 1)
                walk(value, place)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                found[(*base, index)] = Origin(path, value.start_mark.line + 1)
                walk(value, (*base, index))

    walk(yaml.compose(text, Loader=_Loader), ())
    return found


def _parse(path: Path, text: str) -> Any:
    if text.lstrip()[:1] == "{":  # JSON may be indented by tabs, which YAML forbids
        try:
            return json.loads(text)
        except ValueError:
            pass
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidArgument(f"{path}:{line}: this is no YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise InvalidArgument(f"{path}: this is no YAML: {error}") from error


def _read_message(path: Path, *required: tuple[str, str]) -> Json:
    config = read_mapping(path, read_text(path))
    for outer, inner in required:
        section = config.get(outer)
        if not isinstance(section, dict) or not section.get(inner):
            raise InvalidArgument(f"{path}: {outer}.{inner} is missing")
    return config
