"""Which streams Exec and Attach want, and the ports of PortForward."""

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.cri.decode.checks import check_range
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.streams import StreamChoice


def decode_streams(request: api_pb2.ExecRequest | api_pb2.AttachRequest) -> StreamChoice:
    """Read the streams: at least one, and no standard error of its own beside a terminal."""
    if request.tty and request.stderr:
        raise InvalidArgument("tty and stderr are both set: a terminal has one output, which is stdout")
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidArgument("none of stdin, stdout and stderr is set")
    return StreamChoice(request.stdin, request.stdout, request.stderr, request.tty)


def decode_ports(request: api_pb2.PortForwardRequest) -> tuple[int, ...]:
    """Read the ports; most clients name none here."""
    return tuple(check_range(port, 1, 65535, f"port[{index}]") for index, port in enumerate(request.port))
