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


async def test_a_source_that_goes_away_midway_leaves_nothing_and_the_next_try_completes(
    node: Node, containerd: Path, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk that is unmounted, or a containerd that is purged."""
    aside = containerd.with_name("aside")
    place: Callable[..., str] = ContentStore.place

    def lose_the_source(*arguments: object) -> str:
        how = place(*arguments)
        if not aside.exists():
            containerd.rename(aside)
        return how

    monkeypatch.setattr(ContentStore, "place", lose_the_source)
    count, lost = await adopt(node, containerd)
    assert (count, isinstance(lost, Adopted)) == (1, True)
    assert "containerd's content store does not have blob" in lost.fault  # type: ignore[union-attr]
    assert (node.content.list(), node.content.list_partial(), node.service.list()) == ((), (), [])
    aside.rename(containerd)
    monkeypatch.undo()
    _, adopted = await adopt(node, containerd)
    assert (adopted.image_id, adopted.fault) == (image.config.digest, "")  # type: ignore[union-attr]
