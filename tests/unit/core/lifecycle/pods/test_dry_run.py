"""A dry run says what would be done for a pod, by the same parts, and does nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.hooks.extension import ContainerAdjustment
from crinoid.core.api.values.container import ContainerConfig, VolumeMount
from crinoid.core.api.values.pod import NamespaceMode
from crinoid.core.api.values.runtime import ContainerRequest
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod

ACTS = {"attach", "create", "start", "start_pod", "create_snapshot", "pod_starting", "pod_started", "prepare_layer"}


def a_container_with(*mounts: VolumeMount, image: str = "test/img:1") -> ContainerConfig:
    return dataclasses.replace(a_container(), mounts=mounts, image=image)


def acts_of(node: FakeNode) -> set[str]:
    return ACTS.intersection(hook for driver in node.drivers for hook in driver.hooks_called)


async def test_nothing_is_done_and_all_is_told(fake_node: FakeNode, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    container = a_container_with(VolumeMount(container_path="/data", host_path=str(absent)))
    plan = await fake_node.now.dry_run.explain(a_pod(pid=NamespaceMode.POD), "", [container], False)

    assert acts_of(fake_node) == set()
    assert fake_node.now.store.ledger.entries() == []
    assert fake_node.machine.is_empty
    assert list((fake_node.config.run / "pods").iterdir()) == []
    assert not absent.exists()

    json.dumps(plan)
    assert plan["pod"]["runtime"] == 'runtime "runc" (fake)'
    assert plan["network"] == {"pod": plan["pod"]["id"]}  # the fake network's plan
    steps = plan["steps"]
    assert [step.split()[1] for step in steps if step.startswith("make ")][:4] == [
        "directory",
        "namespaces",
        "mount",
        "cgroup",
    ]
    assert any(step.endswith("attach") for step in steps)
    assert any("init process" in step for step in steps)
    assert any(step.endswith("pod_starting") for step in steps)
    (one,) = plan["containers"]
    assert one["commands"] == [f"fake create {one['id']}"]
    assert {"/data", "/etc/hosts", "/proc"} <= {mount["destination"] for mount in one["spec"]["mounts"]}
    assert f"mount /data: {absent} is made, an empty directory" in one["notes"]
    assert any("not asked" in note for note in plan["notes"])


async def test_the_specification_is_that_of_a_real_container(fake_node: FakeNode) -> None:
    (planned,) = (await fake_node.now.dry_run.explain(a_pod(), "", [a_container()], False))["containers"]
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    made: Any
    (made,) = [call.arguments["request"] for call in fake_node.runtime.calls if call.hook == "create"]
    assert isinstance(made, ContainerRequest)

    def without_ids(spec: object, *ids: str) -> str:
        text = json.dumps(spec, sort_keys=True, default=str)
        for one in ids:
            text = text.replace(one, "ID")
        return text

    planned_pod = planned["spec"]["annotations"]["io.kubernetes.cri.sandbox-id"]
    assert without_ids(planned["spec"], planned["id"], planned_pod) == without_ids(made.spec, container, pod)


async def test_extensions_are_asked_only_where_that_is_wanted_and_told_that_it_came_to_nothing(
    fake_node: FakeNode,
) -> None:
    fake_node.extension.adjustment = ContainerAdjustment(envs=(("TOKEN", "x"),))
    plan = await fake_node.now.dry_run.explain(a_pod(), "", [a_container()], False)
    assert "adjust_container" not in fake_node.extension.hooks_called
    assert not any("TOKEN" in one for one in plan["containers"][0]["spec"]["process"]["env"])

    plan = await fake_node.now.dry_run.explain(a_pod(), "", [a_container()], True)
    assert [hook for hook in fake_node.extension.hooks_called if "container" in hook] == [
        "adjust_container",
        "container_removed",
    ]
    (one,) = plan["containers"]
    assert "TOKEN=x" in one["spec"]["process"]["env"]
    assert one["adjustments"] == [{"by": 'extension "watcher"', "field": "env TOKEN"}]


async def test_what_a_real_request_would_be_refused_for_is_refused(fake_node: FakeNode) -> None:
    with pytest.raises(InvalidArgument, match="no-such"):
        await fake_node.now.dry_run.explain(a_pod(), "no-such", [], False)
    with pytest.raises(InvalidArgument, match="name"):
        await fake_node.now.dry_run.explain(a_pod(name=""), "", [], False)


async def test_an_image_that_is_not_there_is_said_to_be(fake_node: FakeNode) -> None:
    container = a_container_with(image="test/absent:1")
    (one,) = (await fake_node.now.dry_run.explain(a_pod(), "", [container], True))["containers"]
    assert one["spec"]["process"]["args"] == ["(the image's own command)"]
    assert any("has to be pulled" in note for note in one["notes"])
