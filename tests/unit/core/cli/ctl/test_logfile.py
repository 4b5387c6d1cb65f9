"""Logs in the CRI's format: joined, cut off at the end, rotated, still being written."""

from pathlib import Path

import pytest

from crinoid.core.api.errors import NotFound
from crinoid.core.cli.ctl.logfile import LogFile, Piece, join_pieces, parse_piece
from crinoid.core.cli.ctl.logs import LogPrinter, Selection

TIME = "2026-01-02T03:04:05.123456789Z"


def line(content: str, stream: str = "stdout", tag: str = "F", time: str = TIME) -> bytes:
    return f"{time} {stream} {tag} {content}\n".encode()


def contents(pieces: list[Piece]) -> list[bytes]:
    return [piece.content for piece in pieces]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "0.log"


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        (line("a b  c "), Piece(TIME, "stdout", b"a b  c ", False)),
        (line("", "stderr", "P"), Piece(TIME, "stderr", b"", True)),
        (line("x", tag="F:extra"), Piece(TIME, "stdout", b"x", False)),
        (f"{TIME} stdout F\n".encode(), Piece(TIME, "stdout", b"", False)),
        (b"garbage\n", None),
        (line("x", stream="stdin"), None),
        (line("x", tag="Q"), None),
        (b"\n", None),
    ],
)
def test_a_line_is_parsed_or_is_none(text: bytes, piece: Piece | None) -> None:
    assert parse_piece(text) == piece


def test_pieces_are_joined_by_stream() -> None:
    pieces = [Piece(TIME, s, c, p) for s, c, p in [("o", b"1", True), ("e", b"2", False), ("o", b"3", False)]]
    assert [contents(joined) for joined in join_pieces(pieces)] == [[b"1", b"3"], [b"2"]]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 900, 5000])
def test_the_last_lines_are_exact_however_long_the_log(path: Path, count: int) -> None:
    data = []
    for number in range(1000):  # each line of two pieces, far more than is read at first
        data += [line(f"{number}" + "x" * 200, tag="P"), line("note", "stderr"), line("end")]
    path.write_bytes(b"".join(data))
    with LogFile(path) as log:
        last = log.read_last(count, "stdout")
        expected = (
            [f"{number}".encode() + b"x" * 200 for number in range(1000)][max(0, 1000 - count) :] if count else []
        )
        assert contents(last)[::2] == expected
        assert contents(last)[1::2] == [b"end"] * len(expected)
        assert list(log.read()) == [], "reading goes on at the end"


def test_a_line_that_is_still_being_written_comes_whole(path: Path) -> None:
    path.write_bytes(line("one") + line("two")[:-3])
    with LogFile(path) as log, path.open("ab") as writer:
        assert contents(list(log.read())) == [b"one"]
        assert list(log.read()) == []
        writer.write(line("two")[-3:])
        writer.flush()
        assert contents(list(log.read())) == [b"two"]


def test_a_rotation_loses_nothing(path: Path) -> None:
    path.write_bytes(line("one"))
    with LogFile(path) as log:
        assert contents(list(log.read())) == [b"one"]
        old = path.rename(path.with_name("0.log.1"))
        with old.open("ab") as writer:
            writer.write(line("two"))
        assert contents(list(log.read())) == [b"two"], "before the new file is there"
        with old.open("ab") as writer:
            writer.write(line("three"))
        path.write_bytes(line("four"))
        assert contents(list(log.read())) == [b"three", b"four"]


def test_a_log_that_was_cut_is_read_from_its_beginning(path: Path) -> None:
    path.write_bytes(line("one") * 3)
    with LogFile(path) as log:
        list(log.read())
        path.write_bytes(line("new"))
        assert contents(list(log.read())) == [b"new"]


def test_a_missing_log_is_told(path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no log .*0\.log"):
        LogFile(path)


PIECES = [
    Piece("2026-01-01T00:00:00Z", "stdout", b"old", False),
    Piece("2026-01-03T00:00:00Z", "stdout", b"half ", True),
    Piece("2026-01-03T00:00:01Z", "stderr", b"error", False),
    Piece("2026-01-03T00:00:02Z", "stdout", b"whole", False),
]


@pytest.mark.parametrize(
    ("selection", "out", "err"),
    [
        (Selection(), "old\nhalf whole\n", "error\n"),
        (Selection(stream="stderr"), "", "error\n"),
        (Selection(since=1_767_300_000), "half whole\n", "error\n"),
        (
            Selection(timestamps=True),
            "2026-01-01T00:00:00Z old\n2026-01-03T00:00:00Z half whole\n",
            "2026-01-03T00:00:01Z error\n",
        ),
        (Selection(limit_bytes=6), "old\nha", ""),
    ],
)
def test_what_is_selected_is_printed(
    selection: Selection, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wants_more = LogPrinter(selection).print(PIECES)
    assert capsys.readouterr() == (out, err)
    assert wants_more is (selection.limit_bytes < 0)
