"""Images that come from no configured source: a client's archive piece by piece, names given and taken, decisions."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from crinoid.core.api.errors import (
    CorruptContent,
    CrinoidError,
    InvalidArgument,
    NotFound,
    Refused,
    SignatureValidationFailed,
    Unavailable,
)
from crinoid.core.api.manifests import DescriptorDocument
from crinoid.core.api.values.image import ImageReference
from crinoid.core.lifecycle.images.loading import Loads, Want
from crinoid.core.state.records import ImageRecord
from support.images import OCI_MANIFEST, BuiltImage, read_blob

from .conftest import NAME, Node, until

OTHER = ImageReference.parse("other:2")
Steps = AsyncGenerator[str | Want | ImageRecord, None]


class Client:
    """Has an image's layout, and answers what a load wants; ``faults`` by digest in the place of a blob."""

    def __init__(self, node: Node, image: BuiltImage) -> None:
        self.loads = Loads(node.service)
        self.image = image
        self.faults: dict[str, str] = {}
        self.wanted: list[str] = []

    def begin(self, *names: str) -> Steps:
        manifest = self.image.manifest
        target = DescriptorDocument(media_type=OCI_MANIFEST, digest=manifest.digest, size=manifest.size)
        return self.loads.load([ImageReference.parse(name) for name in names], [target], None)

    async def run(self, *names: str) -> ImageRecord:
        """Load the image as ``ctl load`` does: a task for each blob that is wanted."""
        session, sending = "", []
        async with aclosing(self.begin(*names)) as steps:
            async for step in steps:
                if isinstance(step, str):
                    session = step
                elif isinstance(step, Want):
                    sending.append(asyncio.create_task(self.send(session, step)))
                else:
                    await asyncio.gather(*sending)
                    return step
        raise AssertionError("the load said nothing at its end")

    async def send(self, session: str, want: Want) -> None:
        self.wanted.append(want.blob.digest)
        if fault := self.faults.get(want.blob.digest):
            await self.loads.provide(session, want.number, b"", last=True, fault=fault)
            return
        content = read_blob(self.image.layout, want.blob.digest)[want.offset :]
        for start in range(0, len(content), 100):
            if not await self.loads.provide(session, want.number, content[start : start + 100], last=False, fault=""):
                return
        await self.loads.provide(session, want.number, b"", last=True, fault="")


@pytest.fixture
def client(node: Node, image: BuiltImage) -> Client:
    node.source.images.clear()
    return Client(node, image)


async def test_a_load_leaves_what_a_pull_does(node: Node, client: Client) -> None:
    record = await client.run(NAME, "other:2")
    assert (record.id, record.tags) == (client.image.config.digest, (NAME, "docker.io/library/other:2"))
    assert record.digests == (f"registry.test/app@{client.image.manifest.digest}",)
    node.assert_nothing_half_made()
    assert node.source.hooks_called == ()


async def test_what_is_there_is_not_asked_for(node: Node, client: Client) -> None:
    await client.run(NAME)
    before = len(client.wanted)
    await client.run("other:2")
    assert client.wanted[before:] == [client.image.manifest.digest]  # what the name means


async def test_without_a_name(node: Node, client: Client) -> None:
    record = await client.run()
    assert (record.tags, record.digests) == ((), ())
    assert node.service.find(record.id) is not None


async def test_what_the_client_says_is_wrong_fails_and_leaves_nothing(node: Node, client: Client) -> None:
    client.faults[client.image.layers[1].digest] = "it is gone"
    with pytest.raises(CorruptContent, match="the archive: it is gone"):
        await client.run(NAME)
    assert node.content.list() == ()
    assert node.content.list_partial() == ()
    assert node.service.list() == []


async def test_a_client_that_goes_leaves_nothing(node: Node, client: Client) -> None:
    steps = client.begin(NAME)
    session = await anext(steps)
    want = await anext(steps)
    assert isinstance(session, str)
    assert isinstance(want, Want)
    await client.send(session, want)
    await anext(steps)  # the configuration is wanted
    await steps.aclose()
    await until(lambda: not node.content.list() and not node.content.list_partial())
    assert node.service.list() == []
    with pytest.raises(NotFound, match="no such load"):
        await client.loads.provide(session, want.number, b"", last=True, fault="")


async def test_a_client_that_is_faster_than_the_disk_waits(node: Node, client: Client) -> None:
    steps = client.begin(NAME)
    session, want = await anext(steps), await anext(steps)
    assert isinstance(session, str)
    assert isinstance(want, Want)
    content = read_blob(client.image.layout, want.blob.digest)
    pieces = [content[start : start + 1] for start in range(len(content))]
    sent = 0
    for piece in pieces:
        assert await client.loads.provide(session, want.number, piece, last=False, fault="")
        sent += 1
    assert sent == len(content)
    too_much = asyncio.create_task(client.loads.provide(session, want.number, b"more", last=False, fault=""))
    assert isinstance(await anext(steps), Want)  # the next blob: of that one all has come
    assert await too_much is False
    await steps.aclose()


class TestNames:
    async def test_a_tag_moves_and_stays_over_a_restart(self, node: Node, client: Client) -> None:
        record = await client.run(NAME)
        await node.service.tag(record.id, "other:2")
        await node.restart()
        found = node.service.find("other:2")
        assert found is not None
        assert found.tags == (NAME, str(OTHER))

    async def test_untag_takes_exactly_that_name(self, node: Node, client: Client) -> None:
        record = await client.run(NAME, "other:2")
        assert (await node.service.untag("other:2")).tags == (NAME,)
        with pytest.raises(NotFound, match="no image is called"):
            await node.service.untag(record.id[7:20])
        assert (await node.service.untag(NAME)).digests == record.digests

    @pytest.mark.parametrize("name", ["a@sha256:" + "0" * 64, "UPPER", ""])
    async def test_no_name(self, node: Node, client: Client, name: str) -> None:
        await client.run(NAME)
        with pytest.raises(InvalidArgument):
            await node.service.tag(NAME, name)


class TestDecisions:
    """What extensions say of an image before anything of it is fetched."""

    async def test_words_are_kept_and_shown(self, node: Node, image: BuiltImage) -> None:
        node.extension.words = "allowed"
        await node.pull()
        record = node.service.find(NAME)
        assert record is not None
        assert record.decisions == (("observer", "allowed"),)
        assert node.service.info(record)["decisions"] == '{"observer": "allowed"}'
        await node.restart()
        again = node.service.find(NAME)
        assert again is not None
        assert again.decisions == record.decisions

    @pytest.mark.parametrize("refusal", [Refused("no"), SignatureValidationFailed("not signed")])
    async def test_a_refusal_fetches_nothing(self, node: Node, image: BuiltImage, refusal: CrinoidError) -> None:
        node.extension.fail("image_pulling", refusal)
        with pytest.raises(type(refusal)):
            await node.pull()
        assert "open_blob" not in node.source.hooks_called
        assert node.content.list() == ()
        assert node.service.list() == []

    async def test_loads_are_asked_about_too(self, node: Node, client: Client) -> None:
        node.extension.fail("image_pulling", Refused("no"))
        with pytest.raises(Refused):
            await client.run(NAME)
        assert client.wanted == [client.image.manifest.digest]


async def test_the_end_of_the_daemon_ends_a_load(node: Node, client: Client) -> None:
    steps = client.begin(NAME)
    await anext(steps)
    await anext(steps)
    ending = asyncio.create_task(anext(steps))
    await asyncio.sleep(0)
    await node.service.close()
    with pytest.raises(Unavailable):
        await ending
