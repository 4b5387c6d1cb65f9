"""Lists from kept bytes are the same as lists built anew, and keep nothing longer than the list does."""

from crinoid.core.cri.lists import EncodedList
from crinoid.core.cri.wire import api_pb2


class Encoder:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, text: list[str]) -> api_pb2.PodSandbox:
        self.count += 1
        return api_pb2.PodSandbox(id=text[0])


def test_bytes_are_those_of_the_whole_message() -> None:
    records = [["a"], ["b" * 200], ["c" * 20000], [""]]
    whole = api_pb2.ListPodSandboxResponse(items=[api_pb2.PodSandbox(id=text) for (text,) in records])
    assert EncodedList(Encoder()).join(records, full=True) == whole.SerializeToString()
    assert EncodedList(Encoder()).join([], full=True) == b""


def test_the_items_of_every_list_are_in_field_1() -> None:
    for kind in (api_pb2.ListPodSandboxResponse, api_pb2.ListContainersResponse, api_pb2.ListImagesResponse):
        (field,) = kind.DESCRIPTOR.fields
        assert field.number == 1


def test_an_item_is_encoded_once() -> None:
    encoder = Encoder()
    kept, records = EncodedList(encoder), [["a"], ["b"]]
    first = kept.join(records, full=True)
    assert kept.join(records, full=True) == first
    assert kept.join(records[:1], full=False) == first[: len(first) // 2]
    assert encoder.count == 2


def test_a_record_that_changed_is_encoded_anew() -> None:
    kept = EncodedList(Encoder())
    kept.join([["a"]], full=True)
    assert api_pb2.ListPodSandboxResponse.FromString(kept.join([["b"]], full=True)).items[0].id == "b"


def test_only_full_lists_decide_what_is_kept() -> None:
    encoder = Encoder()
    kept, records = EncodedList(encoder), [["a"], ["b"]]
    kept.join(records, full=False)
    kept.join(records, full=True)
    assert encoder.count == 4
    kept.join(records[:1], full=True)
    kept.join(records, full=True)
    assert encoder.count == 5
