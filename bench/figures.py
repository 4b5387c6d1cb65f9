"""The figures: what each is called, its unit and its goals. Scenarios add samples under a key, reports look it up."""

from collections.abc import Mapping
from dataclasses import dataclass

UNITS_PER_S = {"ms": 1000.0, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure. ``title`` may name settings of the run in braces, such as ``{pods}``; ``label`` is short.

    ``goals`` are what is aimed at, for ``bridge`` + crun and for CNI + runc: ratios of medians to the peer's, or values
    in the figure's unit where ``absolute``; ``None``: there is none.
    """

    key: str
    label: str
    title: str
    unit: str
    goals: tuple[float, float] | None = None
    absolute: bool = False

    def name(self, settings: Mapping[str, float | str]) -> str:
        """Return the title with the run's settings in it, and the unit."""
        shown = {key: value if isinstance(value, str) else f"{value:,.10g}" for key, value in settings.items()}
        return f"{self.title.format_map(shown)}, {self.unit}"

    def goal(self, endpoint: str) -> float | None:
        """Return what is aimed at for an endpoint of ours; peers have no goals."""
        if self.goals is None or not endpoint.startswith("crinoid"):
            return None
        return self.goals[0 if "crun" in endpoint else 1]


FIGURES = (
    Figure("run", "RunPodSandbox", "RunPodSandbox", "ms", (0.10, 0.50)),
    Figure("start", "CreateContainer + StartContainer", "CreateContainer + StartContainer", "ms", (0.45, 0.95)),
    Figure("ready", "pod ready", "pod ready (RunPodSandbox to StartContainer's answer)", "ms", (0.18, 0.60)),
    Figure("crowd", "ten pods at once", "ten pods at once", "ms", (0.25, 0.60)),
    Figure(
        "stop",
        "StopPodSandbox + RemovePodSandbox",
        "StopPodSandbox + RemovePodSandbox with a running container",
        "ms",
        (0.10, 0.60),
    ),
    Figure("exec", "ExecSync", "ExecSync(true)", "ms", (0.45, 0.90)),
    Figure(
        "execs", "eight execs at once", "ExecSync(true), eight at once, until the last one's answer", "ms", (0.5, 0.5)
    ),
    Figure("remove-container", "RemoveContainer", "RemoveContainer of one that has ended", "ms", (1.0, 1.0)),
    Figure(
        "lists",
        "lists and ContainerStatus",
        "ListContainers, ListPodSandbox, ContainerStatus at {pods} pods",
        "ms",
        (1.0, 1.0),
    ),
    Figure("container-status", "ContainerStatus", "ContainerStatus at {pods} pods", "ms", (1.0, 1.0)),
    Figure("pod-status", "PodSandboxStatus", "PodSandboxStatus at {pods} pods", "ms", (1.0, 1.0)),
    Figure("container-stats", "ListContainerStats", "ListContainerStats at {pods} pods", "ms", (0.25, 0.25)),
    Figure("pod-stats", "ListPodSandboxStats", "ListPodSandboxStats at {pods} pods", "ms", (0.25, 0.25)),
    Figure("memory", "memory", "memory of daemon and monitors of {pods} pods", "MiB", (0.22, 0.22)),
    Figure("polling", "CPU of polling", "CPU in {seconds} s of a kubelet's polling at {pods} pods", "s", (0.12, 0.12)),
    Figure("idle", "CPU left alone", "CPU in {seconds} s left alone at {pods} pods", "s", (0.01, 0.01), absolute=True),
    Figure(
        "logging", "logging", "a container that writes {log_mb} MB of 100-byte lines, until it ends", "s", (0.30, 0.30)
    ),
    Figure(
        "pull-large", "PullImage, large", "PullImage, {large_mb} MB in {large_files} files, 4 layers", "s", (0.50, 0.50)
    ),
    Figure("first-read", "first read", "a container of it that reads all files, nothing of them in memory", "s"),
    Figure("pull-tiny", "PullImage, many files", "PullImage, {tiny_files} tiny files in one layer", "s", (0.80, 0.80)),
    Figure(
        "remove-tiny", "RemoveImage, many files", "RemoveImage, {tiny_files} tiny files in one layer", "s", (0.05, 0.05)
    ),
    Figure(
        "again-tiny",
        "PullImage, many files, after a removal",
        "PullImage, {tiny_files} tiny files, when an image of that size was just removed",
        "s",
        (0.80, 0.80),
    ),
    Figure(
        "again-large",
        "PullImage, large, after a removal",
        "PullImage, {large_mb} MB in {large_files} files, in that state",
        "s",
        (0.35, 0.35),
    ),
    Figure(
        "remove-of-many",
        "RemoveImage of many",
        "RemoveImage of one of 400 images (20 when quick), 12 layers each",
        "ms",
    ),
    Figure("longest-wait", "Version during removals", "Version, the longest wait while those are removed", "ms"),
    Figure("restart", "restart", "restart with {pods} pods until the first full list", "ms", (0.60, 0.60)),
    Figure(
        "accepting",
        "start",
        "start with {pods} pods until the socket takes a connection",
        "ms",
        (200.0, 200.0),
        absolute=True,
    ),
    Figure("removal", "removal of all pods", "remove {pods} pods, four at a time", "s", (0.15, 0.50)),
    Figure("pss", "PSS", "PSS of the same processes beside all the others of the run", "MiB"),
    Figure("version", "Version", "Version, which asks for next to nothing: what any call costs", "ms"),
    Figure("list-images", "ListImages", "ListImages", "ms"),
    Figure("image-status", "ImageStatus", "ImageStatus", "ms"),
    Figure("pull", "PullImage, small", "PullImage of a small image", "ms"),
    # Under a kubelet (bench.cluster); the goal of the first is for what is above the floor.
    Figure("cluster-ready", "pods to Ready", "{cluster_pods} pods of a Deployment to Ready", "s"),
    Figure("cluster-cpu", "CPU for that", "CPU of daemon and monitors for that", "s", (0.20, 0.40)),
    Figure("cluster-gone", "deletion", "deletion of these pods, until the API has none", "s", (0.40, 0.40)),
    Figure("cluster-memory", "memory under a kubelet", "memory of daemon and monitors at these pods", "MiB"),
    Figure("cluster-pss", "PSS under a kubelet", "their PSS", "MiB"),
    Figure(
        "cluster-probed",
        "CPU of probes",
        "CPU of daemon and monitors in {probed_s} s of them with an exec probe each 10 s",
        "s",
        (0.20, 0.35),
    ),
)
BY_KEY = {figure.key: figure for figure in FIGURES}
