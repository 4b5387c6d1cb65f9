"""What a site may set: where plugins come from, how long they may take, and what it means when they don't answer."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from crinoid.core.api.config import AbsolutePath, DriverConfig
from crinoid.core.api.values.pod import PodConfig

Seconds = Annotated[float, Field(gt=0)]


class PluginOptions(DriverConfig):
    """One plugin, by the name that it registers with; ``None`` is the extension's own setting."""

    deadline_s: Seconds | None = None
    """How long the plugin may take for a request, in seconds."""
    on_failure: Literal["ignore", "fail"] | None = None
    """Whether an act goes on (ignore) when the plugin does not answer it in time, or loses its connection meanwhile."""
    required: bool = False
    """Refuse containers that the plugin is to be asked about while it is not connected."""
    namespaces: tuple[str, ...] = ()
    """Kubernetes namespaces whose pods the plugin is told of; empty is all. Other pods never wait for it."""
    annotation: str = ""
    """Only pods with an annotation whose key begins so are told to the plugin; empty is all."""

    def concerns(self, pod: PodConfig) -> bool:
        """Return whether a plugin is told of this pod."""
        if self.namespaces and pod.metadata.namespace not in self.namespaces:
            return False
        return not self.annotation or any(key.startswith(self.annotation) for key in pod.annotations)


class NriOptions(DriverConfig):
    """The Node Resource Interface."""

    socket: AbsolutePath = Path("/var/run/nri/nri.sock")
    """Unix socket that plugins connect to."""
    listen: bool = True
    """Whether plugins may connect; without, only those in plugin_dir are used."""
    plugin_dir: AbsolutePath = Path("/opt/nri/plugins")
    """Directory of plugins to start with the daemon: executables called NN-NAME."""
    plugin_config_dir: AbsolutePath = Path("/etc/nri/conf.d")
    """Directory of the configuration of those plugins: NN-NAME.conf, else NAME.conf."""
    registration_deadline_s: Seconds = 5.0
    """How long a plugin may take to register after it connected, in seconds."""
    synchronization_deadline_s: Seconds = 10.0
    """How long a plugin may take to take in all pods and containers, in seconds."""
    deadline_s: Seconds = 2.0
    """How long a plugin may take for a request, in seconds."""
    on_failure: Literal["ignore", "fail"] = "ignore"
    """Whether an act goes on (ignore) when a plugin does not answer it in time. A plugin's refusal always counts."""
    plugins: dict[str, PluginOptions] = Field(default_factory=dict)
    """Settings of single plugins, by name."""
