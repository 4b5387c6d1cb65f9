"""Pods and containers as extensions see them, made from records.

Every call of an extension's hook gets its view here. A container's OCI specification lies in its bundle, where the
runtime's driver wrote it; it is read only where there is an extension to be told.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from crinoid.core.api.hooks.extension import ContainerView, PodView
from crinoid.core.api.values.runtime import ContainerStatus, OciSpec
from crinoid.core.slots.binding import Slots
from crinoid.core.state.records import ContainerRecord, ContainerState, PodRecord, PodState
from crinoid.core.state.store import Store

_STATES: Mapping[ContainerState, ContainerStatus] = {
    ContainerState.CREATED: ContainerStatus.CREATED,
    ContainerState.RUNNING: ContainerStatus.RUNNING,
    ContainerState.EXITED: ContainerStatus.STOPPED,
    ContainerState.UNKNOWN: ContainerStatus.ABSENT,
}


def describe_owner(store: Store, owner: str) -> str:
    """Name an owner of the ledger for people: a pod, or a container with its pod; one without a record by its id."""
    base = owner.partition("/")[0]
    if (container := store.containers.get(base)) is not None:
        pod = store.pods.get(container.pod_id)
        name = f"container {container.config.metadata.name} of {_name_pod(pod) if pod else container.pod_id}"
    elif (pod := store.pods.get(base)) is not None:
        name = _name_pod(pod)
    else:
        return owner
    return f"{name} ({owner})"


def _name_pod(pod: PodRecord) -> str:
    return f"pod {pod.config.metadata.namespace}/{pod.config.metadata.name}"


def view_pod(record: PodRecord) -> PodView:
    """Return a pod as extensions see it."""
    return PodView(
        pod_id=record.id,
        config=record.config,
        runtime_handler=record.runtime_handler,
        addresses=record.attachment.addresses if record.attachment else (),
        namespaces=record.namespaces,
        cgroup_parent=record.cgroup_parent,
        resources=record.resources or record.config.resources,
        overhead=record.overhead or record.config.overhead,
        ready=record.state is PodState.READY,
    )


class ContainerViews:
    """Makes the views of containers that are on record."""

    def __init__(self, store: Store, slots: Slots) -> None:
        self._store = store
        self._slots = slots

    async def of(self, record: ContainerRecord) -> ContainerView:
        """Return a container as extensions see it, with its specification if anybody looks."""
        pod = self._store.pods.get(record.pod_id)
        assert pod is not None, "a container's record goes before its pod's"
        spec = await asyncio.to_thread(read_spec, record) if self._slots.extensions else {}
        return view_container(record, view_pod(pod), spec)


def view_container(record: ContainerRecord, pod: PodView, spec: OciSpec) -> ContainerView:
    """Return a container as extensions see it."""
    return ContainerView(
        container_id=record.id,
        pod=pod,
        config=record.config,
        image_id=record.image_id,
        image_reference=record.image_ref,
        state=_STATES[record.state],
        spec=spec,
        resources=record.resources,
        pid=record.pid,
        created_at_ns=record.created_at_ns,
        started_at_ns=record.started_at_ns,
        finished_at_ns=record.finished_at_ns,
        exit_code=record.exit_code,
        reason=record.reason,
        message=record.message,
    )


def read_spec(record: ContainerRecord) -> dict[str, Any]:
    """Return the OCI specification in force; empty when it can't be read. Blocks."""
    try:
        spec = json.loads((record.handle.bundle / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return spec if isinstance(spec, dict) else {}
