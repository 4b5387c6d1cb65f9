"""CRI-O's ``crio.conf`` and drop-ins; its registries are in ``registries_conf``.

Source of the keys and defaults: CRI-O, docs/crio.conf.5.md, docs/crio.conf.d.5.md.
"""

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.migration import values
from crinoid.core.cli.migration.draft import Draft, Outcome
from crinoid.core.cli.migration.rules import Act, Entry, apply, lost, moot, nonempty, to
from crinoid.core.cli.migration.runtimes import add_runtime
from crinoid.core.cli.migration.sources import Node

PEER = "CRI-O"
DEFAULT_FILE = Path("/etc/crio/crio.conf")
DROP_INS = Path("/etc/crio/crio.conf.d")
_POLICY = Path("/etc/containers/policy.json")
_DEFAULT_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "KILL",
)
_OWN = "how CRI-O is built inside"
_KUBELET = "the kubelet has a setting of its own for it"
_OPTIONS = "crinoid's runtimes have no such option"


def import_crio(node: Node, files: list[Path], draft: Draft) -> None:
    """Read the main file and drop-ins in their order; a later one wins. Raises ConfigurationError."""
    reader = _Crio(node, draft)
    for file in files:
        apply(node.read_toml(file), reader.rules(), draft, PEER)
    reader.finish(files[0] if files else DEFAULT_FILE)


