"""How far pulls are: counted where bytes arrive and layers are unpacked, read by verbose Status and ``ctl pull``."""

import enum
import time
from dataclasses import dataclass, field

from crinoid.core.api.values.image import Descriptor


class LayerState(enum.StrEnum):
    """The steps of a layer, in their order; one that is there already is ``DONE`` at once."""

    WAITING = "waiting"
    FETCHING = "fetching"
    UNPACKING = "unpacking"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """One layer of a pull; sizes are of the blob as it is fetched."""

    digest: str
    total_bytes: int
    fetched_bytes: int
    state: LayerState


@dataclass(frozen=True, slots=True)
class PullProgress:
    """One pull that is under way; without layers as long as the reference is being resolved."""

    reference: str
    started_at_ns: int
    layers: tuple[LayerProgress, ...] = ()


@dataclass(slots=True)
class Transfer:
    """A blob on its way in; pulls that share it look at the same one."""

    digest: str
    total_bytes: int
    fetched_bytes: int = 0
    touched_s: float = field(default_factory=time.monotonic)

    def advance(self, fetched_bytes: int) -> None:
        """Note how many bytes are there by now."""
        self.fetched_bytes = fetched_bytes
        self.touched_s = time.monotonic()


class LayerTracker:
    """Follows one layer of one pull."""

    def __init__(self, blob: Descriptor) -> None:
        self.transfer = Transfer(blob.digest, blob.size)
        self.state = LayerState.WAITING
        self._touched_s = time.monotonic()

    @property
    def touched_s(self) -> float:
        """When something last happened, on the monotonic clock."""
        return max(self._touched_s, self.transfer.touched_s)

    def enter(self, state: LayerState) -> None:
        """Note the next step."""
        self.state = state
        self._touched_s = time.monotonic()

    def report(self) -> LayerProgress:
        """Return how far it is."""
        done = self.state is LayerState.DONE
        fetched = self.transfer.total_bytes if done else self.transfer.fetched_bytes
        return LayerProgress(self.transfer.digest, self.transfer.total_bytes, fetched, self.state)


class PullTracker:
    """Follows one pull."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._started_at_ns = time.time_ns()
        self._touched_s = time.monotonic()
        self._layers: tuple[LayerTracker, ...] = ()

    def follow(self, blobs: tuple[Descriptor, ...]) -> tuple[LayerTracker, ...]:
        """Begin with the layers, which are known now."""
        self._touched_s = time.monotonic()
        self._layers = tuple(LayerTracker(blob) for blob in blobs)
        return self._layers

    def touch(self) -> None:
        """Note that something goes on."""
        self._touched_s = time.monotonic()

    def idle_s(self) -> float:
        """Tell for how many seconds nothing has come in; unpacking, which has its own deadline, is never idle.

        A layer may wait, in this state, for those below it; so only the lowest that is not done counts.
        """
        lowest = next((layer for layer in self._layers if layer.state is not LayerState.DONE), None)
        if lowest is not None and lowest.state is LayerState.UNPACKING:
            return 0.0
        return time.monotonic() - max([self._touched_s, *(layer.touched_s for layer in self._layers)])

    @property
    def fetched_bytes(self) -> int:
        """How much of its layers has been fetched since it began."""
        return sum(layer.transfer.fetched_bytes for layer in self._layers)

    def report(self) -> PullProgress:
        """Return how far it is."""
        return PullProgress(self._reference, self._started_at_ns, tuple(layer.report() for layer in self._layers))
