"""Answers from kept bytes are those that would be encoded anew, after every kind of change of every kind of record."""

import dataclasses
import json
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from crinoid.core.cri.encode.containers import encode_container, encode_container_status
from crinoid.core.cri.encode.images import encode_image
from crinoid.core.cri.encode.pods import encode_pod, encode_pod_status
from crinoid.core.cri.image_service import ImageService as ImageRpcs
from crinoid.core.cri.lists import EncodedList
from crinoid.core.cri.runtime_service import RuntimeService
from crinoid.core.cri.statuses import EncodedStatuses
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.containers.containers import ContainerService
from crinoid.core.lifecycle.pods.pods import PodService
from crinoid.core.state.records import ContainerState, PodState
from crinoid.core.state.store import Store
from unit.core.cri.conftest import make_container, make_image, make_pod

PODS, CONTAINERS, IMAGES = ("pod1", "pod2"), ("c1", "c2", "d1"), ("sha256:abc", "sha256:def")
LATER = {ContainerState.CREATED: ContainerState.RUNNING, ContainerState.RUNNING: ContainerState.EXITED}
NEWEST_FIRST: Any = {"key": lambda record: record.created_at_ns, "reverse": True}


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The answer of a method that waits for nothing."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    return stopped.value.value


def pod_service(store: Store) -> PodService:
    """The real one, for what needs nothing but records."""
    service = PodService.__new__(PodService)
    service._store = store
    return service


def container_service(store: Store) -> ContainerService:
    service = ContainerService.__new__(ContainerService)
    service._store = store
    return service


class Images:
    """The images' service, as far as lists and statuses ask it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def version(self) -> int:
        return self._store.images.version

    def list(self) -> list[Any]:
        return list(self._store.images)

    def get(self, image_id: str) -> Any:
        return self._store.images.get(image_id)

    def user_of(self, record: Any) -> tuple[int, str]:
        return 7, ""


class KeptBytes(RuleBasedStateMachine):
    """Changes records at random; the same two objects answer throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.directory.name) / "state.db")
        self.images = Images(self.store)
        services: Any = SimpleNamespace(
            pods=pod_service(self.store), containers=container_service(self.store), images=self.images
        )
        for name in ("stats", "node", "events", "metrics", "streams", "checkpoints", "restorer"):
            setattr(services, name, None)
        self.runtime = RuntimeService(services)
        self.image = ImageRpcs(services)
        self.clock = 0

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    @rule(key=st.sampled_from(PODS), labels=st.sampled_from([{}, {"app": "web"}, {"app": "db"}]))
    def make_pod(self, key: str, labels: dict[str, str]) -> None:
        pod = make_pod(key, self.tick())
        if key not in self.store.pods:
            self.store.pods.put(dataclasses.replace(pod, config=dataclasses.replace(pod.config, labels=labels)))

    @rule(key=st.sampled_from(PODS))
    def stop_pod(self, key: str) -> None:
        if (pod := self.store.pods.get(key)) is not None:
            self.store.pods.put(dataclasses.replace(pod, state=PodState.NOT_READY, attachment=None))

    @rule(key=st.sampled_from(PODS))
    def remove_pod(self, key: str) -> None:
        self.store.pods.drop(key)

    @rule(key=st.sampled_from(CONTAINERS), pod=st.sampled_from(PODS), image=st.sampled_from(IMAGES))
    def make_container(self, key: str, pod: str, image: str) -> None:
        if key not in self.store.containers:
            made = make_container(key, self.tick(), pod_id=pod, image_id=image, state=ContainerState.CREATED)
            self.store.containers.put(made)

    @rule(key=st.sampled_from(CONTAINERS))
    def advance_container(self, key: str) -> None:
        container = self.store.containers.get(key)
        if container is not None and container.state in LATER:
            later = dataclasses.replace(container, state=LATER[container.state], finished_at_ns=self.tick())
            self.store.containers.put(later)

    @rule(key=st.sampled_from(CONTAINERS))
    def remove_container(self, key: str) -> None:
        self.store.containers.drop(key)

    @rule(key=st.sampled_from(IMAGES), tag=st.sampled_from(["docker.io/library/nginx:latest", "registry/other:2"]))
    def name_image(self, key: str, tag: str) -> None:
        self.store.images.put(make_image(id=key, tags=(tag,)))

    @rule(key=st.sampled_from(IMAGES))
    def remove_image(self, key: str) -> None:
        self.store.images.drop(key)

    @invariant()
    def lists_are_true(self) -> None:
        pods = sorted(self.store.pods, **NEWEST_FIRST)
        containers = sorted(self.store.containers, **NEWEST_FIRST)
        self.hold_pods({}, pods)
        self.hold_pods({"state": {"state": "SANDBOX_READY"}}, [one for one in pods if one.state is PodState.READY])
        self.hold_pods({"label_selector": {"app": "web"}}, [p for p in pods if p.config.labels.get("app") == "web"])
        self.hold_containers({}, containers)
        running = [one for one in containers if one.state is ContainerState.RUNNING]
        self.hold_containers({"state": {"state": "CONTAINER_RUNNING"}}, running)
        self.hold_containers({"pod_sandbox_id": "pod1"}, [one for one in containers if one.pod_id == "pod1"])
        answer = now(self.image.list_images(api_pb2.ListImagesRequest()))
        expected = [encode_image(one, (7, "")) for one in self.store.images]
        assert list(api_pb2.ListImagesResponse.FromString(answer).images) == expected

    @invariant()
    def statuses_are_true(self) -> None:
        for container in self.store.containers:
            request = api_pb2.ContainerStatusRequest(container_id=container.id)
            status = api_pb2.ContainerStatusResponse.FromString(now(self.runtime.container_status(request))).status
            assert status == encode_container_status(container, self.store.images.get(container.image_id))
        for pod in self.store.pods:
            given = now(self.runtime.pod_sandbox_status(api_pb2.PodSandboxStatusRequest(pod_sandbox_id=pod.id)))
            answer = api_pb2.PodSandboxStatusResponse.FromString(given)
            assert answer.status == encode_pod_status(pod)
            members = sorted((one for one in self.store.containers if one.pod_id == pod.id), **NEWEST_FIRST)
            statuses = [encode_container_status(one, self.store.images.get(one.image_id)) for one in members]
            assert list(answer.containers_statuses) == statuses

    def hold_pods(self, query: dict[str, Any], expected: list[Any]) -> None:
        request = api_pb2.ListPodSandboxRequest(filter=query)
        answer = api_pb2.ListPodSandboxResponse.FromString(now(self.runtime.list_pod_sandbox(request)))
        assert list(answer.items) == [encode_pod(one) for one in expected]

    def hold_containers(self, query: dict[str, Any], expected: list[Any]) -> None:
        request = api_pb2.ListContainersRequest(filter=query)
        answer = api_pb2.ListContainersResponse.FromString(now(self.runtime.list_containers(request)))
        assert list(answer.containers) == [encode_container(one) for one in expected]


