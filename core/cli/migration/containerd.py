"""containerd's ``config.toml``, versions 2 and 3 (and 4, as far as its keys are those of 3), with its imports.

Source of the keys: containerd, docs/cri/config.md, docs/man/containerd-config.toml.5.md, docs/hosts.md, and what
``containerd config default`` prints.
"""

from pathlib import Path
from typing import Any

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.migration import values
from crinoid.core.cli.migration.draft import Draft, Outcome
from crinoid.core.cli.migration.hosts import Mirror, read_certificates, unread_keys
from crinoid.core.cli.migration.rules import Act, Entry, apply, lost, moot, nonempty, to
from crinoid.core.cli.migration.runtimes import add_runtime
from crinoid.core.cli.migration.sources import Node, Source

PEER = "containerd"
DEFAULT_FILE = Path("/etc/containerd/config.toml")
K3S_FILE = Path("/var/lib/rancher/k3s/agent/etc/containerd/config.toml")
_CRI = "io.containerd.grpc.v1.cri"
_SNAPSHOTTERS = {"": "overlay", "overlayfs": "overlay", "native": "native", "erofs": "erofs"}
_RUNC_SHIMS = ("", "io.containerd.runc.v1", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux")
_OWN = "how containerd is built inside"
_API = "containerd's own API, which no kubelet uses"
_OPTIONS = "crinoid's runtimes have no such option"


def import_containerd(node: Node, file: Path, draft: Draft) -> None:
    """Read a file and what it imports. Raises ConfigurationError for a file that can't be read."""
    reader = _Containerd(node, draft)
    for source in reader.read(file):
        version = source.table.get("version", 1)
        if version not in (2, 3, 4):
            raise ConfigurationError(
                f"{source.file}: version {version!r} is not read; `containerd config migrate` writes it anew"
            )
        apply(source, reader.rules(version), draft, PEER)
    reader.finish(file)


class _Containerd:
    """What has to be known of several keys before something can be made of them."""

    def __init__(self, node: Node, draft: Draft) -> None:
        self.node = node
        self.draft = draft
        self.version = 2
        self.types: dict[str, str] = {}
        self.programs: dict[str, str] = {}
        self.systemd: dict[str, bool] = {}
        self.networks: dict[str, dict[str, Any]] = {}
        self.snapshotters: dict[str, str] = {}
        self.places: dict[str, str] = {}
        self.seen: set[str] = set()
        self.has_config_path = False
        self.nri: dict[str, Any] = {}
        self.tls_streaming: Entry | None = None

    def read(self, file: Path) -> list[Source]:
        """Return a file and, behind it, those that it imports."""
        source = self.node.read_toml(file)
        self.version = source.table.get("version", 1)
        found = [source]
        for pattern in source.table.get("imports", []):
            place = file.parent / pattern if not pattern.startswith("/") else Path(pattern)
            for path in self.node.list(place.parent, place.name):
                if path not in (one.file for one in found):
                    found.append(self.node.read_toml(path))
        self.has_config_path = any(_config_path(one.table) for one in found)
        return found

    def rules(self, version: int) -> dict[str, Act]:
        """Return the rules for a file of a version: the CRI's keys lie in other tables from version 3 on."""
        rules = dict(_TOP)
        runtime, images, stream = (
            (f"plugins/{_CRI}",) * 3
            if version == 2
            else ("plugins/io.containerd.cri.v1.runtime", "plugins/io.containerd.cri.v1.images", f"plugins/{_CRI}")
        )
        rules |= {f"{stream}/{key}": act for key, act in self._streaming().items()}
        rules |= {f"{runtime}/{key}": act for key, act in self._runtime().items()}
        rules |= {f"{images}/{key}": act for key, act in self._images(version).items()}
        rules |= {f"plugins/{key}": act for key, act in self._plugins().items()}
        return rules

    def finish(self, file: Path) -> None:
        """Make the slots, and say what containerd does by itself that no key names."""
        draft = self.draft
        self._make_runtimes()
        for name, options in self.networks.items():
            place = self.places[name]
            base = draft.get("network", "options", "cni", default={})
            draft.set(("networks", name, "driver"), "cni", place)
            draft.set(("networks", name, "options"), {**base, **options}, place)
            if draft.get("runtimes", name):
                draft.set(("runtimes", name, "network"), name, place)
        draft.set(("network", "options", "fallback"), "none", "as containerd: no network until CNI is configured")
        if self.tls_streaming is not None and not draft.get("streaming", "tls_cert"):
            self.tls_streaming.lose("containerd makes a certificate of its own; name one: streaming.tls_cert, tls_key")
        if self.version > 2 and self.nri.get("disable") is not True:
            self.nri.setdefault("disable", False)
        if self.nri.pop("disable", True) is False:
            draft.set(("extensions", "nri", "driver"), "nri", "containerd has NRI on")
            for name, value in self.nri.items():
                draft.set(("extensions", "nri", "options", name), value, str(file))
        self._tell_defaults(file)

    def _make_runtimes(self) -> None:
        draft = self.draft
        for name, place in self.places.items():
            if name not in self.types and name not in self.programs and name != "runc":
                continue
            kind = self.types.get(name, "")
            if kind not in _RUNC_SHIMS:
                hint = (
                    ": where its program has an OCI runtime's command line, the driver oci may do"
                    if "runsc" in kind
                    else ""
                )
                draft.tell(Outcome.LOST, place, f"runtime {name}", f"{kind} is a shim, and crinoid runs none{hint}")
                if draft.get("pods", "default_runtime") == name:
                    draft.remove(("pods", "default_runtime"))
                continue
            made = add_runtime(draft, name, self.programs.get(name, ""), place)
            draft.tell(Outcome.CARRIED, place, f"runtime {name}", made)
            if name in self.snapshotters:
                draft.set(("runtimes", name, "snapshotter"), self._snapshotter(self.snapshotters[name], place), place)
        default = draft.get("pods", "default_runtime", default="runc")
        made_here = [name for name in self.places if draft.get("runtimes", name)]
        if any(self.systemd.values()):
            draft.set(("pods", "cgroup_driver"), "systemd", "SystemdCgroup of the runtimes")
            differ = [name for name in made_here if not self.systemd.get(name)]
            if differ:
                text = f"{', '.join(differ)} did not have it: crinoid has one cgroup driver for all, now systemd"
                draft.tell(Outcome.LOST, self.places[differ[0]], "SystemdCgroup", text)
        elif self.version == 2 or default in self.systemd:
            draft.set(("pods", "cgroup_driver"), "cgroupfs", "SystemdCgroup is not set")

    def _snapshotter(self, name: str, place: str) -> str:
        """Return the slot for a snapshotter, which is made if it is not the default one."""
        driver = _SNAPSHOTTERS[name]
        if driver == self.draft.get("snapshotter", "driver", default="overlay"):
            return "default"
        self.draft.set(("snapshotters", driver, "driver"), driver, place)
        return driver

    def _tell_defaults(self, file: Path) -> None:
        def tell(key: str, text: str) -> None:
            self.draft.tell(Outcome.LOST, str(file), key, text)

        if self.version == 2:
            for key in ("enable_unprivileged_ports", "enable_unprivileged_icmp"):
                if key not in self.seen:
                    self.draft.set(("pods", key), False, "not set, and containerd 1 has false then")
                    text = f"not set: false, as in containerd 1, though containerd 2 has true; see pods.{key}"
                    self.draft.tell(Outcome.CARRIED, str(file), key, text)
        if "disable_apparmor:true" not in self.seen and self.node.at("/sys/kernel/security/apparmor").exists():
            tell(
                "(AppArmor)",
                "RuntimeDefault means a profile that containerd loads itself; crinoid uses "
                "pods.apparmor_profile, which has to be loaded, and none without",
            )
        for unit in ("/etc/systemd/system/containerd.service.d", "/lib/systemd/system/containerd.service.d"):
            for path in self.node.list(unit, "*.conf"):
                for number, line in enumerate(self.node.at(path).read_text(errors="replace").splitlines(), 1):
                    if line.strip().startswith(("Environment", "Limit")):
                        self.draft.tell(
                            Outcome.LOST,
                            f"{path}:{number}",
                            line.partition("=")[0].strip(),
                            "a setting of containerd's unit: write it into crinoid.service.d",
                        )

    def _see(self, act: Act) -> Act:
        """Remember that the key was there."""

        def noting(entry: Entry) -> None:
            self.seen |= {str(entry.key[-1]), f"{entry.key[-1]}:{str(entry.value).lower()}"}
            act(entry)

        return noting

    def _streaming(self) -> dict[str, Act]:
        def note_tls(entry: Entry) -> None:
            if entry.value is True:
                self.tls_streaming = entry
            else:
                entry.skip("off here, too, without a certificate")

        return {
            "disable_tcp_service": moot("crinoid serves the CRI on its socket alone"),
            "stream_server_address": nonempty(to("streaming", "address", convert=values.address)),
            "stream_server_port": nonempty(to("streaming", "port", convert=int)),
            "stream_idle_timeout": nonempty(to("streaming", "idle_timeout_s", convert=values.some_seconds)),
            "enable_tls_streaming": note_tls,
            "x509_key_pair_streaming/tls_cert_file": nonempty(to("streaming", "tls_cert")),
            "x509_key_pair_streaming/tls_key_file": nonempty(to("streaming", "tls_key")),
        }

    def _runtime(self) -> dict[str, Act]:
        runtime = "containerd/runtimes/*"
        rules: dict[str, Act] = {
            "systemd_cgroup": lost("this is for containerd's first shim; SystemdCgroup of a runtime is carried", False),
            "enable_selinux": lost("crinoid labels containers wherever SELinux is on, by the pod's own options", False),
            "selinux_category_range": moot("crinoid draws no categories: the pod's options name them"),
            "max_container_log_line_size": moot("conmon splits lines at 8 KiB, with the same P and F marks"),
            "disable_cgroup": lost("crinoid always makes cgroups", False),
            "disable_apparmor": self._see(lost("crinoid uses AppArmor where a profile asks for it", False)),
            "restrict_oom_score_adj": lost("crinoid's daemon must be allowed to lower oom_score_adj", False),
            "disable_proc_mount": lost("crinoid always does what procMount says", False),
            "unset_seccomp_profile": _carry_unset_seccomp,
            "tolerate_missing_hugetlb_controller": lost(
                "limits on huge pages are left out where the kernel has none", True
            ),
            "disable_hugetlb_controller": lost(
                "limits on huge pages are used wherever the kernel has them", True, False
            ),
            "device_ownership_from_security_context": lost("devices keep the owners of the host's", False),
            "ignore_image_defined_volumes": lost("volumes that images declare are always made", False),
            "netns_mounts_under_state_dir": moot("crinoid pins namespaces below /run/crinoid"),
            "enable_unprivileged_ports": self._see(to("pods", "enable_unprivileged_ports")),
            "enable_unprivileged_icmp": self._see(to("pods", "enable_unprivileged_icmp")),
            "enable_cdi": lambda entry: (
                entry.skip("on here, too") if entry.value else entry.carry(("pods", "cdi_spec_dirs"), [])
            ),
            "cdi_spec_dirs": lambda entry: self._carry_cdi(entry),
            "drain_exec_sync_io_timeout": _carry_drain,
            "ignore_deprecation_warnings": moot("crinoid has no such warnings"),
            "containerd/no_pivot": lost(_OPTIONS, False),
            "containerd/default_runtime_name": to("pods", "default_runtime"),
            "containerd/ignore_blockio_not_enabled_errors": moot("crinoid has no blockio classes"),
            "containerd/ignore_rdt_not_enabled_errors": moot("crinoid has no RDT classes"),
            "containerd/default_runtime/**": _lose_old_runtime,
            "containerd/untrusted_workload_runtime/**": _lose_old_runtime,
            runtime: self._note_type,
            f"{runtime}/runtime_type": self._note_type,
            f"{runtime}/runtime_path": nonempty(lost("it names a shim, and crinoid runs none; see options.BinaryName")),
            f"{runtime}/runtime_engine": nonempty(lost("it is for containerd's first shim; see options.BinaryName")),
            f"{runtime}/runtime_root": moot("crinoid keeps the runtime's state below /run/crinoid"),
            f"{runtime}/pod_annotations": nonempty(
                lost("crinoid hands the container's annotations to the runtime, not the pod's")
            ),
            f"{runtime}/container_annotations": moot("crinoid hands all of the container's annotations to the runtime"),
            f"{runtime}/privileged_without_host_devices": lost("privileged containers have the host's devices", False),
            f"{runtime}/privileged_without_host_devices_all_devices_allowed": lost(_OPTIONS, False),
            f"{runtime}/base_runtime_spec": nonempty(
                lost("crinoid builds the specification itself; limits go to pods.default_ulimits")
            ),
            f"{runtime}/cni_conf_dir": nonempty(self._note_network("conf_dir", str)),
            f"{runtime}/cni_max_conf_num": self._note_network("max_conf_num", int),
            f"{runtime}/snapshotter": nonempty(self._note_snapshotter),
            f"{runtime}/sandboxer": lost("crinoid's pods have no sandbox controllers", "", "podsandbox"),
            f"{runtime}/io_type": lost("conmon keeps the streams", "", "fifo"),
            f"{runtime}/cgroup_writable": lost("cgroups are read-only in containers that are not privileged", False),
            f"{runtime}/options": moot("empty: nothing is set"),
            f"{runtime}/options/BinaryName": self._note_program,
            f"{runtime}/options/SystemdCgroup": self._note_systemd,
            f"{runtime}/options/Root": moot("crinoid keeps the runtime's state below /run/crinoid"),
            f"{runtime}/options/NoPivotRoot": lost(_OPTIONS, False),
            f"{runtime}/options/NoNewKeyring": lost(_OPTIONS, False),
            f"{runtime}/options/ShimCgroup": nonempty(to("pods", "monitor_cgroup")),
            f"{runtime}/options/IoUid": lost("streams belong to root", 0),
            f"{runtime}/options/IoGid": lost("streams belong to root", 0),
            f"{runtime}/options/CriuPath": nonempty(lost("criu is looked for on PATH")),
            f"{runtime}/options/CriuImagePath": nonempty(lost("crinoid chooses where criu writes")),
            f"{runtime}/options/CriuWorkPath": nonempty(lost("crinoid chooses where criu writes")),
            f"{runtime}/options/*": lost("an option of a shim, and crinoid runs none", "", 0, False),
            "cni/bin_dir": nonempty(to("network", "options", "cni", "bin_dirs", convert=lambda value: [value])),
            "cni/bin_dirs": nonempty(to("network", "options", "cni", "bin_dirs")),
            "cni/conf_dir": nonempty(to("network", "options", "cni", "conf_dir")),
            "cni/max_conf_num": to("network", "options", "cni", "max_conf_num"),
            "cni/setup_serially": moot("the networks of a pod are always attached one after another"),
            "cni/conf_template": nonempty(
                lost("crinoid writes no CNI configuration; its own bridge takes the pod CIDR: network.options.fallback")
            ),
            "cni/ip_pref": _carry_ip_preference,
            "cni/use_internal_loopback": moot("crinoid brings up lo by itself"),
        }
        return rules

    def _images(self, version: int) -> dict[str, Act]:
        table = "containerd/" if version == 2 else ""
        return {
            "sandbox_image": nonempty(_carry_pause_image),
            "pinned_images/sandbox": nonempty(_carry_pause_image),
            "pinned_images/*": _pin,
            "runtime_platforms/**": nonempty(lost("crinoid pulls for one platform: images.platform")),
            "stats_collect_period": moot("crinoid reads the disk's use when it is asked"),
            "max_concurrent_downloads": to("images", "max_parallel_layers", convert=values.parallel),
            "concurrent_layer_fetch_buffer": lost(
                "see connections_per_blob and range_bytes of the distribution driver", 0
            ),
            "image_pull_progress_timeout": to("images", "pull_idle_timeout_s", convert=values.some_seconds),
            "image_pull_with_sync_fs": moot("crinoid always syncs what it has pulled"),
            "use_local_image_pull": moot(_OWN),
            "disable_image_pull_with_transfer_service": moot(_OWN),
            "max_concurrent_unpacks": to("images", "max_parallel_unpacks", convert=values.parallel),
            f"{table}snapshotter": self._carry_snapshotter,
            f"{table}disable_snapshot_annotations": lost(
                "crinoid's snapshotters fetch no layers by themselves", True, False
            ),
            f"{table}discard_unpacked_layers": lost(
                "crinoid keeps layers; `image adopt` can't take what is gone", False
            ),
            "image_decryption/key_model": lost("crinoid can't decrypt images", "", "node"),
            "registry": moot("empty: nothing is set"),
            "registry/config_path": self._carry_config_path,
            "registry/mirrors/*/endpoint": self._carry_mirrors,
            "registry/mirrors/*/rewrite/**": lost("crinoid rewrites no names of repositories"),
            "registry/configs/*": moot("empty: nothing is set"),
            "registry/configs/*/tls/insecure_skip_verify": self._carry_skip_verify,
            "registry/configs/*/tls/ca_file": nonempty(self._carry_ca),
            "registry/configs/*/tls/cert_file": nonempty(self._carry_client),
            "registry/configs/*/tls/key_file": nonempty(moot("goes with cert_file")),
            "registry/configs/*/auth/**": _log_in,
            "registry/auths/*/**": _log_in,
            "registry/headers/**": nonempty(lost("write them into the hosts.toml that they are meant for: header")),
        }

    def _plugins(self) -> dict[str, Act]:
        def note_nri(name: str, convert: Any = lambda value: value) -> Act:
            def act(entry: Entry) -> None:
                self.nri[name] = convert(entry.value)
                entry.carried(f"extensions.nri: {name}")

            return act

        nri, transfer = "io.containerd.nri.v1.nri", "io.containerd.transfer.v1.local"
        otlp = "io.containerd.tracing.processor.v1.otlp"
        verifier = "io.containerd.image-verifier.v1.bindir"
        verifies = "programs that verify images are not run; see the extension policy"
        return {
            f"{nri}/disable": note_nri("disable"),
            f"{nri}/socket_path": note_nri("socket"),
            f"{nri}/plugin_path": note_nri("plugin_dir"),
            f"{nri}/plugin_config_path": note_nri("plugin_config_dir"),
            f"{nri}/plugin_registration_timeout": note_nri("registration_deadline_s", values.some_seconds),
            f"{nri}/plugin_request_timeout": note_nri("deadline_s", values.some_seconds),
            f"{nri}/disable_connections": note_nri("listen", lambda value: not value),
            f"{nri}/default_validator/**": lost("crinoid validates no adjustments by rules"),
            f"{transfer}/max_concurrent_downloads": to("images", "max_parallel_layers", convert=values.parallel),
            f"{transfer}/max_concurrent_unpacks": to("images", "max_parallel_unpacks", convert=values.parallel),
            f"{transfer}/config_path": self._carry_config_path,
            f"{transfer}/**": moot(_OWN),
            f"{otlp}/endpoint": nonempty(_carry_tracing),
            f"{otlp}/protocol": lost("crinoid speaks OTLP over gRPC", "", "grpc"),
            f"{otlp}/insecure": moot("the scheme of tracing.endpoint says it"),
            "io.containerd.internal.v1.tracing/sampling_ratio": to("tracing", "sampling_ratio", convert=float),
            "io.containerd.internal.v1.tracing/service_name": moot("traces are of the service crinoid"),
            f"{verifier}/bin_dir": lambda entry: (
                entry.lose(verifies) if self.node.list(entry.value, "*") else entry.skip("there is no such program")
            ),
            f"{verifier}/*": moot("there is no such program, or see bin_dir"),
            "io.containerd.runtime.v2.task/sched_core": lost("crinoid sets no core scheduling", False),
            "io.containerd.runtime.v2.task/platforms": moot("crinoid runs what the host runs"),
            "io.containerd.service.v1.tasks-service/rdt_config_file": nonempty(lost("crinoid has no RDT classes")),
            "io.containerd.service.v1.tasks-service/blockio_config_file": nonempty(
                lost("crinoid has no blockio classes")
            ),
            "io.containerd.snapshotter.v1.overlayfs/root_path": nonempty(
                lost("its layers are not read; snapshotter.options.root is where crinoid's lie")
            ),
            "io.containerd.snapshotter.v1.overlayfs/mount_options": nonempty(
                to("snapshotter", "options", "mount_options", convert=list)
            ),
            "io.containerd.snapshotter.v1.overlayfs/*": moot(_OWN),
            **{
                f"io.containerd.snapshotter.v1.{name}/**": moot("it is used where the snapshotter of pods names it")
                for name in ("aufs", "blockfile", "btrfs", "devmapper", "erofs", "native", "zfs")
            },
            f"{_CRI}/image_decryption/key_model": lost("crinoid can't decrypt images", "", "node"),
            "io.containerd.server.v1.metrics/address": nonempty(_carry_metrics),
            "io.containerd.server.v1.debug/level": nonempty(to("log", "level", convert=values.log_level)),
            "io.containerd.server.v1.grpc/address": moot("the kubelet is told of crinoid's socket"),
            **{
                f"io.containerd.{name}/**": moot(_OWN)
                for name in (
                    "gc.v1.scheduler",
                    "internal.v1.opt",
                    "internal.v1.restart",
                    "metadata.v1.bolt",
                    "monitor.v1.cgroups",
                    "monitor.task.v1.cgroups",
                    "runtime.v1.linux",
                    "runtime.v2.shim",
                    "service.v1.diff-service",
                    "differ.v1.erofs",
                    "differ.v1.walking",
                    "shim.v1.manager",
                    "sandbox.controller.v1.shim",
                    "server.v1.grpc",
                    "server.v1.grpc-tcp",
                    "server.v1.ttrpc",
                    "server.v1.debug",
                    "server.v1.metrics",
                    "mount-manager.v1.bolt",
                    "ttrpc.v1.otelttrpc",
                    "cri.v1.nri",
                    "image-proxy.v1.cri",
                )
            },
        }

    # Keys that are looked at together

    def _name(self, entry: Entry) -> str:
        name = entry.names[0]
        self.places.setdefault(name, str(entry.source.origin(entry.key[: entry.key.index(name) + 1])))
        return name

    def _note_type(self, entry: Entry) -> None:
        name = self._name(entry)
        self.types[name] = "" if entry.value == {} else entry.value
        entry.skip(f"see runtime {name}")

    def _note_program(self, entry: Entry) -> None:
        self.programs[self._name(entry)] = entry.value
        entry.skip(f"see runtime {entry.names[0]}")

    def _note_systemd(self, entry: Entry) -> None:
        self.systemd[self._name(entry)] = entry.value
        entry.carried("pods.cgroup_driver")

    def _note_network(self, name: str, convert: Any) -> Act:
        def act(entry: Entry) -> None:
            if entry.value == 0 and not self.networks.get(entry.names[0]):
                entry.skip("goes with cni_conf_dir")
                return
            self.networks.setdefault(self._name(entry), {})[name] = convert(entry.value)
            entry.carried(f"networks.{entry.names[0]}.options.{name}")

        return act

    def _note_snapshotter(self, entry: Entry) -> None:
        if entry.value not in _SNAPSHOTTERS:
            entry.lose(f"crinoid has no snapshotter {entry.value!r}: this runtime has the default one")
            return
        self.snapshotters[self._name(entry)] = entry.value
        entry.carried(f"runtimes.{entry.names[0]}.snapshotter")

    def _carry_snapshotter(self, entry: Entry) -> None:
        if entry.value in _SNAPSHOTTERS:
            entry.carry(("snapshotter", "driver"), _SNAPSHOTTERS[entry.value])
        else:
            entry.lose(f"crinoid has no snapshotter {entry.value!r}: containers' files are overlays")

    def _carry_cdi(self, entry: Entry) -> None:
        if self.draft.get("pods", "cdi_spec_dirs") == []:
            entry.skip("enable_cdi is false")
        else:
            entry.carry(("pods", "cdi_spec_dirs"), entry.value)

    def _carry_config_path(self, entry: Entry) -> None:
        """Copy every registry's directory; those in docker's form become a hosts.toml."""
        if not entry.value:
            entry.skip("empty: nothing is set")
            return
        count = 0
        for top in filter(None, entry.value.split(":")):
            for directory in sorted(path for path in self.node.at(top).glob("*") if path.is_dir()):
                count += carry_host_directory(self.node, Path(top, directory.name), self.draft)
        entry.carried(f"{count} directories below certs.d, copied")

    def _carry_mirrors(self, entry: Entry) -> None:
        name = entry.names[0]
        if self.has_config_path:
            entry.lose("config_path is set, and containerd takes no mirrors beside it")
            return
        registry = self.draft.hosts.registry(name)
        for url in entry.items:
            host = url.rpartition("://")[2].rstrip("/")
            if host == name and url.startswith("http://"):
                registry.server = url.rstrip("/")  # itself, by http
            elif host not in (name, "registry-1.docker.io" if name == "docker.io" else name):
                registry.mirrors.append(Mirror(url.rstrip("/")))
        entry.carried(f"certs.d/{'_default' if name == '*' else name}/hosts.toml")

    def _carry_skip_verify(self, entry: Entry) -> None:
        if entry.value:
            self.draft.hosts.add_tls(entry.names[0], skip_verify=True)
            entry.carried("certs.d: skip_verify")
        else:
            entry.skip("certificates are verified here, too")

    def _carry_ca(self, entry: Entry) -> None:
        self.draft.hosts.add_tls(entry.names[0], ca=(self._bytes(entry.value),))
        entry.carried("certs.d: ca")

    def _carry_client(self, entry: Entry) -> None:
        table = entry.source.table
        for part in entry.key[:-1]:
            table = table[str(part)]
        pair = (self._bytes(entry.value), self._bytes(table["key_file"]))
        self.draft.hosts.add_tls(entry.names[0], client=(pair,))
        entry.carried("certs.d: client")

    def _bytes(self, path: str) -> bytes:
        try:
            return self.node.at(path).read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error


def carry_host_directory(node: Node, directory: Path, draft: Draft) -> bool:
    """Take a registry's directory: a hosts.toml with the files beside it, or certificates in docker's form."""
    name, file = directory.name, Path(directory, "hosts.toml")
    if not node.at(file).is_file():
        found, faults = read_certificates(node, directory)
        for fault in faults:
            draft.tell(Outcome.LOST, str(directory), name, fault)
        for path in node.list(directory, "*.toml"):
            draft.tell(Outcome.LOST, str(path), name, "containerd does not read it either: its name must be hosts.toml")
        if found:
            draft.hosts.add_tls(name, **found)
        return bool(found)
    text = node.at(file).read_text(errors="replace")
    try:
        unread = unread_keys(text)
    except ValueError as error:
        draft.tell(Outcome.LOST, str(file), name, f"this is no TOML, and containerd could not read it either: {error}")
        return False
    source = node.read_toml(file)
    for key in unread:
        line = source.lines.get((key,), 1)
        draft.tell(Outcome.LOST, f"{file}:{line}", key, "crinoid does not know this key, and passes it over")
    draft.hosts.copies[name] = {path.name: node.at(path).read_bytes() for path in node.list(directory, "*")}
    draft.tell(Outcome.CARRIED, str(file), name, f"certs.d/{name}, copied")
    return True


def _config_path(table: Any) -> bool:
    plugins = table.get("plugins", {})
    cri = plugins.get(_CRI, {}).get("registry", {}), plugins.get("io.containerd.cri.v1.images", {}).get("registry", {})
    return any(isinstance(one, dict) and one.get("config_path") for one in cri)


def _carry_unset_seccomp(entry: Entry) -> None:
    known = {"": "unconfined", "unconfined": "unconfined", "runtime/default": "runtime-default"}
    if entry.value in known:
        entry.carry(("pods", "unset_seccomp"), known[entry.value])
    else:
        entry.lose("a profile of the node's can't be the one of containers that ask for none")


def _carry_drain(entry: Entry) -> None:
    if values.seconds(entry.value) == 0:
        entry.skip("output is read on for exec_drain_s of the runtime (docs/differences.md)")
    else:
        entry.lose(f"set options.deadlines.exec_drain_s = {values.seconds(entry.value)} of the runtimes that need it")


def _carry_ip_preference(entry: Entry) -> None:
    order = {"": "ipv4-first", "ipv4": "ipv4-first", "ipv6": "ipv6-first", "cni": "result"}
    entry.carry(("network", "options", "cni", "address_order"), order[entry.value])


def _carry_pause_image(entry: Entry) -> None:
    entry.carry(("pods", "pause_image"), entry.value)


def _pin(entry: Entry) -> None:
    entry.draft.set(("images", "pinned"), [*entry.draft.get("images", "pinned", default=[]), entry.value], entry.place)
    entry.carried("images.pinned")


def _log_in(entry: Entry) -> None:
    if any(entry.value.values()):
        entry.draft.log_in(entry.names[0], entry.value)
        entry.carried("registry/config.json, which root alone can read")
    else:
        entry.skip("empty: nothing is set")


def _lose_old_runtime(entry: Entry) -> None:
    if entry.value.get("runtime_type"):
        entry.lose("this way to name a runtime is deprecated: make it one of containerd.runtimes, and import again")
    else:
        entry.skip("empty: nothing is set")


def _carry_tracing(entry: Entry) -> None:
    scheme = "" if "://" in entry.value else "http://"
    entry.carry(("tracing", "endpoint"), f"{scheme}{entry.value}")


def _carry_metrics(entry: Entry) -> None:
    entry.carry(("metrics", "listen"), entry.value)
    entry.lose("its metrics were at /v1/metrics; crinoid's are at /metrics, and have other names")


def _carry_root(entry: Entry) -> None:
    entry.skip(f"its images: crinoid image adopt --from containerd --root {entry.value}")


def _judge_disabled(entry: Entry) -> None:
    if any("cri" in str(name).split(".") for name in entry.items):
        entry.lose("the CRI plugin is disabled: this containerd serves no kubelet")
    else:
        entry.skip(_OWN)


def _judge_processor(entry: Entry) -> None:
    program = entry.value.get("path", "")
    if any((Path(directory) / program).exists() for directory in ("/usr/local/bin", "/usr/bin", "/opt/containerd/bin")):
        entry.lose("crinoid hands layers to no program, and can't decrypt images")
    else:
        entry.skip(f"its program {program} is not on this node")


def _carry_gid(entry: Entry) -> None:
    if entry.value:
        entry.carry(("server", "group"), str(entry.value))
    else:
        entry.skip("root, as here")


_TOP: dict[str, Act] = {
    "version": moot("2, 3 and 4 are read"),
    "root": _carry_root,
    "state": moot(_OWN),
    "temp": moot(_OWN),
    "plugin_dir": nonempty(lost("plugins of containerd can't be loaded")),
    "oom_score": moot("the unit says it: OOMScoreAdjust"),
    "imports": moot("read, too; merged key by key, as containerd 2 does, where containerd 1 replaces whole plugins"),
    "disabled_plugins": _judge_disabled,
    "required_plugins": moot(_OWN),
    "cgroup/path": nonempty(lost("the unit says where the daemon runs: Slice")),
    "debug/level": nonempty(to("log", "level", convert=values.log_level)),
    "debug/format": lambda entry: (
        entry.carry(("log", "format"), "json") if entry.value == "json" else entry.skip("plain lines are the default")
    ),
    "debug/**": moot(_API),
    "grpc/address": moot("the kubelet is told of crinoid's socket: docs/moving.md"),
    "grpc/gid": _carry_gid,
    "grpc/uid": lost("crinoid's socket belongs to root", 0),
    "grpc/max_recv_message_size": lost("see server.max_message_bytes", 0, 16777216),
    "grpc/max_send_message_size": moot("answers may have 64 MiB"),
    "grpc/*": nonempty(lost("crinoid serves on a unix socket alone")),
    "ttrpc/**": moot(_API),
    "metrics/address": nonempty(_carry_metrics),
    "metrics/grpc_histogram": moot("crinoid always measures its calls"),
    "timeouts/**": moot("deadlines of shims, which crinoid has not"),
    "proxy_plugins": moot("empty: nothing is set"),
    "proxy_plugins/*/**": lost("a plugin that is another process; crinoid has none such"),
    "stream_processors": moot("empty: nothing is set"),
    "stream_processors/*/**": _judge_processor,
    "plugins": moot("empty: nothing is set"),
}
