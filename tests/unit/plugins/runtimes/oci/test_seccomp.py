"""From the profile that is asked for to the filter in the spec."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import ConfigurationError, InvalidArgument, RuntimeRefused
from crinoid.core.api.values.pod import ProfileType, SecurityProfile
from crinoid.plugins.runtimes.oci.seccomp import SeccompFilters, require_execve

DEFAULT = SecurityProfile(ProfileType.RUNTIME_DEFAULT)
NOTHING: frozenset[str] = frozenset()


def write(path: Path, **profile: Any) -> Path:
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", **profile}))
    return path


def local(path: Path, capabilities: frozenset[str] = NOTHING) -> Any:
    return SeccompFilters().resolve(SecurityProfile(ProfileType.LOCALHOST, str(path)), capabilities)


def allowed(capabilities: frozenset[str]) -> set[str]:
    made = SeccompFilters().resolve(DEFAULT, capabilities)
    assert made is not None
    return {
        name
        for rule in made["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
        for name in rule["names"]
    }


@pytest.mark.parametrize("profile", [None, SecurityProfile(ProfileType.UNCONFINED)])
def test_unconfined(profile: SecurityProfile | None) -> None:
    assert SeccompFilters().resolve(profile, NOTHING) is None


def test_the_default_allows_what_programs_need_and_no_more() -> None:
    names = allowed(NOTHING)
    assert {"read", "openat", "execve", "futex", "epoll_wait", "clock_nanosleep", "statx", "rseq"} <= names
    refused = "mount umount2 unshare setns bpf keyctl add_key request_key kexec_load init_module reboot swapon"
    refused += " io_uring_setup userfaultfd pivot_root open_by_handle_at settimeofday clone clone3 socket personality"
    assert names.isdisjoint(refused.split())


@pytest.mark.parametrize(
    ("capability", "name"),
    [("CAP_SYS_ADMIN", "mount"), ("CAP_SYS_ADMIN", "clone3"), ("CAP_SYS_TIME", "settimeofday"), ("CAP_BPF", "bpf")],
)
def test_a_capability_opens_what_it_is_for(capability: str, name: str) -> None:
    assert name in allowed(frozenset({capability})) - allowed(NOTHING)


def test_the_default_has_no_call_twice_among_those_always_allowed() -> None:
    made = SeccompFilters().resolve(DEFAULT, NOTHING)
    assert made is not None
    names = made["syscalls"][0]["names"]
    assert len(names) == len(set(names))


def test_clone_may_make_no_namespaces() -> None:
    made = SeccompFilters().resolve(DEFAULT, NOTHING)
    assert made is not None
    (rule,) = [rule for rule in made["syscalls"] if rule["names"] == ["clone"]]
    argument = {"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    assert rule["args"] == [argument | {"index": 1 if os.uname().machine == "s390x" else 0}]
    (newer,) = [rule for rule in made["syscalls"] if rule["names"] == ["clone3"]]
    assert (newer["action"], newer["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_what_a_runtime_has_to_be_told_of_newer_calls() -> None:
    """Where the binary does not see to it: ENOSYS is the default, and what is refused is named."""
    made = SeccompFilters(by_name=True).resolve(DEFAULT, NOTHING)
    assert made is not None
    assert made["defaultErrnoRet"] == 38
    refused = {name for rule in made["syscalls"] if rule.get("errnoRet") == 1 for name in rule["names"]}
    assert {"mount", "keyctl", "io_uring_setup", "bpf", "clone", "socket"} <= refused
    assert not refused & allowed(NOTHING)
    able = SeccompFilters(by_name=True).resolve(DEFAULT, frozenset({"CAP_SYS_ADMIN"}))
    assert able is not None
    refused = {name for rule in able["syscalls"] if rule.get("errnoRet") == 1 for name in rule["names"]}
    assert not refused & {"mount", "bpf", "clone"}


def test_filters_are_kept() -> None:
    filters = SeccompFilters()
    assert filters.resolve(DEFAULT, NOTHING) is filters.resolve(DEFAULT, frozenset())


def test_the_architectures_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.uname()
    for name, covered in {
        "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
        "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    }.items():
        fake = os.uname_result((machine.sysname, machine.nodename, machine.release, machine.version, name))
        monkeypatch.setattr(os, "uname", lambda fake=fake: fake)
        assert local(write(tmp_path / name))["architectures"] == covered
        mapped = [{"architecture": covered[0], "subArchitectures": ["SCMP_ARCH_X"]}]
        assert local(write(tmp_path / f"{name}-map", archMap=mapped))["architectures"] == (covered[0], "SCMP_ARCH_X")
    assert local(write(tmp_path / "own", architectures=["SCMP_ARCH_MIPS"]))["architectures"] == ("SCMP_ARCH_MIPS",)


@pytest.mark.parametrize(
    ("condition", "capabilities", "applies"),
    [
        ({}, set(), True),
        ({"includes": {"caps": ["CAP_A"]}}, set(), False),
        ({"includes": {"caps": ["CAP_A"]}}, {"CAP_A", "CAP_B"}, True),
        ({"excludes": {"caps": ["CAP_A"]}}, {"CAP_A"}, False),
        ({"excludes": {"caps": ["CAP_A"]}}, {"CAP_B"}, True),
        ({"includes": {"arches": ["none-such"]}}, set(), False),
        ({"excludes": {"arches": ["none-such"]}}, set(), True),
        ({"includes": {"minKernel": "4.8"}}, set(), True),
        ({"includes": {"minKernel": "99.0"}}, set(), False),
        ({"excludes": {"minKernel": "4.8"}}, set(), False),
    ],
)
def test_conditions(tmp_path: Path, condition: dict[str, Any], capabilities: set[str], applies: bool) -> None:
    rule = {"names": ["x"], "action": "SCMP_ACT_ALLOW", **condition}
    made = local(write(tmp_path / "p", syscalls=[rule]), frozenset(capabilities))
    assert made.get("syscalls", []) == ([{"names": ["x"], "action": "SCMP_ACT_ALLOW"}] if applies else [])


def test_the_oci_form_goes_through_whole(tmp_path: Path) -> None:
    profile = {
        "defaultErrnoRet": 38,
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {
                "names": ["a", "b"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 5,
                "args": [{"index": 1, "value": 2**63, "valueTwo": 3, "op": "SCMP_CMP_EQ"}],
            }
        ],
    }
    made = json.loads(json.dumps(local(write(tmp_path / "p", **profile))))
    assert {name: made[name] for name in profile} == profile


def test_an_old_rule_with_one_name(tmp_path: Path) -> None:
    made = local(write(tmp_path / "p", syscalls=[{"name": "a", "action": "SCMP_ACT_ALLOW", "args": []}]))
    assert made["syscalls"] == [{"names": ["a"], "action": "SCMP_ACT_ALLOW"}]


def test_a_profile_that_was_changed_is_read_again(tmp_path: Path) -> None:
    profile = write(tmp_path / "p", defaultErrnoRet=1)
    assert local(profile)["defaultErrnoRet"] == 1
    write(profile, defaultErrnoRet=22)
    assert local(profile)["defaultErrnoRet"] == 22


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{}", '{"defaultAction": 5}', '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{}]}']
)
def test_a_bad_profile_names_itself(tmp_path: Path, content: str) -> None:
    profile = tmp_path / "bad.json"
    profile.write_text(content)
    with pytest.raises(InvalidArgument, match=r"bad\.json is not valid"):
        local(profile)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"none\.json can't be read: No such file"):
        local(tmp_path / "none.json")
    with pytest.raises(ConfigurationError, match=r"none\.json"):
        SeccompFilters(tmp_path / "none.json").check()


def test_the_sites_profile_is_the_default(tmp_path: Path) -> None:
    filters = SeccompFilters(write(tmp_path / "p", defaultErrnoRet=7))
    filters.check()
    made = filters.resolve(DEFAULT, NOTHING)
    assert made is not None
    assert made["defaultErrnoRet"] == 7


def test_a_profile_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.truncate(write(tmp_path / "large"), 5 << 20)
    for name, reason in (
        ("fifo", "not a regular file"),
        ("directory", "not a regular file"),
        ("loop", "Too many levels"),
        ("large", "longer than 4194304 bytes"),
    ):
        with pytest.raises(InvalidArgument, match=f"{name} can't be read: {reason}"):
            local(tmp_path / name)


def test_a_kernel_version_of_any_length_is_one(tmp_path: Path) -> None:
    rule = {"names": ["read"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "9" * 5000 + ".\u00b2"}}
    assert local(write(tmp_path / "a.json", syscalls=[rule]))["syscalls"]


ALLOW, DENY = "SCMP_ACT_ALLOW", "SCMP_ACT_KILL"


def rule(action: str, *names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **more}


@pytest.mark.parametrize(
    ("default", "rules"),
    [
        (DENY, []),
        ("SCMP_ACT_ERRNO", [rule(ALLOW, "read", "write")]),
        ("SCMP_ACT_TRACE", []),
        (ALLOW, [rule(DENY, "execve", "execveat")]),
    ],
)
def test_with_what_allows_no_execve_nothing_can_be_started(default: str, rules: list[dict[str, Any]]) -> None:
    profile = SecurityProfile(ProfileType.LOCALHOST, "/p.json")
    with pytest.raises(RuntimeRefused, match=r"seccomp profile /p\.json allows no execve"):
        require_execve({"defaultAction": default, "syscalls": rules}, profile)


@pytest.mark.parametrize(
    ("default", "rules"),
    [
        (ALLOW, []),
        ("SCMP_ACT_LOG", []),
        (DENY, [rule(ALLOW, "execve")]),
        (DENY, [rule("SCMP_ACT_LOG", "execveat")]),
        (ALLOW, [rule(DENY, "execveat")]),
        (ALLOW, [rule(DENY, "execve", "execveat", args=[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}])]),
    ],
)
def test_with_an_execve_somewhere_the_runtime_is_to_judge(default: str, rules: list[dict[str, Any]]) -> None:
    require_execve({"defaultAction": default, "syscalls": rules}, None)


def test_the_default_lets_execute() -> None:
    made = SeccompFilters().resolve(DEFAULT, NOTHING)
    assert made is not None
    require_execve(made, DEFAULT)
