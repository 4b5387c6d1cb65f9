"""The network role: gives a pod its interfaces and addresses (entry points ``crinoid.networks``).

The story of an attachment: ``plan`` writes down what is going to be done, the kernel stores it, ``attach`` does it and
returns the data that undoes it, the kernel stores that, ``check`` may compare at any time, ``detach`` undoes by what
was stored: the attachment's data, or the plan alone when the daemon died in between.
"""

from collections.abc import Mapping

from crinoid.core.api.hooks import hookspec
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus


class NetworkHooks:
    """What a network driver implements."""

    @hookspec
    def features(self) -> NetworkFeatures:  # type: ignore[empty-body]  # a specification
        """Tell what kind of network this is; the only hook that is no coroutine. Constant for the slot's life."""

    @hookspec
    async def status(self) -> NetworkStatus:  # type: ignore[empty-body]
        """Return whether a pod could be attached now; Status shows it as NetworkReady. Never raises for bad set-up."""

    @hookspec
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:  # type: ignore[empty-body]
        """Return, as a JSON object, all that ``attach`` and ``detach`` need to know; touch nothing on the host.

        Raises Unavailable when no network is configured, saying where one is expected.
        """

    @hookspec
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:  # type: ignore[empty-body]
        """Attach the pod: make ``request.interface`` in its network namespace, with an address that the node reaches,
        and bring it and ``lo`` up there; nothing of that where the slot's features say ``host_network``.

        Raises DriverError where ``netns`` is no namespace any more. On an error, and when cancelled, the kernel calls
        ``detach`` with the plan.
        """

    @hookspec
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        """Undo an attachment by its data, or by its plan if it never completed. Idempotent.

        ``request.netns`` may be gone already. Raises DriverError only when something of the pod is left on the host.
        """

    @hookspec
    async def check(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        """Optional. Raise DriverError when the attachment is not as it was made."""

    @hookspec
    async def set_pod_cidrs(self, cidrs: tuple[str, ...]) -> None:
        """Optional. Take the node's address ranges from UpdateRuntimeConfig, IPv4 and IPv6, at most one each."""

    @hookspec
    async def collect_garbage(self, valid: tuple[tuple[NetworkRequest, Mapping[str, object]], ...]) -> None:
        """Optional. Called at start with all attachments that are owned: undo every other one of this slot."""

    @hookspec
    async def close(self) -> None:
        """Optional. Finish at the daemon's end what is being undone in the background; pods stay attached."""
