"""What came of a replay, for people."""

import time
from collections.abc import Iterator

from crinoid import __version__
from crinoid.core.cli.trace.model import Trace
from crinoid.core.cli.trace.replay import Outcome


def show(trace: Trace, outcome: Outcome) -> Iterator[str]:
    """Return the lines."""
    head, seconds = trace.head, max((moment.at_s for moment in trace.moments), default=0.0)
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(head["at_ns"] / 1e9))
    counts = f"{len(trace.rpcs)} RPCs, {len(trace.hooks)} hook calls, {seconds:.1f} s"
    yield f"recorded by crinoid {head['version']}, {at}: {counts}"
    yield f"replayed by crinoid {__version__}"
    yield ""
    for rpc, then, now, message in outcome.codes:
        if now == "OK" and then == "OK":
            continue
        as_then = "as recorded" if now == then else f"was {then or 'not over'}"
        yield f"  {rpc}: {now} ({as_then}){': ' + message if message else ''}"
    both = sum(1 for _, then, now, _ in outcome.codes if then == now == "OK")
    yield f"  {both} RPCs: OK, as recorded"
    for title, lines in (
        ("not replayed", outcome.left_out),
        ("seen beside that", outcome.notes),
        ("differences", outcome.differences),
    ):
        if lines:
            yield f"{title}:"
            yield from (f"  - {line}" for line in lines)
    counts = ", ".join(f"{len(outcome.state.get(kind, {}))} {kind}" for kind in ("pods", "containers", "images"))
    yield f"final state: {counts}"
    yield "reproduced" if not outcome.differences else f"not reproduced: {len(outcome.differences)} differences"
