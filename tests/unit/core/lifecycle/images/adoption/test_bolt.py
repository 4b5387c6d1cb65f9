"""The reader of bolt databases, over databases that the test wrote, whole and damaged."""

import contextlib
from pathlib import Path

import pytest

from crinoid.core.api.errors import CorruptContent, NotFound, Unavailable
from crinoid.core.api.linux import files
from crinoid.core.lifecycle.images.adoption import bolt
from crinoid.core.lifecycle.images.adoption.bolt import Bolt, Bucket, read_bolt
from support.bolt import PAGE, Tree, with_stale_meta, write_bolt

TREE: Tree = {
    b"v1": {b"k8s.io": {b"images": {b"name": {b"target": {b"digest": b"d" * 64}}}, b"empty": {}}},
    b"version": b"3",
}


def plain(bucket: Bucket) -> dict[bytes, object]:
    return {key: plain(value) if isinstance(value, Bucket) else value for key, value in bucket.items()}


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("per_leaf", [1, 1000])
def test_all_that_was_written_is_read(inline: bool, per_leaf: int) -> None:
    assert plain(Bolt(write_bolt(TREE, inline=inline, per_leaf=per_leaf), "db").root) == TREE


def test_many_keys_and_a_value_longer_than_a_page() -> None:
    tree: Tree = {
        b"bucket": {b"%04d" % number: b"v" * (number % 300) for number in range(3000)},
        b"long": b"x" * 100_000,
    }
    assert plain(Bolt(write_bolt(tree, inline=False, per_leaf=50), "db").root) == tree


def test_the_newer_meta_page_counts_unless_it_is_torn() -> None:
    content = write_bolt({b"a": b"1"})
    assert Bolt(content, "db").root.get(b"a") == b"1"
    torn = with_stale_meta(content, b"\xff" * PAGE)
    assert Bolt(torn, "db").root.get(b"a") == b"1"
    with pytest.raises(CorruptContent, match="meta pages are damaged"):
        Bolt(bytes(PAGE) + torn[PAGE:], "db")


def test_what_is_not_there_is_none() -> None:
    root = Bolt(write_bolt(TREE), "db").root
    assert root.bucket(b"version") is None  # a value is no bucket
    assert root.get(b"v1") is None
    assert root.get(b"nothing") is None


class TestDamage:
    @pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(3 * PAGE), b"SQLite format 3\0" * 1000])
    def test_no_database(self, content: bytes) -> None:
        with pytest.raises(CorruptContent, match="no bolt database"):
            Bolt(content, "db")

    def test_a_file_that_is_cut_off(self) -> None:
        content = write_bolt(TREE, inline=False)
        with pytest.raises(CorruptContent, match="no page"):
            plain(Bolt(content[: 3 * PAGE], "db").root)

    def test_no_garbage_is_more_than_an_error(self) -> None:
        content = write_bolt(TREE, inline=False, per_leaf=1)
        for place in range(3 * PAGE, len(content), PAGE):
            for offset in range(0, 48, 2):
                start = place + offset
                with contextlib.suppress(CorruptContent):
                    plain(Bolt(content[:start] + b"\xff\xff" + content[start + 2 :], "db").root)

    def test_a_circle_of_pages(self) -> None:
        content = bytearray(write_bolt({b"a": b"1", b"b": b"2"}, per_leaf=1))
        root = len(content) - PAGE
        content[root + 16 + 8 : root + 16 + 16] = (root // PAGE).to_bytes(8, "little")
        with pytest.raises(CorruptContent, match="comes twice"):
            plain(Bolt(bytes(content), "db").root)


class TestFile:
    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="no such file"):
            read_bolt(tmp_path / "meta.db")

    def test_no_regular_file(self, tmp_path: Path) -> None:
        with pytest.raises(CorruptContent, match="not a regular file"):
            read_bolt(tmp_path)

    def test_too_long_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bolt, "MAX_BYTES", PAGE)
        (tmp_path / "meta.db").write_bytes(write_bolt(TREE))
        with pytest.raises(CorruptContent, match="more than"):
            read_bolt(tmp_path / "meta.db")

    def test_a_commit_while_it_is_copied_has_it_copied_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "meta.db"
        path.write_bytes(write_bolt({b"a": b"1"}))
        opened = files.open_regular
        tries: list[object] = []

        def commit(found: Path) -> object:
            file = opened(found)
            if len(tries) < most:
                tries.append(file)
                real = file.readall

                class Raced:
                    def __enter__(self) -> object:
                        return self

                    def __exit__(self, *_: object) -> None:
                        file.close()

                    def readall(self) -> bytes:
                        content = real()
                        path.write_bytes(write_bolt({b"a": b"2"}, transaction=len(tries) + 1))
                        return content

                    def __getattr__(self, name: str) -> object:
                        return getattr(file, name)

                return Raced()
            return file

        monkeypatch.setattr(bolt, "open_regular", commit)
        most = 2
        assert read_bolt(path).root.get(b"a") == b"2"
        assert len(tries) == 2
        most, tries = 1000, []
        with pytest.raises(Unavailable, match="changes all the time"):
            read_bolt(path)