class _Crio:
    """What has to be known of several keys before something can be made of them."""

    def __init__(self, node: Node, draft: Draft) -> None:
        self.node = node
        self.draft = draft
        self.runtimes: dict[str, dict[str, Any]] = {}
        self.places: dict[str, str] = {}
        self.metrics: dict[str, Any] = {}
        self.tracing: dict[str, Any] = {}
        self.nri: dict[str, Any] = {"enable_nri": True}
        self.general: dict[str, Any] = {}
        self.seen: set[str] = set()

    def rules(self) -> dict[str, Act]:
        """Return the rules."""
        rules = {f"crio/{key}": act for key, act in _STORAGE.items()}
        rules |= {f"crio/api/{key}": act for key, act in self._api().items()}
        rules |= {f"crio/runtime/{key}": act for key, act in self._runtime().items()}
        rules |= {f"crio/runtime/runtimes/*/{key}": act for key, act in self._handler().items()}
        rules |= {
            "crio/runtime/runtimes/*": self._note_runtime,
            "crio/runtime/workloads/*/**": lost(
                "crinoid has no workloads; an extension can adjust containers by their annotations"
            ),
        }
        rules |= {f"crio/image/{key}": act for key, act in self._image().items()}
        rules |= {f"crio/network/{key}": act for key, act in _NETWORK.items()}
        rules |= {f"crio/metrics/{key}": act for key, act in self._metrics().items()}
        for table, into in (("tracing", self.tracing), ("nri", self.nri)):
            rules[f"crio/{table}/*"] = _note(into, f"crio.{table} as a whole")
        rules["crio/stats/*"] = moot("crinoid measures when it is asked")
        rules["crio/checkpoint_restore/*"] = lost("crinoid has both for whoever asks", "checkpoint_restore")
        return rules

    def finish(self, file: Path) -> None:
        """Make the slots, and carry over what CRI-O does by itself that no key names."""
        draft, place = self.draft, str(file)
        self._make_runtimes(place)
        if "cgroup_manager" not in self.seen:
            draft.set(("pods", "cgroup_driver"), "systemd", "not set, and CRI-O has systemd then")
        if "default_capabilities" not in self.seen:
            capabilities = [values.capability(name) for name in _DEFAULT_CAPABILITIES]
            draft.set(("pods", "default_capabilities"), capabilities, "not set: CRI-O's own default")
        draft.set(("pods", "enable_unprivileged_ports"), False, "CRI-O leaves it to default_sysctls")
        draft.set(("pods", "enable_unprivileged_icmp"), False, "CRI-O leaves it to default_sysctls")
        draft.set(("network", "options", "fallback"), "none", "as CRI-O: no network until CNI is configured")
        if self.metrics.get("enable_metrics"):
            host = self.metrics.get("metrics_host") or "127.0.0.1"
            host = f"[{host}]" if ":" in host else host
            draft.set(("metrics", "listen"), f"{host}:{self.metrics.get('metrics_port', 9090)}", "crio.metrics")
        if self.tracing.get("enable_tracing"):
            endpoint = self.tracing.get("tracing_endpoint") or "127.0.0.1:4317"
            draft.set(("tracing", "endpoint"), f"http://{endpoint}", "crio.tracing")
            ratio = self.tracing.get("tracing_sampling_rate_per_million", 0) / 1e6
            draft.set(("tracing", "sampling_ratio"), ratio, "crio.tracing")
        if self.nri.get("enable_nri"):
            self._make_nri()
        self._judge_policy(place)

    def _make_runtimes(self, place: str) -> None:
        draft = self.draft
        for name, table in self.runtimes.items():
            if table.get("inherit_default_runtime"):
                default = self.runtimes.get(str(draft.get("pods", "default_runtime")), {})
                table = {**table, "runtime_path": default.get("runtime_path", "")}
            kind = table.get("runtime_type") or "oci"
            if kind == "vm":
                draft.tell(Outcome.LOST, self.places[name], f"runtime {name}", "it is a shim, and crinoid runs none")
                if draft.get("pods", "default_runtime") == name:
                    draft.remove(("pods", "default_runtime"))
                continue
            program = table.get("runtime_path", "")
            if not program and name not in ("runc", "crun"):
                program = name  # CRI-O looks for a program of the handler's name on PATH
            made = add_runtime(draft, name, program, self.places[name])
            note = ", with a conmon for each container instead of one conmon-rs a pod" if kind == "pod" else ""
            draft.tell(Outcome.CARRIED, self.places[name], f"runtime {name}", made + note)
            self._set_options(name, table)
        if draft.get("pods", "default_runtime") is None:
            text = "not set: CRI-O has crun then, runc before 1.31; crinoid has runc"
            draft.tell(Outcome.LOST, place, "crio.runtime.default_runtime", text)
        elif draft.get("pods", "default_runtime") not in self.runtimes:
            name = draft.get("pods", "default_runtime")
            draft.set(("runtimes", name, "driver"), "crun" if name == "crun" else "runc", "the default runtime")

    def _set_options(self, name: str, table: dict[str, Any]) -> None:
        """Set what a handler says itself, and before it what crio.runtime says for all."""
        draft, place = self.draft, self.places[name]
        both = {**self.general, **{key: value for key, value in table.items() if value}}
        if annotations := table.get("default_annotations"):
            draft.set(("runtimes", name, "options", "annotations"), annotations, place)
        conmon = table.get("monitor_path") or self.general.get("conmon", "")
        if PurePosixPath(conmon).name == "conmon" and shutil.which("conmon") is None:  # else it may go with CRI-O
            draft.set(("runtimes", name, "options", "monitor", "binary"), conmon, place)
        if profile := both.get("seccomp_profile"):
            if self.node.at(profile).is_file():
                draft.set(("runtimes", name, "options", "seccomp_profile"), profile, place)
            else:
                draft.tell(Outcome.LOST, place, f"runtime {name}", f"its seccomp profile {profile} is not there")
        if timeout := table.get("container_create_timeout"):
            draft.set(("runtimes", name, "options", "deadlines", "create_s"), float(timeout), place)
            draft.set(("deadlines", "runtime", "create"), float(max(timeout, 120)) + 10, place)

    def _make_nri(self) -> None:
        names = {"nri_listen": "socket", "nri_plugin_dir": "plugin_dir", "nri_plugin_config_dir": "plugin_config_dir"}
        self.draft.set(("extensions", "nri", "driver"), "nri", "CRI-O has NRI on")
        for theirs, ours in names.items():
            if self.nri.get(theirs):
                self.draft.set(("extensions", "nri", "options", ours), self.nri[theirs], "crio.nri")
        times = {
            "nri_plugin_registration_timeout": "registration_deadline_s",
            "nri_plugin_request_timeout": "deadline_s",
        }
        for theirs, ours in times.items():
            if self.nri.get(theirs):
                self.draft.set(
                    ("extensions", "nri", "options", ours), values.some_seconds(self.nri[theirs]), "crio.nri"
                )
        if self.nri.get("nri_disable_connections"):
            self.draft.set(("extensions", "nri", "options", "listen"), False, "crio.nri")

    def _judge_policy(self, place: str) -> None:
        """containers-policy.json says which images may be pulled: it must not fall away unseen."""
        path = Path(self.general.get("signature_policy") or _POLICY)
        try:
            policy = json.loads(self.node.at(path).read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: can't be read: {error}") from error
        accepts = [{"type": "insecureAcceptAnything"}]
        docker = policy.get("transports", {}).get("docker", {})
        if policy.get("default") != accepts or any(one != accepts for one in docker.values()):
            text = "its rules on images and signatures are not carried over: write them for the extension policy"
            self.draft.tell(Outcome.LOST, str(path), "(policy)", f"{text} (docs/policy.md), before images are pulled")

    def _see(self, act: Act) -> Act:
        def noting(entry: Entry) -> None:
            self.seen.add(str(entry.key[-1]))
            act(entry)

        return noting

    def _note_runtime(self, entry: Entry) -> None:
        self._note_of(entry)
        entry.skip(f"see runtime {entry.names[0]}")

    def _note_of(self, entry: Entry) -> dict[str, Any]:
        self.places.setdefault(entry.names[0], str(entry.source.origin(entry.key[:4])))
        return self.runtimes.setdefault(entry.names[0], {})

    def _hold(self, how: str = "") -> Act:
        """Note a key of a handler for later."""

        def act(entry: Entry) -> None:
            self._note_of(entry)[str(entry.key[-1])] = entry.value
            entry.skip(how or f"see runtime {entry.names[0]}")

        return act

    def _api(self) -> dict[str, Act]:
        return {
            "listen": moot("the kubelet is told of crinoid's socket: docs/moving.md"),
            "host_ip": nonempty(lost("the kubelet knows the node's address")),
            "stream_address": nonempty(to("streaming", "address", convert=values.address)),
            "stream_port": nonempty(to("streaming", "port", convert=int)),
            "stream_enable_tls": moot("on where there is a certificate"),
            "stream_idle_timeout": nonempty(to("streaming", "idle_timeout_s", convert=values.some_seconds)),
            "stream_tls_cert": nonempty(to("streaming", "tls_cert")),
            "stream_tls_key": nonempty(to("streaming", "tls_key")),
            "stream_tls_ca": nonempty(to("streaming", "client_ca")),
            "tls_min_version": lost("crinoid takes TLS 1.2 and later", "", "VersionTLS12"),
            "tls_cipher_suites": nonempty(lost("crinoid has Python's choice")),
            "grpc_max_send_msg_size": moot("answers may have 64 MiB"),
            "grpc_max_recv_msg_size": lost("see server.max_message_bytes", 0, 83886080),
        }

    def _runtime(self) -> dict[str, Act]:
        idle = "there is no such thing in crinoid to place"
        return {
            "default_runtime": to("pods", "default_runtime"),
            "default_ulimits": nonempty(to("pods", "default_ulimits")),
            "no_pivot": lost(_OPTIONS, False),
            "decryption_keys_path": lost("crinoid can't decrypt images", "", "/etc/crio/keys/"),
            "additional_artifact_stores": nonempty(lost("crinoid has one store")),
            "conmon": nonempty(_note(self.general, "options.monitor.binary, where there is no conmon on PATH")),
            "conmon_cgroup": _judge_monitor_cgroup,
            "monitor_cgroup": _judge_monitor_cgroup,
            "conmon_env": moot("conmon has the environment that it needs"),
            "default_env": nonempty(to("pods", "default_env", convert=values.pairs)),
            "min_injected_gomaxprocs": lost("crinoid sets no GOMAXPROCS", 0),
            "selinux": lost("crinoid labels containers wherever SELinux is on, by the pod's own options", False),
            "hostnetwork_disable_selinux": moot("labels are the pod's own options"),
            "seccomp_profile": nonempty(_note(self.general, "options.seccomp_profile of the runtimes")),
            "privileged_seccomp_profile": nonempty(lost("privileged containers have no seccomp profile")),
            "seccomp_use_default_when_empty": moot("RuntimeDefault is what it says; see pods.unset_seccomp"),
            "apparmor_profile": lambda entry: (
                entry.carry(("pods", "apparmor_profile"), entry.value)
                if entry.value not in ("", "crio-default")
                else entry.lose(
                    "CRI-O loads crio-default itself; crinoid uses a profile that is loaded: "
                    "pods.apparmor_profile, and none without"
                )
            ),
            "blockio_config_file": nonempty(lost("crinoid has no blockio classes")),
            "blockio_reload": moot("crinoid has no blockio classes"),
            "rdt_config_file": nonempty(lost("crinoid has no RDT classes")),
            "irqbalance_config_file": lost("crinoid moves no interrupts", "", "/etc/sysconfig/irqbalance"),
            "irqbalance_config_restore_file": moot("crinoid moves no interrupts"),
            "cdi_spec_dirs": nonempty(to("pods", "cdi_spec_dirs")),
            "cgroup_manager": self._see(to("pods", "cgroup_driver")),
            "default_capabilities": self._see(_carry_capabilities),
            "add_inheritable_capabilities": lost("no container has inheritable capabilities", False),
            "default_sysctls": nonempty(to("pods", "default_sysctls", convert=values.pairs)),
            "allowed_devices": nonempty(lost("devices.crio.io is not read; use CDI or a device plugin")),
            "additional_devices": nonempty(lost("describe them as CDI devices, or by a device plugin")),
            "hooks_dir": self._judge_hooks,
            "default_mounts": nonempty(lost("an extension can add mounts")),
            "default_mounts_file": nonempty(lost("an extension can add mounts")),
            "pids_limit": to("pods", "pids_limit", convert=lambda value: max(int(value), 0)),
            "log_filter": nonempty(lost("crinoid's log is filtered by level")),
            "log_level": to("log", "level", convert=values.log_level),
            "log_size_max": lost(f"{_KUBELET}: containerLogMaxSize", -1),
            "log_to_journald": lost("conmon writes the kubelet's log files alone", False),
            "container_exits_dir": moot(_OWN),
            "container_attach_socket_dir": moot(_OWN),
            "bind_mount_prefix": nonempty(lost("crinoid does not run in a container")),
            "read_only": lost("containers are read-only where the pod says so", False),
            "uid_mappings": nonempty(lost("pods have user namespaces by the kubelet: hostUsers")),
            "gid_mappings": nonempty(lost("pods have user namespaces by the kubelet: hostUsers")),
            "minimum_mappable_uid": lost("the kubelet gives the ranges", -1),
            "minimum_mappable_gid": lost("the kubelet gives the ranges", -1),
            "ctr_stop_timeout": lost("the grace is what the pod says, and no longer", 10, 30),
            "drop_infra_ctr": moot("crinoid's pods have no infra container"),
            "infra_ctr_cpuset": moot("crinoid's pods have no infra container"),
            "shared_cpuset": nonempty(lost(idle)),
            "exec_cpu_affinity": nonempty(lost(idle)),
            "namespaces_dir": moot("crinoid pins namespaces below /run/crinoid"),
            "pinns_path": moot(_OWN),
            "manage_ns_lifecycle": moot("crinoid always does"),
            "absent_mount_sources_to_reject": nonempty(
                lost("crinoid makes a directory where a mount's source is missing")
            ),
            "device_ownership_from_security_context": lost("devices keep the owners of the host's", False),
            "enable_criu_support": lost("crinoid has checkpoints for whoever asks", True),
            "enable_pod_events": moot("crinoid always has events"),
            "disable_hostport_mapping": lost("host ports are mapped by CNI's portmap, or by crinoid's bridge", False),
            "timezone": nonempty(lost("pods.default_env can set TZ")),
        }

    def _handler(self) -> dict[str, Act]:
        return {
            "runtime_path": self._hold(),
            "runtime_type": self._hold(),
            "inherit_default_runtime": self._hold(),
            "default_annotations": self._hold("options.annotations"),
            "seccomp_profile": self._hold("options.seccomp_profile"),
            "monitor_path": self._hold("options.monitor.binary, where there is no conmon on PATH"),
            "container_create_timeout": self._hold("options.deadlines.create_s"),
            "runtime_root": moot("crinoid keeps the runtime's state below /run/crinoid"),
            "monitor_cgroup": _judge_monitor_cgroup,
            "monitor_exec_cgroup": lost("exec's monitors run beside the others", ""),
            "monitor_env": moot("conmon has the environment that it needs"),
            "runtime_config_path": nonempty(lost("it is for virtual machines' shims")),
            "privileged_without_host_devices": lost("privileged containers have the host's devices", False),
            "allowed_annotations": nonempty(lost("CRI-O's own annotations are not read")),
            "container_min_memory": nonempty(lost("crinoid has no least limit: what the kernel takes is taken")),
            "platform_runtime_paths": nonempty(lost("one program for each slot: name another handler")),
            "no_sync_log": moot("logs are not synced at a container's end: options.monitor.sync_log"),
            "stream_websockets": moot("crinoid always speaks both"),
            "exec_cpu_affinity": nonempty(lost("exec processes run where the container may")),
        }

    def _image(self) -> dict[str, Act]:
        pin = _carry_pins
        return {
            "default_transport": lost("crinoid pulls from registries", "", "docker://"),
            "global_auth_file": nonempty(self._carry_auth_file),
            "namespaced_auth_dir": lost("pods' pull secrets come by the kubelet", "", "/etc/crio/auth"),
            "pause_image": nonempty(to("pods", "pause_image")),
            "pause_image_auth_file": nonempty(self._carry_auth_file),
            "pause_command": lost("the pause image's own command is run", "", "/pause"),
            "pinned_images": pin,
            "signature_policy": nonempty(_note(self.general, "its rules are looked at")),
            "signature_policy_dir": lambda entry: (
                entry.lose("rules by namespace are not carried over: write them for the extension policy")
                if self.node.list(entry.value, "*.json")
                else entry.skip("there is no policy in it")
            ),
            "image_volumes": lost("volumes that images declare are always made", "mkdir", "bind"),
            "insecure_registries": self._carry_insecure,
            "registries": lost("short names mean docker.io, as the kubelet has it", [], ["docker.io"]),
            "big_files_temporary_dir": moot("layers are written where they stay"),
            "separate_pull_cgroup": nonempty(lost("images are pulled in the daemon's cgroup")),
            "auto_reload_registries": moot("crinoid reads certs.d at every pull"),
            "pull_progress_timeout": to("images", "pull_idle_timeout_s", convert=values.some_seconds),
            "oci_artifact_mount_support": moot("as the kubelet asks"),
            "short_name_mode": moot("short names mean docker.io"),
        }

    def _metrics(self) -> dict[str, Act]:
        return {
            **{
                name: _note(self.metrics, "metrics.listen")
                for name in ("enable_metrics", "metrics_host", "metrics_port")
            },
            "metrics_collectors": moot("crinoid's metrics have other names, and all are served"),
            "metrics_socket": nonempty(lost("metrics are served on a port alone")),
            "metrics_cert": nonempty(lost("metrics are served without TLS: keep them on loopback")),
            "metrics_key": nonempty(lost("metrics are served without TLS: keep them on loopback")),
        }

    def _carry_auth_file(self, entry: Entry) -> None:
        self.draft.docker_configs.append(entry.value)
        entry.carried("registries.distribution.options.docker_configs")

    def _carry_insecure(self, entry: Entry) -> None:
        for name in entry.items:
            self.draft.hosts.allow_insecure(name)
        if entry.value:
            entry.carried("certs.d: https with any certificate, then http; newer CRI-O takes no notice of this key")
        else:
            entry.skip("empty: nothing is set")

    def _judge_hooks(self, entry: Entry) -> None:
        found = [str(path) for directory in entry.items for path in self.node.list(directory, "*.json")]
        if found:
            entry.lose(
                f"OCI hooks by directory are not run ({', '.join(found)}): an extension or an NRI plugin can add hooks"
            )
        else:
            entry.skip("there is no hook in it")


def _note(into: dict[str, Any], how: str) -> Act:
    def act(entry: Entry) -> None:
        into[str(entry.key[-1])] = entry.value
        entry.carried(how)

    return act


def _judge_monitor_cgroup(entry: Entry) -> None:
    if entry.value in ("", "pod"):
        entry.skip("empty: nothing is set, or the pod's own, as here")
    elif str(entry.value).startswith("/"):
        entry.carry(("pods", "monitor_cgroup"), entry.value)
    else:
        entry.lose("crinoid's monitors run below pods.cgroup_root with cgroupfs, and where they start with systemd")


def _carry_capabilities(entry: Entry) -> None:
    entry.carry(("pods", "default_capabilities"), [values.capability(name) for name in entry.items])


def _carry_pins(entry: Entry) -> None:
    held: list[str] = []
    unheld: list[str] = []
    for pattern in entry.items:
        (unheld if "*" in pattern.removesuffix("*") else held).append(pattern)
    entry.draft.set(("images", "pinned"), [*entry.draft.get("images", "pinned", default=[]), *held], entry.place)
    if unheld:
        entry.lose(f"a star can stand at the end alone: {', '.join(unheld)}")
    if held or not unheld:
        entry.carried("images.pinned")


_STORAGE: dict[str, Act] = {
    "root": moot("its images: skopeo copy, or pull them anew; image adopt reads containerd's alone"),
    "runroot": moot(_OWN),
    "storage_driver": lost("crinoid has overlay, native and erofs", "", "overlay", "overlay2"),
    "storage_option": nonempty(lost("see snapshotter.options: root and mount_options")),
    "imagestore": nonempty(lost("images and containers' files are below snapshotter.options.root")),
    "file_locking": moot(_OWN),
    "file_locking_path": moot(_OWN),
    "log_dir": moot("the kubelet says where logs lie"),
    "version_file": moot(_OWN),
    "version_file_persist": moot(_OWN),
    "internal_wipe": moot("crinoid clears up at every start what a reboot has ended"),
    "internal_repair": moot("crinoid's records survive a power cut; crinoid image verify looks"),
    "clean_shutdown_file": moot(_OWN),
    "collection_period": moot("crinoid measures when it is asked"),
    "stats_collection_period": moot("crinoid measures when it is asked"),
}

_NETWORK: dict[str, Act] = {
    "cni_default_network": nonempty(lost("the first configuration by name is used: rename the file, or remove others")),
    "network_dir": nonempty(to("network", "options", "cni", "conf_dir")),
    "plugin_dirs": nonempty(to("network", "options", "cni", "bin_dirs")),
    "plugin_dir": nonempty(to("network", "options", "cni", "bin_dirs", convert=lambda value: [value])),
    "cni_status_grace_period": moot("crinoid asks the plugins' STATUS for each of its own"),
}
