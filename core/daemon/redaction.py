"""What must not leave the node with a report or a trace: what is secret where it stands, and text that looks so.

Two nets, one behind the other. ``Secrets`` learns every value that is secret where it stands (credentials of
registries, headers of hosts.toml, environment and annotations of pods, variables of this process, secret options), and
``scrub`` replaces it wherever it turns up, in a log line too. What nobody knows of is caught by its form.
"""

import base64
import binascii
import contextlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

HIDDEN = "(redacted)"
_LEAST = 6
"""A shorter value is no secret worth its name, and would be found in every second word."""
_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)?$|pwd|secret|token|credential|auth|api_?key|private_?key|cookie|header", re.I
)
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), HIDDEN),
    (re.compile(r"(//)[^/\s\"'@]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(https?://[^\s\"'?]*\?)[^\s\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{6,}", re.I), rf"\1\2{HIDDEN}"),
    (re.compile(r"\beyJ[\w-]{6,}\.[\w-]+\.[\w-]*"), HIDDEN),
    (
        re.compile(
            r"(\b[\w-]*(?:passw(?:or)?d|secret|token|api[-_]?key|credentials?|authorization|cookie)[\w-]*[\"']?\s*[:=]\s*[\"']?)"
            r"(?![\d.]+[\s,]|true|false|none|null|\(redacted\))[^\s\"',}]+",
            re.I,
        ),
        rf"\1{HIDDEN}",
    ),
)


