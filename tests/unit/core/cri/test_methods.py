"""The service objects have a method for each RPC that is served, with the messages that the API gives it."""

import typing
from collections.abc import AsyncGenerator

import pytest

from crinoid.core.cri.calls import method_name
from crinoid.core.cri.image_service import ImageService
from crinoid.core.cri.runtime_service import RuntimeService
from crinoid.core.cri.wire import api_pb2

IMPLEMENTATIONS = {"RuntimeService": RuntimeService, "ImageService": ImageService}


@pytest.mark.parametrize("service", IMPLEMENTATIONS)
def test_methods_are_the_rpcs_that_are_served(service: str) -> None:
    rpcs = api_pb2.DESCRIPTOR.services_by_name[service].methods
    wanted = {method_name(rpc.name) for rpc in rpcs}
    assert {name for name in vars(IMPLEMENTATIONS[service]) if not name.startswith("_")} == wanted


@pytest.mark.parametrize("service", IMPLEMENTATIONS)
def test_each_takes_and_gives_its_own_messages(service: str) -> None:
    for rpc in api_pb2.DESCRIPTOR.services_by_name[service].methods:
        method = getattr(IMPLEMENTATIONS[service], method_name(rpc.name))
        hints = typing.get_type_hints(method)
        assert hints["request"].DESCRIPTOR.name == rpc.input_type.name
        answer = hints["return"]
        assert (typing.get_origin(answer) is AsyncGenerator) == rpc.server_streaming
        answer = typing.get_args(answer)[0] if rpc.server_streaming else answer
        assert answer is bytes or answer.DESCRIPTOR.name == rpc.output_type.name


def test_names_in_snake_case() -> None:
    assert method_name("RunPodSandbox") == "run_pod_sandbox"
    assert method_name("ImageFsInfo") == "image_fs_info"
