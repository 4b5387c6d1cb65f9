"""What no container can be adjusted to is found, and named, before anything is made of it."""

from types import MappingProxyType
from typing import Any

import pytest

from crinoid.core.api.adjustments import check_adjustment
from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.hooks.extension import ContainerAdjustment
from crinoid.core.api.values.adjustment import OciDevice, OciDeviceRule, OciHook, OciMount, Rlimit
from crinoid.core.api.values.container import DeviceMapping, VolumeMount
from crinoid.core.api.values.pod import LinuxResources


def test_what_makes_sense() -> None:
    check_adjustment(ContainerAdjustment())
    check_adjustment(
        ContainerAdjustment(
            envs=(("A", ""), ("b.c", "1=2")),
            mounts=(VolumeMount(container_path="/a", host_path="/x"),),
            devices=(DeviceMapping("/dev/x", "/dev/null", "r"),),
            annotations=(("a", ""),),
            removed_envs=("A",),
            removed_mounts=("/proc/",),
            removed_devices=("dev/x",),
            removed_annotations=("a",),
            oci_mounts=(OciMount("relative"),),
            oci_devices=(OciDevice(path="/dev/p", type="p"),),
            oci_device_rules=(OciDeviceRule(allow=False, access="w"),),
            oci_hooks=(OciHook("poststop", "/x"),),
            args=("x", ""),
            rlimits=(Rlimit("RLIMIT_NOFILE", 0, (1 << 64) - 1),),
            oom_score_adj=5000,
            cgroup="/a/b",
            spec_patch=MappingProxyType({"linux": MappingProxyType({"x": None})}),
        )
    )
    check_adjustment(ContainerAdjustment(cgroup="a.slice:b:c"))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("envs", (("", "x"),), "'' is no name"),
        ("envs", (("A=B", "x"),), "'A=B' is no name"),
        ("envs", (("A", "x\0"),), "the value of A has a NUL"),
        ("annotations", (("", "x"),), "'' is no key"),
        ("removed_envs", ("",), "'' is no name"),
        ("removed_annotations", ("",), "'' is no name"),
        ("mounts", (VolumeMount(container_path="/", host_path="/x"),), "'/' is no path below /"),
        ("mounts", (VolumeMount(container_path="/x", image="img"),), "/x is of an image"),
        ("devices", (DeviceMapping("/..", "/dev/null"),), "'/..' is no path below /"),
        ("devices", (DeviceMapping("/dev/x", "/dev/null", "rx"),), "permissions 'rx'"),
        ("removed_mounts", ("",), "'' is no path"),
        ("removed_devices", ("//",), "'//' is no path"),
        ("oci_mounts", (OciMount("/a/.."),), "'/a/..' is no path"),
        ("oci_devices", (OciDevice(path="/dev/x", type="z"),), "/dev/x is of type 'z'"),
        ("oci_devices", (OciDevice(path="/dev/x", type="c", minor=-1),), "numbers 0:-1"),
        ("oci_devices", (OciDevice(path="", type="c"),), "'' is no path"),
        ("oci_device_rules", (OciDeviceRule(allow=True, type="p"),), "type 'p'"),
        ("oci_device_rules", (OciDeviceRule(allow=True, access=""),), "permissions ''"),
        ("oci_hooks", (OciHook("later", "/x"),), "stage 'later' of /x is none of createContainer"),
        ("oci_hooks", (OciHook("poststop", "x"),), "'x' is no absolute path"),
        ("oci_hooks", (OciHook("poststop", "/x", timeout_s=-1),), "time limit of /x is -1 s"),
        ("args", ("",), "the program has no name"),
        ("rlimits", (Rlimit("NOFILE", 1, 1),), "'NOFILE' is none of RLIMIT_AS"),
        ("rlimits", (Rlimit("RLIMIT_CPU", 2, 1),), "RLIMIT_CPU: soft 2 and hard 1"),
        ("cgroup", "/a/../../b", "without '..'"),
        ("cgroup", "relative", "absolute path"),
        ("spec_patch", {"x": {1, 2}}, "no JSON"),
        ("spec_patch", {"linux": {"cgroupsPath": "/x"}}, "linux.cgroupsPath is what the field cgroup is for"),
        ("spec_patch", {"linux": None}, "linux is no object"),
        ("spec_patch", {"process": {"args": "x"}}, "args is no list"),
        ("spec_patch", {"mounts": None}, "mounts is no list"),
        ("spec_patch", {"x": "x" * (5 << 20)}, "more than 4194304"),
        ("cgroup", "/", "below the root"),
        ("cgroup", "/a/" + "b" * 256, "below the root"),
        ("cgroup", "//", "below the root"),
        ("envs", (("A", "x" * (1 << 17)),), "one of 131074 bytes"),
        ("envs", (("A", 7),), "wrong type"),
        ("args", ("x\0",), "has a NUL"),
        ("args", ("x" * 1000,) * 3000, "more than the 2097152"),
        ("annotations", (("a", "x" * (5 << 20)),), "more than 4194304"),
        ("mounts", (VolumeMount(container_path="/x", host_path="x"),), "'x' is no absolute path"),
        ("mounts", (VolumeMount(container_path="/x", host_path="/x"),) * 5000, "there are 5000, more than 4096"),
        ("oci_mounts", (OciMount("/x", source="x\0"),), "has a NUL"),
        ("oci_mounts", (OciMount("/x", options=("x" * 5000,)),), "the options of /x"),
        ("oci_devices", (OciDevice(path="/dev/x", type="c", uid=-1),), "the owner -1:None"),
        ("resources", LinuxResources(cpuset_cpus="0," * 50_000), "cpuset_cpus is 100000 characters"),
        ("resources", LinuxResources(cpu_quota=-2), "cpu_quota is -2"),
        ("resources", LinuxResources(unified={"../x": "1"}), "unified has '../x'"),
        ("cdi_devices", ("",), "'' is no word"),
    ],
)
def test_what_makes_none_is_named_by_its_field(field: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_adjustment(ContainerAdjustment(**{field: value}))
    assert str(caught.value).startswith(f"{field}: ")
    assert words in str(caught.value)
