"""What is said to an IPAM: one JSON object in a line each way, a connection for each request.

=========  =======================================  =====================================================
request    fields                                   answer
=========  =======================================  =====================================================
status                                              ``{}``
allocate   owner, token, pod, asked (addresses)     ``{"address": "10.1.2.3/24", "gateway": "10.1.2.1"}``
release    token                                    ``{}``, also for a token that has nothing
list       owner                                    ``{"tokens": [...]}``
=========  =======================================  =====================================================

A second ``allocate`` of a token answers as the first. A token that was released gets nothing any more. What can't be
done is answered by ``{"error": "words for people", "full": true}``; ``full`` where no address is left.
"""

import json
import socket
from collections.abc import Mapping

from crinoid.core.api.errors import DriverError, ResourceExhausted, Unavailable

_MAX_ANSWER_BYTES = 1 << 20


def ask(place: str, request: Mapping[str, object], timeout_s: float) -> Mapping[str, object]:
    """Ask the IPAM at a socket, and return its answer. Blocks.

    Raises ResourceExhausted, DriverError in the IPAM's words or for what is no answer, Unavailable where there is none.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(place)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline(_MAX_ANSWER_BYTES)
    except OSError as error:
        raise IpamUnavailable(f"the IPAM at {place} can't be asked: {error}") from error
    try:
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise DriverError(f"the IPAM at {place} answers {line[:200]!r}: {error}") from error
    if "error" in answer:
        kind = ResourceExhausted if answer.get("full") else DriverError
        raise kind(f"the IPAM at {place} refuses {request['act']}: {answer['error']}")
    return answer


class IpamUnavailable(DriverError, Unavailable):
    """Nobody answers at the socket."""

    grpc_status = "UNAVAILABLE"
    reason = "IpamUnavailable"
