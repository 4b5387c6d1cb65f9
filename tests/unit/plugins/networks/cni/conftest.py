"""A node whose plugins are scripts, and a pod."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PodMetadata
from support.cni import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def make_request(tmp_path: Path) -> Callable[..., NetworkRequest]:
    def make(pod_id: str = "pod1", **values: Any) -> NetworkRequest:
        metadata = PodMetadata("web", "shop", "uid-1")
        return NetworkRequest(pod_id=pod_id, **{"metadata": metadata, "netns": tmp_path / "netns", **values})

    return make


@pytest.fixture
def request_a(make_request: Callable[..., NetworkRequest]) -> NetworkRequest:
    return make_request()
