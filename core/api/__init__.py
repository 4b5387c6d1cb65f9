"""All of the kernel that a plugin may import: hooks, values, errors, configuration base, Linux calls, test kits.

Nothing here knows gRPC, stevedore or the daemon's state, so a driver can be written, type-checked and tested against
this package alone. ``API_VERSION`` is the version of that promise: a driver names the one it was written for in its
``api_version``. The kernel refuses another major version at start, and a newer minor one, as what the driver relies on
may not be here. What is removed warns for two minor versions first.

The promise covers what docs/api-surface.txt lists. Modules in ``UNPROMISED`` may be used, as our own drivers do,
and may change in any release. It has, too, the parts of our own drivers that others build on: an OCI runtime's hooks
with their monitor, and a snapshotter's storage.
"""

API_VERSION = "1.0"

UNPROMISED = (
    "bounds",
    "buffers",
    "exhaustion",
    "layouts.archives",
    "layouts.directories",
    "layouts.layout_index",
    "linux.bulkheads",
    "linux.cgroup_warmup",
    "linux.cgroupdetails",
    "linux.inotify",
    "linux.libc",
    "linux.links",
    "linux.loop",
    "linux.lsm",
    "linux.memory",
    "linux.oom",
    "linux.probes",
    "linux.procfs",
    "linux.verity",
    "testing.fakes",
    "testing.noops",
    "testing.written_layers",
)
