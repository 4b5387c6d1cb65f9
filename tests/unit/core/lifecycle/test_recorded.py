"""What the timeline has of pods and containers: each hook and stage, who changed what, and no secret."""

from pathlib import Path

import pytest

from crinoid.core.api.errors import DriverError
from crinoid.core.api.hooks.extension import ContainerAdjustment
from crinoid.core.api.values.adjustment import OciHook, Rlimit
from crinoid.core.api.values.container import ContainerConfig
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.lifecycle.containers.adjustment import name_changes
from crinoid.core.state import timeline_log
from crinoid.core.state.timelines import DIRECTORY, RecordedAct, read_acts
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_log, "LEAST_FREE_BYTES", 0)


def acts(node: FakeNode, *about: str) -> list[RecordedAct]:
    return list(read_acts(node.config.root / DIRECTORY, about).values())


def written(root: Path) -> str:
    return "".join(path.read_text() for path in sorted((root / DIRECTORY).iterdir()))


def container_with_secrets() -> ContainerConfig:
    given = a_container()
    return type(given)(
        metadata=given.metadata,
        image=given.image,
        security=given.security,
        envs=(("PASSWORD", SECRET),),
        annotations={"site/token": SECRET},
        labels={"site/label": SECRET},
        args=(f"--password={SECRET}",),
    )


async def test_a_pod_and_its_container_are_recorded_from_the_first_hook_to_the_last(fake_node: FakeNode) -> None:
    timelines = fake_node.now.timelines
    fake_node.extension.adjustment = ContainerAdjustment(envs=(("TOKEN", SECRET),), annotations=(("k", SECRET),))
    with timelines.recording("RunPodSandbox", ["ns/pod"]):
        pod = await fake_node.now.pods.run(a_pod(), "")
    with timelines.recording("CreateContainer", [pod]):
        container = await fake_node.now.containers.create(pod, container_with_secrets(), None)
    with timelines.recording("StartContainer", [container]):
        await fake_node.now.containers.start(container)
    with timelines.recording("RemovePodSandbox", [pod]):
        await fake_node.now.pods.remove(pod)

    found = [act for act in acts(fake_node, pod) if "(afterwards)" not in act.name]
    assert [act.name for act in found] == ["RunPodSandbox", "CreateContainer", "StartContainer", "RemovePodSandbox"]
    names = {act.name: [step.name for step in act.steps] for act in found}
    for act, hooks in {
        "RunPodSandbox": ["network", "attach"],
        "CreateContainer": ["runtime", "create"],
        "StartContainer": ["runtime", "start"],
        "RemovePodSandbox": ["network", "detach"],
    }.items():
        assert any(all(word in name for word in hooks) for name in names[act]), names[act]
    assert any("exit code" in note for act in acts(fake_node, container) for step in act.steps for note in step.notes)

    changed = [note for act in found for step in act.steps for note in step.notes if "changes" in note]
    assert changed == ['extension "watcher" changes env TOKEN, annotation k']
    assert SECRET not in written(fake_node.config.root)


async def test_the_record_says_who_changed_which_field(fake_node: FakeNode) -> None:
    fake_node.extension.adjustment = ContainerAdjustment(envs=(("TOKEN", SECRET),), oom_score_adj=100)
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    assert fake_node.now.containers.info(container)["adjustments"] == [
        {"by": 'extension "watcher"', "field": "env TOKEN"},
        {"by": 'extension "watcher"', "field": "oom_score_adj"},
    ]


async def test_a_hook_that_fails_is_told_with_its_reason_and_what_was_undone(fake_node: FakeNode) -> None:
    fake_node.network.fail("attach", DriverError("no luck"))
    with pytest.raises(DriverError), fake_node.now.timelines.recording("RunPodSandbox", ["ns/pod"]):
        await fake_node.now.pods.run(a_pod(), "")
    (act,) = acts(fake_node, "ns/pod")
    outcomes = {step.name.split()[-1]: step.outcome for step in act.steps}
    assert (outcomes["attach"], outcomes["detach"]) == ("DriverError", "ok")
    (told,) = [note for step in act.steps for note in step.notes if "no luck" in note]
    assert "attach" in told


async def test_a_start_tells_of_each_pod_what_it_did(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    await fake_node.now.containers.start(container)
    await fake_node.crash()
    await fake_node.start()
    assert [act.name for act in acts(fake_node, pod)][-1] == "start of crinoid"


def test_changes_are_named_without_their_values() -> None:
    change = ContainerAdjustment(
        author='extension "x"',
        envs=(("A", SECRET),),
        removed_envs=("B",),
        removed_annotations=("note",),
        args=(SECRET,),
        rlimits=(Rlimit("RLIMIT_NOFILE", 1, 1),),
        oci_hooks=(OciHook("prestart", "/bin/hook", (SECRET,), (SECRET,)),),
        resources=LinuxResources(memory_limit_bytes=1),
        spec_patch={"process": {"noNewPrivileges": True, "apparmorProfile": None}, "hostname": SECRET},
    )
    names = [name for _, name in name_changes(change)]
    assert names == [
        "env A",
        "env B removed",
        "annotation note removed",
        "hook prestart /bin/hook",
        "rlimit RLIMIT_NOFILE",
        "resources memory_limit_bytes",
        "args",
        "spec process.noNewPrivileges",
        "spec process.apparmorProfile removed",
        "spec hostname",
    ]
    assert SECRET not in str(names)
    spoken = ContainerAdjustment(envs=(("A", SECRET),), authors=(("NRI plugin 10-y", "Env A"),))
    assert name_changes(spoken) == (("NRI plugin 10-y", "Env A"),)
