"""Every metric that the daemon shows: its name, kind, labels and meaning. docs/metrics.md is made of this table.

``instruments`` makes the histograms, ``figures`` reads the rest each time that somebody asks. A name is never changed
or given another meaning; labels have few values: none is of a pod, a container or an image.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """A family. A counter's samples have ``_total`` at the end of its name, a histogram's ``_bucket`` and the like."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    labels: tuple[str, ...] = ()

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of its samples, as queries use them."""
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
        return tuple(self.name + end for end in ends[self.kind])


RPC_SECONDS = Metric("crinoid_rpc_seconds", "histogram", "CRI calls by RPC and gRPC status", ("rpc", "code"))
ERRORS = Metric("crinoid_errors", "counter", "Calls that failed, by RPC and the error's reason", ("rpc", "reason"))
HOOK_SECONDS = Metric(
    "crinoid_hook_seconds",
    "histogram",
    "Hook calls by role, slot, hook and outcome (`ok`, `cancelled` or the reason of an error)",
    ("role", "slot", "hook", "outcome"),
)
LOOP_LAG = Metric(
    "crinoid_loop_lag_seconds",
    "histogram",
    "How long the event loop was away from its sockets, each time: so long did everybody wait",
)
LOOP_STALL = Metric("crinoid_loop_stall_seconds", "gauge", "How long the event loop is away by now")
ABANDONED = Metric(
    "crinoid_hooks_abandoned", "counter", "Hooks that went on after they were cancelled and were left behind"
)
LEFT_BEHIND = Metric("crinoid_hooks_left_behind", "gauge", "Hooks that were left behind, and still run")
PODS = Metric("crinoid_pods", "gauge", "Pod sandboxes by state (`ready`, `not-ready`)", ("state",))
CONTAINERS = Metric(
    "crinoid_containers", "gauge", "Containers by state (`created`, `running`, `exited`, `unknown`)", ("state",)
)
IMAGES = Metric("crinoid_images", "gauge", "Images, with and without a name, and pinned ones among them", ("kind",))
IMAGE_BYTES = Metric("crinoid_image_blob_bytes", "gauge", "What the blobs of all images are long, each counted once")
PULLS = Metric(
    "crinoid_pulls", "counter", "Pulls that ended, by the reference's registry and outcome (`ok`, or a reason)",
    ("registry", "outcome"),
)  # fmt: skip
PULL_SECONDS = Metric(
    "crinoid_pull_seconds", "counter", "How long those pulls took, all together", ("registry", "outcome")
)
PULL_BYTES = Metric(
    "crinoid_pull_bytes",
    "counter",
    "What those pulls fetched of layers, all together; a layer that pulls share counts for each",
    ("registry", "outcome"),
)
PULLS_UNDER_WAY = Metric("crinoid_pulls_under_way", "gauge", "Pulls that have not ended")
LEDGER = Metric("crinoid_ledger_entries", "gauge", "Host resources that the ledger has, each to be undone one day")
DEFERRED = Metric(
    "crinoid_deferred_removals",
    "gauge",
    "Host resources of pods that are gone which could not be removed yet; verbose Status names them",
)
UNREMOVED = Metric(
    "crinoid_unremoved",
    "gauge",
    "What drivers could not remove yet, such as a layer's files, by role and slot; verbose Status names it",
    ("role", "slot"),
)
UNRECORDED = Metric(
    "crinoid_unrecorded_changes", "gauge", "Starts and ends that could not be written to the state database yet"
)
FILESYSTEM_SIZE = Metric(
    "crinoid_filesystem_size_bytes", "gauge", "Size of the file systems of `root` and `run`", ("directory",)
)
FILESYSTEM_FREE = Metric(
    "crinoid_filesystem_free_bytes", "gauge", "Free bytes of the file systems of `root` and `run`", ("directory",)
)
STATE_BYTES = Metric(
    "crinoid_state_bytes", "gauge", "Files of crinoid's own: the state database with its log, and timelines", ("what",)
)
BUILD = Metric("crinoid_build_info", "gauge", "1, with the versions of crinoid and of Python", ("version", "python"))
PLUGINS = Metric(
    "crinoid_plugin_info",
    "gauge",
    "1 for each slot, with its driver and the distribution that it is of",
    ("role", "slot", "driver", "distribution", "version"),
)

PLUGIN_UP = Metric(
    "crinoid_plugin_up",
    "gauge",
    "Whether the process of a slot's driver takes calls, for each slot with `isolation`",
    ("role", "slot"),
)
PLUGIN_RESTARTS = Metric(
    "crinoid_plugin_restarts",
    "counter",
    "How often the process of a slot's driver was started again, for each slot with `isolation`",
    ("role", "slot"),
)
PLUGIN_MEMORY = Metric(
    "crinoid_plugin_memory_bytes",
    "gauge",
    "What the process of a slot's driver has in memory (RSS), for each slot with `isolation`",
    ("role", "slot"),
)

METRICS: tuple[Metric, ...] = (
    RPC_SECONDS,
    ERRORS,
    HOOK_SECONDS,
    LOOP_LAG,
    LOOP_STALL,
    ABANDONED,
    LEFT_BEHIND,
    PODS,
    CONTAINERS,
    IMAGES,
    IMAGE_BYTES,
    PULLS,
    PULL_SECONDS,
    PULL_BYTES,
    PULLS_UNDER_WAY,
    LEDGER,
    DEFERRED,
    UNREMOVED,
    UNRECORDED,
    FILESYSTEM_SIZE,
    FILESYSTEM_FREE,
    STATE_BYTES,
    BUILD,
    PLUGINS,
    PLUGIN_UP,
    PLUGIN_RESTARTS,
    PLUGIN_MEMORY,
)
