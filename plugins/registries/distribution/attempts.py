"""The walk over the hosts that may have what is wanted: mirrors first, the registry last, again after a wait.

Each host is asked once a round. One that gave a final answer (404, 403, a lie) is not asked again; one whose fault may
pass (no connection, 429, 5xx) is asked in the next round. A final answer of the registry itself ends the walk.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from crinoid.core.api.errors import ConfigurationError, CrinoidError
from crinoid.core.api.timeline import stage
from crinoid.plugins.registries.distribution.hosts import Endpoint

MAX_WAIT_S = 60.0
_MAX_BACKOFF_S = 30.0


class HostFault(Exception):
    """One host's answer that is of no use. ``passing``: the same host may do better later; ``status``: HTTP's, or 0;
    ``advice``: which setting would mend it."""

    def __init__(
        self,
        error: CrinoidError,
        passing: bool = False,
        retry_after_s: float = 0.0,
        status: int = 0,
        advice: str = "",
    ) -> None:
        self.error = error
        self.status = status
        self.advice = advice
        self.passing = passing and retry_after_s <= MAX_WAIT_S
        self.retry_after_s = retry_after_s
        super().__init__(str(error))

    @property
    def reason(self) -> str:
        """That of the error."""
        return self.error.reason


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, after which first wait, and for how long at all."""

    tries: int
    backoff_s: float
    patience_s: float

    def wait_s(self, round_number: int) -> float:
        """Return the wait before a round, counted from 1: exponential, the upper half of it by chance."""
        longest = min(_MAX_BACKOFF_S, self.backoff_s * 2.0 ** (round_number - 1))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  # spreads the load, guards nothing


class Attempts:
    """An asynchronous iterator of the host to be asked next; ``record`` its fault, then ask for another."""

    def __init__(self, what: str, endpoints: Sequence[Endpoint], policy: RetryPolicy) -> None:
        self._what = what
        self._endpoints = endpoints
        self._policy = policy
        self._round = 0
        self._began_at = time.monotonic()
        self._waiting = list(endpoints)
        self._said: dict[Endpoint, HostFault] = {}
        self._served: set[Endpoint] = set()

    def __aiter__(self) -> "Attempts":
        return self

    async def __anext__(self) -> Endpoint:
        if not self._waiting:
            faults = self._in_order()
            again = [endpoint for endpoint, fault in faults if fault.passing]
            # Mirrors may be late or wrong; once the registry itself gave a final answer, more rounds would only ask
            # what is known. But a mirror that has served bytes of it had it, whatever the registry says.
            is_final = any(not endpoint.is_mirror and not fault.passing for endpoint, fault in faults)
            is_settled = is_final and not self._served.intersection(again)
            self._round += 1
            if not again or self._round >= self._policy.tries or is_settled:
                raise StopAsyncIteration
            asked_for = min(self._said[endpoint].retry_after_s for endpoint in again)  # Retry-After: RFC 9110, 10.2.3
            wait_s = max(asked_for, self._policy.wait_s(self._round))
            if time.monotonic() + wait_s > self._began_at + self._policy.patience_s:
                raise StopAsyncIteration
            with stage("wait before the hosts are asked again"):
                await asyncio.sleep(wait_s)
            self._waiting = again
        return self._waiting.pop(0)

    def record(self, endpoint: Endpoint, fault: HostFault) -> None:
        """Note what a host said; only the last word of each is kept."""
        self._said.pop(endpoint, None)
        self._said[endpoint] = fault

    def forgive(self, endpoint: Endpoint) -> None:
        """Note that a host served well: its tries are counted anew, and it is not overruled by the registry."""
        self._round = 0
        self._began_at = time.monotonic()
        self._served.add(endpoint)

    def failure(self) -> CrinoidError:
        """Return the error for the caller: of the class of the last answer, with everyone's words, the last's first."""
        if not self._said:
            return ConfigurationError(f"{self._what}: no host is configured that may be asked; see its hosts.toml")
        words = "; ".join(
            f"{fault} at {endpoint.label}" + (f": {fault.advice}" if fault.advice else "")
            for endpoint, fault in reversed(self._in_order())
        )
        kind = type(self._in_order()[-1][1].error)
        return kind(f"{self._what}: {words}")

    def _in_order(self) -> list[tuple[Endpoint, HostFault]]:
        return [(endpoint, self._said[endpoint]) for endpoint in self._endpoints if endpoint in self._said]
