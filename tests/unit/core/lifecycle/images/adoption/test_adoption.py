"""Adoption from a store that the test wrote."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from crinoid.core.lifecycle.images.adoption.adoption import Adopted, Adoptions
from crinoid.core.state.content import ContentStore
from support.former import write_containerd
from support.images import BuiltImage

from ..conftest import NAME, Node, until  # noqa: TID252


@pytest.fixture
def containerd(tmp_path: Path, image: BuiltImage) -> Path:
    root = tmp_path / "containerd"
    write_containerd(root, {NAME: image})
    return root


async def adopt(node: Node, containerd: Path) -> list[int | Adopted]:
    return [
        step async for step in Adoptions(node.service, node.content).adopt("containerd", str(containerd), "", (), False)
    ]


async def test_an_image_is_adopted(node: Node, containerd: Path, image: BuiltImage) -> None:
    count, adopted = await adopt(node, containerd)
    assert count == 1
    assert isinstance(adopted, Adopted)
    assert (adopted.name, adopted.image_id, adopted.fault) == (NAME, image.config.digest, "")


async def test_a_client_that_goes_leaves_no_blob(node: Node, containerd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    place: Callable[..., str] = ContentStore.place

    def place_slowly(*arguments: object) -> str:
        if len(node.content.list()) == 2:
            begun.set()
            assert go.wait(60)
        return place(*arguments)

    monkeypatch.setattr(ContentStore, "place", place_slowly)
    adopting = asyncio.create_task(adopt(node, containerd))
    await until(begun.is_set)
    adopting.cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait({adopting})
    assert node.content.list() == ()
    assert node.service.list() == []
