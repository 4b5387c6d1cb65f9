"""Answers as documents for programs: the JSON form of protobuf, names in camelCase, as crictl prints them.

64-bit numbers are strings. The status documents of ``inspect``, ``inspectp``, ``inspecti`` and ``info`` have the status
under ``status`` and, beside it, each entry of the verbose info with the JSON in it unfolded.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from crinoid.core.cli.ctl.figures import to_rfc3339
from crinoid.core.cli.ctl.flags import YAML
from crinoid.core.cli.ctl.session import Json

MAP_FIELDS = frozenset({"labels", "annotations", "info", "unified"})
"""Fields of answers whose keys are data, not names of fields."""
_INSTANTS = ("created_at", "started_at", "finished_at")


def print_document(document: object, form: str) -> None:
    """Print a document as JSON or YAML."""
    if form == YAML:
        import yaml

        click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=4096), nl=False)
    else:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_answer(answer: Json, form: str) -> None:
    """Print an answer, or a part of one, as a document."""
    print_document(to_camel(answer), form)


def print_statuses(documents: Sequence[Json], form: str) -> None:
    """Print status documents: one alone as it is, several as a list."""
    print_document(documents[0] if len(documents) == 1 else list(documents), form)


def make_status(status: Json, info: Mapping[str, str]) -> Json:
    """Make a status document; instants in it become RFC 3339 times."""
    readable = {name: to_rfc3339(int(value)) if name in _INSTANTS else value for name, value in status.items()}
    return {"status": to_camel(readable)} | {key: unfold(text) for key, text in info.items()}


def unfold(text: str) -> Any:
    """Read the JSON object or list that an entry of info holds; anything else is text."""
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError:
            pass
    return text.strip('"')


def to_camel(value: Any) -> Any:
    """Rename the fields of messages as protobuf's JSON does; keys of maps stay as they are."""
    if isinstance(value, list):
        return [to_camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name_field(key): item if key in MAP_FIELDS else to_camel(item) for key, item in value.items()}


def name_field(name: str) -> str:
    """Name a field of the ``.proto`` as its JSON does: ``pod_sandbox_id`` is ``podSandboxId``."""
    first, *rest = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)
