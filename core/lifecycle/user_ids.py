"""Users and groups as texts, in an image's configuration and in the CRI: a number is an id, all else is a name.

ImageStatus and what runs go by this one rule. The kubelet decides about ``runAsNonRoot`` by what ImageStatus says: a
number that we took for a name could be root in the image's passwd file, with that check passed.
"""

import re

from crinoid.core.api.errors import InvalidArgument

MAX_ID = (1 << 31) - 1
"""The highest that Kubernetes allows and that runc takes; the kernel's own is twice that."""
MAX_NAME_BYTES = 256
"""Of a user or group name, as the kernel's own tools bound it (LOGIN_NAME_MAX)."""

_NUMBER = re.compile(r"(?P<sign>[+-]?)0*(?P<digits>[0-9]+)")
_INT64_DIGITS = 18


def parse_id(text: str, what: str) -> int | None:
    """Return the id that a text means, ``None`` for a name. Raises InvalidArgument, naming ``what``, for no valid id.

    As with peers a sign and leading zeros are part of a number, and digits of other scripts are not.
    """
    number = _number(text)
    if number is None and not _NUMBER.fullmatch(text):
        return None
    if number is None or not 0 <= number <= MAX_ID:
        raise InvalidArgument(f"{what} {quote(text)} is no valid id: a number has to be from 0 to {MAX_ID}")
    return number


def image_user(text: str) -> tuple[int | None, str]:
    """Return what ImageStatus says of an image's ``User``: a uid or a name; neither where the image names no user.

    A number that is no valid id is said as it is, so that the kubelet hands it back to be refused. A name that is too
    long to be one is cut to where it still is: to nothing would mean root.
    """
    user = text.partition(":")[0]
    number = _number(user)
    return (number, "") if number is not None else (None, user[: MAX_NAME_BYTES + 1])


def quote(text: str) -> str:
    """Return a text for a message: in quotes, and no longer than it takes to be recognized."""
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}…"


def _number(text: str) -> int | None:
    """Return a number, ``None`` for what is none or is beyond the 64 bits of the CRI's field."""
    match = _NUMBER.fullmatch(text)
    if match is None or len(match["digits"]) > _INT64_DIGITS:
        return None
    return int(match["sign"] + match["digits"])
