"""What a host's answer says that is not what was asked for, in one line for people.

Registries have a form of their own (distribution-spec, "Error Codes"). But what stands before them, a proxy, a cloud's
front end, a storage host, a token server, answers in forms of its own: other JSON, XML, a web page, plain text.
"""

import html
import json
import re
from typing import Any

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
_MARKUP = re.compile(r"<(?:title|message)\b[^<>]*>([^<]*)", re.IGNORECASE)
"""Passes each character once, whatever a host sends: to look for the end of an element would be quadratic."""
_MOST_CHARACTERS = 200
_MOST_ERRORS = 3
_TEXTS = ("code", "error", "message", "error_description", "msg", "title", "detail", "details", "reason")
"""Names under which JSON says what is wrong, in the order in which they are told."""


def words_of(body: bytes) -> str:
    """Return what the body of an error says; nothing where it says nothing, or nothing that can be read.

    Of XML and web pages only the message or the title counts: storage hosts quote signatures in the rest.
    """
    try:
        said = _words_of_json(json.loads(body))
    except (ValueError, RecursionError):
        text = body.decode(errors="replace")
        found = _MARKUP.search(text)
        said = html.unescape(found[1]) if found else "" if text.lstrip().startswith("<") else text
    return clean(said)


def page_words(content: bytes, declared: str) -> str:
    """Return what people should know of a document that is no JSON: a login page or a proxy's, or compressed."""
    if content.lstrip()[:1] == b"<":
        title = words_of(content)
        named = f" {title!r}" if title else ""
        return f": it is a web page{named}: does a proxy or a login stand before the registry?"
    return f": it came as {clean(declared)!r}" if declared else ""


def clean(words: str) -> str:
    """Return a bounded line of what can be shown on every terminal."""
    return " ".join(_UNPRINTABLE.sub(" ", words).split())[:_MOST_CHARACTERS].strip()


def _words_of_json(document: Any) -> str:  # Any: whatever the JSON holds
    if isinstance(document, str):
        return document
    if isinstance(document, list):
        return "; ".join(filter(None, map(_words_of_json, document[:_MOST_ERRORS])))
    if not isinstance(document, dict):
        return ""
    nested = [
        name for name in ("errors", "error") if isinstance(document.get(name), list | dict)
    ]  # "error" is Google's
    for name in nested:
        if said := _words_of_json(document[name]):
            return said
    # What was looked into is not looked into again: the time would double with each level.
    found = [document.get(name) for name in _TEXTS if name not in nested]
    parts = [part if isinstance(part, str) else _words_of_json(part) for part in found if part]
    return ": ".join(dict.fromkeys(filter(None, parts)))