KeptBytes.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestKeptBytes = KeptBytes.TestCase


def test_an_answer_is_made_once_a_version() -> None:
    kept: EncodedList[Any] = EncodedList(encode_pod)
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"%d" % len(made))
        return made[-1]

    assert [kept.answer(b"request", version, make) for version in (1, 1, 2, 2)] == [b"0", b"0", b"1", b"1"]
    assert kept.answer(b"other", 2, make) == b"2"


def test_answers_to_few_and_short_requests_are_kept() -> None:
    kept: EncodedList[Any] = EncodedList(encode_pod)
    made: list[None] = []

    def make() -> bytes:
        made.append(None)
        return b""

    for _ in range(2):
        kept.answer(b"long" * 1000, 1, make)
    for number in range(100):
        kept.answer(b"%d" % number, 1, make)
    kept.answer(b"99", 1, make)
    assert len(made) == 102
    assert len(kept._answers) <= 8


def test_a_failure_is_not_kept() -> None:
    kept: EncodedList[Any] = EncodedList(encode_pod)

    def refuse() -> bytes:
        raise ValueError

    with pytest.raises(ValueError):
        kept.answer(b"", 1, refuse)
    assert kept.answer(b"", 1, lambda: b"fine") == b"fine"


def test_statuses_of_many_are_not_kept_for_ever() -> None:
    kept = EncodedStatuses(encode_pod_status)
    for number in range(1500):
        kept.encode(make_pod(f"pod{number}"))
    assert len(kept._kept) <= 1024


def test_a_verbose_status_has_its_info_and_the_plain_one_has_none(services: Any) -> None:
    runtime = RuntimeService(services)
    for verbose in (True, False, True):
        given = now(runtime.container_status(api_pb2.ContainerStatusRequest(container_id="c1", verbose=verbose)))
        answer = api_pb2.ContainerStatusResponse.FromString(given)
        assert answer.status.id == "c1"
        assert [json.loads(text)["pid"] for text in answer.info.values()] == ([7] if verbose else [])
