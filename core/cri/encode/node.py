"""Version, health and configuration of the node."""

from collections.abc import Mapping

from crinoid.core.cri.encode.pods import encode_info
from crinoid.core.cri.encode.texts import clean
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.queries import Condition, HandlerReport, NodeStatus

RUNTIME_NAME = "crinoid"
KUBELET_API_VERSION = "0.1.0"
RUNTIME_API_VERSION = "v1"

_CGROUP_DRIVERS: Mapping[str, api_pb2.CgroupDriver] = {
    "systemd": api_pb2.SYSTEMD,
    "cgroupfs": api_pb2.CGROUPFS,
}


def encode_version(version: str) -> api_pb2.VersionResponse:
    """The answer to Version; its first field has never been any other than this."""
    return api_pb2.VersionResponse(
        version=KUBELET_API_VERSION,
        runtime_name=RUNTIME_NAME,
        runtime_version=version,
        runtime_api_version=RUNTIME_API_VERSION,
    )


def encode_status(status: NodeStatus, verbose: bool) -> api_pb2.StatusResponse:
    """The answer to Status. The features are those of crinoid itself, whatever the runtime handlers can do."""
    return api_pb2.StatusResponse(
        status=api_pb2.RuntimeStatus(conditions=[_encode_condition(one) for one in status.conditions]),
        info=encode_info(status.info) if verbose else {},
        runtime_handlers=[_encode_handler(one) for one in status.handlers],
        features=api_pb2.RuntimeFeatures(
            supplemental_groups_policy=True, user_namespaces_host_network=True, mount_options=True
        ),
    )


def encode_runtime_config(cgroup_driver: str) -> api_pb2.RuntimeConfigResponse:
    """The answer to RuntimeConfig."""
    linux = api_pb2.LinuxRuntimeConfiguration(cgroup_driver=_CGROUP_DRIVERS[cgroup_driver])
    return api_pb2.RuntimeConfigResponse(linux=linux)


def _encode_condition(condition: Condition) -> api_pb2.RuntimeCondition:
    return api_pb2.RuntimeCondition(
        type=condition.type, status=condition.ready, reason=condition.reason, message=clean(condition.message)
    )


def _encode_handler(handler: HandlerReport) -> api_pb2.RuntimeHandler:
    features = api_pb2.RuntimeHandlerFeatures(
        recursive_read_only_mounts=handler.recursive_read_only_mounts, user_namespaces=handler.user_namespaces
    )
    return api_pb2.RuntimeHandler(name=handler.name, features=features)
