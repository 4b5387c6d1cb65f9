"""What ImageStatus says of an image's user is what CreateContainer takes it for: the kubelet decides in between."""

import pytest

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.lifecycle.user_ids import image_user, parse_id


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", (None, "")),
        (":7", (None, "")),
        ("0", (0, "")),
        ("00", (0, "")),
        ("+0", (0, "")),
        ("-0", (0, "")),
        ("0" * 5000, (0, "")),
        ("0:1000", (0, "")),
        ("1000:0", (1000, "")),
        ("01000", (1000, "")),
        ("-1", (-1, "")),
        ("4294967296", (4294967296, "")),
        ("root", (None, "root")),
        ("root:0", (None, "root")),
        ("\uff10", (None, "\uff10")),
        ("\u00b2", (None, "\u00b2")),
        (" 0", (None, " 0")),
        ("0\n", (None, "0\n")),
        ("99999999999999999999", (None, "99999999999999999999")),
    ],
)
def test_what_image_status_says(text: str, said: tuple[int | None, str]) -> None:
    assert image_user(text) == said


@pytest.mark.parametrize("text", ["0", "00", "+0", "1000", "01000", "0" * 4000, "-0", "root", "\uff10", " 0", "0x0"])
def test_what_runs_is_what_was_said(text: str) -> None:
    uid, name = image_user(text)
    assert parse_id(text, "user") == uid
    assert (name != "") == (uid is None)


@pytest.mark.parametrize("text", ["-1", "2147483648", "4294967296", "9" * 18, "9" * 30, "9" * 5000])
def test_what_is_no_id_is_said_to_be_nobody_who_runs(text: str) -> None:
    """As the kubelet would hand it back, it is refused too, and it is neither root nor nothing, which means root."""
    uid, name = image_user(text)
    assert uid != 0
    assert uid is not None or name
    for handed_back in (text, str(uid) if uid is not None else name):
        with pytest.raises(InvalidArgument, match="is no valid id"):
            parse_id(handed_back, "user")


def test_a_name_that_is_none_does_not_fill_the_list_of_images() -> None:
    uid, name = image_user("r" * 8_000_000)
    assert uid is None
    assert len(name) == 257, "longer than a name may be, so that it is refused when it comes back"