class Secrets:
    """The values that are known to be secret."""

    def __init__(self) -> None:
        self._values: set[str] = set()

    def learn(self, value: object) -> None:
        """Take a value, or all in a table or list, for secret; what is no text, or a path, is none."""
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for one in value:
                self.learn(one)
        elif isinstance(value, str) and len(value) >= _LEAST and not value.startswith("/"):
            self._values |= {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
            self._values |= set(_decode(value))

    def scrub(self, text: str) -> str:
        """Return a text without what is known, nor what looks like a secret."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, HIDDEN)
        for form, instead in _FORMS:
            text = form.sub(instead, text)
        return text


def is_secret_name(name: str) -> bool:
    """Return whether a key, by its name, holds a secret."""
    return _SECRET_NAME.search(name) is not None


def learn_environment(secrets: Secrets, environment: Mapping[str, str]) -> None:
    """Learn the variables of a process that are secret by their names, and what proxies are logged in with."""
    for name, value in environment.items():
        if is_secret_name(name):
            secrets.learn(value)
        secrets.learn(re.findall(r"//([^/@\s]+)@", value))
        secrets.learn([part for pair in re.findall(r"//([^/@\s]+)@", value) for part in pair.split(":")])


def learn_files(secrets: Secrets, docker_configs: Iterable[Path], certs_directories: Iterable[Path]) -> list[str]:
    """Learn credentials of docker's configuration files, and headers of hosts.toml; return which files there are."""
    seen = []
    for path in docker_configs:
        if (text := _read(path.expanduser())) is not None:
            seen.append(str(path))
            try:
                secrets.learn(list(_leaves(json.loads(text))))
            except ValueError:
                secrets.learn(re.findall(r'"([^"]+)"', text))  # it is broken, and may be quoted somewhere
    for directory in certs_directories:
        for path in sorted(directory.glob("*/hosts.toml")):
            if (text := _read(path)) is not None:
                seen.append(str(path))
                try:
                    secrets.learn(list(_headers(tomllib.loads(text))))
                except ValueError:
                    secrets.learn(re.findall(r'"([^"]+)"', text))
    return seen


def learn_records(secrets: Secrets, bodies: Iterable[str]) -> None:
    """Learn environment, annotations and arguments that stand in records of pods and containers, as JSON."""
    for body in bodies:
        try:
            record = json.loads(body)
        except ValueError:
            secrets.learn(re.findall(r'"([^"]+)"', body))
            continue
        for name, value in _named(record):
            if name in ("env", "envs", "environment"):
                # NAME=value, or pairs of them; the value alone is what turns up elsewhere.
                for one in _leaves(value):
                    secrets.learn(one.partition("=")[2] or one)
            elif name in ("annotations", "args", "command"):
                for one in _leaves(value):
                    if name == "annotations" or is_secret_name(one.partition("=")[0]):
                        secrets.learn(one.partition("=")[2] if name != "annotations" else one)


def redact_table(secrets: Secrets, table: Mapping[str, Any], *, whole: bool = False) -> dict[str, Any]:
    """Return a table of the configuration without secrets, and learn them; ``whole`` takes each text for one."""
    shown: dict[str, Any] = {}
    for name, value in table.items():
        hide = whole or is_secret_name(name)
        if isinstance(value, Mapping):
            shown[name] = redact_table(secrets, value, whole=hide)
        elif isinstance(value, list | tuple):
            items = [redact_table(secrets, {name: item}, whole=whole)[name] for item in value]
            shown[name] = items
        elif hide and isinstance(value, str) and value and not (value.startswith("/") and not whole):
            secrets.learn(value)
            shown[name] = HIDDEN
        else:
            shown[name] = value
    return shown


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _leaves(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value; a mapping's keys are names."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, str):
        yield value


def _headers(table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        if name == "header":
            yield from _leaves(value)
        elif isinstance(value, Mapping):
            yield from _headers(value)


def _named(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield name, one
            yield from _named(one)
    elif isinstance(value, list):
        for one in value:
            yield from _named(one)


def _decode(value: str) -> Iterator[str]:
    """Yield what a value means: the password of ``user:password``, also in base64, as ``auth`` of a docker config."""
    try:
        value = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError, UnicodeDecodeError):
        return
    yield from (part for part in (value, value.partition(":")[2]) if len(part) >= _LEAST)


_KEPT_ANNOTATIONS = ("kubernetes.io/", "io.kubernetes.", "org.opencontainers.", "crinoid.io/")
"""How annotations begin whose values crinoid or a runtime goes by, or that Kubernetes itself writes."""
_LEAST_SCANNED = 12


class TraceRedaction:
    """Takes secrets out of what a trace tells, where they stand: two that were equal are equal afterwards.

    By the rules of a report: credentials, values of the environment and of annotations, arguments and keys that are
    secret by their names, and what looks like a secret. A message of an error has none of them either, wherever they
    came from. What programs have written (ExecSync) is left out.
    """

    def __init__(self, secrets: Secrets) -> None:
        """``secrets``: those of the node, its files and its options."""
        self._secrets = secrets
        self._environment = Secrets()

    def redact(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Return a line of a trace, or a part of one, without secrets."""
        self._learn(line)  # first, as what is hidden in one place may stand in another before it
        shown: dict[str, Any] = self._hide(line, "")
        return shown

    def _learn(self, value: Any) -> None:
        """Learn environments and annotations."""
        if isinstance(value, Mapping):
            for name, one in value.items():
                if name in ("envs", "env", "annotations", "image_annotations", "default_env"):
                    self._hide(one if isinstance(one, Mapping) else list(one or ()), name)
                else:
                    self._learn(one)
        elif isinstance(value, list | tuple):
            for one in value:
                self._learn(one)

    def _hide(self, value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            if key in ("annotations", "image_annotations"):
                return {name: self._annotation(name, one) for name, one in value.items()}
            if key in ("default_env", "env", "environment"):
                return {name: self._variable(one) for name, one in value.items()}
            return {name: self._hide(one, name) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._item(one, key) for one in value]
        if not isinstance(value, str) or not value:
            return value
        if key in ("stdout", "stderr"):
            return ""
        if key == "message":
            return self._secrets.scrub(self._environment.scrub(value))
        if is_secret_name(key) and not value.startswith("/"):
            self._secrets.learn(value)
            return HIDDEN
        return self._secrets.scrub(value) if len(value) >= _LEAST_SCANNED else value

    def _item(self, one: Any, key: str) -> Any:
        """One of a list: variables and annotations come as ``NAME=value``, as pairs, and as the CRI has them."""
        if key in ("env", "envs"):
            if isinstance(one, str):
                name, equals, value = one.partition("=")
                return f"{name}{equals}{self._variable(value)}"
            if isinstance(one, Mapping):  # of a request, where the value is bytes
                with contextlib.suppress(ValueError):
                    self._environment.learn(base64.b64decode(str(one.get("value", ""))).decode(errors="replace"))
                return {**one, "value": base64.b64encode(HIDDEN.encode()).decode()}
            if isinstance(one, list | tuple) and len(one) == 2:
                return [one[0], self._variable(one[1])]
        if key == "annotations" and isinstance(one, list | tuple) and len(one) == 2:
            return [one[0], self._annotation(one[0], one[1])]
        if key in ("args", "command", "cmd") and isinstance(one, str):
            name, equals, value = one.partition("=")
            if equals and is_secret_name(name):
                self._secrets.learn(value)
                return f"{name}={HIDDEN}"
            return self._secrets.scrub(self._environment.scrub(one))
        return self._hide(one, key)

    def _variable(self, value: Any) -> Any:
        if isinstance(value, str) and value:
            self._environment.learn(value)
            return HIDDEN
        return value

    def _annotation(self, name: str, value: Any) -> Any:
        if not isinstance(value, str) or not value or name.startswith(_KEPT_ANNOTATIONS):
            return self._hide(value, name)
        self._environment.learn(value)
        return HIDDEN
