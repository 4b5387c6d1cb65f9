"""An archive is taken apart only into the files that are known, and never beyond the folder meant for them."""

import io
import tarfile
import threading
from pathlib import Path

import pytest

from crinoid.core.api.errors import CorruptContent, CrinoidError, InvalidArgument
from crinoid.core.lifecycle.checkpoint import archive

WHOLE = {"config.dump": b"{}", "spec.dump": b"{}", "checkpoint/inventory.img": b"i", "checkpoint/pages-1.img": b"p"}


def write(path: Path, files: dict[str, bytes], mode: str = "w", *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as made:  # type: ignore[call-overload]  # any mode
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
        for member in members:
            made.addfile(member)
    return path


def unpack(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    archive.unpack(source, folder, threading.Event())
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_packed_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    (folder / "checkpoint").mkdir(parents=True)
    for name, content in (WHOLE | {"rootfs-diff.tar": b"r", "dump.log": b"l"}).items():
        (folder / name).write_bytes(content)
    (folder / "of-somebody-else").touch()
    archive.pack(folder, tmp_path / "packed.tar", threading.Event())
    assert (tmp_path / "packed.tar").stat().st_mode & 0o777 == 0o600
    unpacked = unpack(tmp_path / "packed.tar", tmp_path)
    assert files_in(unpacked) == WHOLE | {"rootfs-diff.tar": b"r", "dump.log": b"l"}
    archive.check_folder(unpacked, "it")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_archives_of_others(tmp_path: Path, mode: str) -> None:
    files = {f"./{name}": content for name, content in WHOLE.items()} | {"status.dump": b"x", "volumes/v.tar": b"x"}
    assert files_in(unpack(write(tmp_path / "a", files, mode), tmp_path)) == WHOLE


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "checkpoint/../../evil", "checkpoint/a/b", "config.dump/x", "checkpoint/..", "x"]
)
def test_names_that_lead_elsewhere_are_passed_over(tmp_path: Path, name: str) -> None:
    folder = unpack(write(tmp_path / "a", WHOLE | {name: b"evil"}), tmp_path)
    assert files_in(folder) == WHOLE
    assert not list(tmp_path.rglob("*evil*"))


def test_links_are_passed_over(tmp_path: Path) -> None:
    link = tarfile.TarInfo("checkpoint/link.img")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("dump.log")
    hard.type, hard.linkname = tarfile.LNKTYPE, "config.dump"
    assert files_in(unpack(write(tmp_path / "a", WHOLE, "w", link, hard), tmp_path)) == WHOLE


def test_one_name_twice(tmp_path: Path) -> None:
    again = tarfile.TarInfo("./config.dump")
    with pytest.raises(CorruptContent, match="twice"):
        unpack(write(tmp_path / "a", WHOLE, "w", again), tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\0" * 512 + b"x" * 10_000])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CorruptContent):
        archive.check_folder(unpack(tmp_path / "a", tmp_path), "it")


def test_an_archive_that_is_cut_short(tmp_path: Path) -> None:
    whole = write(tmp_path / "a", WHOLE | {"rootfs-diff.tar": b"x" * 100_000}).read_bytes()
    (tmp_path / "a").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptContent):
        unpack(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("missing", ["config.dump", "spec.dump", "checkpoint/inventory.img"])
def test_a_part_is_missing(tmp_path: Path, missing: str) -> None:
    rest = {name: content for name, content in WHOLE.items() if name != missing}
    folder = unpack(write(tmp_path / "a", rest), tmp_path)
    with pytest.raises(CorruptContent, match=missing.rpartition("/")[2]):
        archive.check_folder(folder, "it")


def test_links_in_an_image_are_refused(tmp_path: Path) -> None:
    folder = unpack(write(tmp_path / "a", WHOLE), tmp_path)
    (folder / "checkpoint/link.img").symlink_to("/etc/passwd")
    with pytest.raises(CorruptContent, match="link"):
        archive.check_folder(folder, "it")


def test_giving_up(tmp_path: Path) -> None:
    given_up = threading.Event()
    given_up.set()
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(CrinoidError, match="not needed any more"):
        archive.unpack(write(tmp_path / "a", WHOLE), tmp_path / "unpacked", given_up)


def test_documents(tmp_path: Path) -> None:
    (tmp_path / "config.dump").write_text('{"rootfsImageRef": "sha256:1", "future": 1, "name": null}')
    dump = archive.read_dump(archive.ContainerDump, tmp_path / "config.dump", "it")
    assert (dump.image_ref, dump.name) == ("sha256:1", "")
    (tmp_path / "link").symlink_to("config.dump")
    with pytest.raises(InvalidArgument):
        archive.read_dump(archive.ContainerDump, tmp_path / "link", "it")
    (tmp_path / "deleted.files").write_text('{"a": 1}')
    with pytest.raises(CorruptContent, match="no list of paths"):
        archive.read_deleted(tmp_path, "it")
