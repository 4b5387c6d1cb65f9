from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ReadTimelineRequest(_message.Message):
    __slots__ = ("about", "since_ns")
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    SINCE_NS_FIELD_NUMBER: _ClassVar[int]
    about: _containers.RepeatedScalarFieldContainer[str]
    since_ns: int
    def __init__(self, about: _Optional[_Iterable[str]] = ..., since_ns: _Optional[int] = ...) -> None: ...

class ReadTimelineResponse(_message.Message):
    __slots__ = ("acts", "off")
    ACTS_FIELD_NUMBER: _ClassVar[int]
    OFF_FIELD_NUMBER: _ClassVar[int]
    acts: _containers.RepeatedScalarFieldContainer[str]
    off: bool
    def __init__(self, acts: _Optional[_Iterable[str]] = ..., off: bool = ...) -> None: ...

class DryRunPodRequest(_message.Message):
    __slots__ = ("pod", "containers", "runtime_handler", "ask_extensions")
    POD_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_HANDLER_FIELD_NUMBER: _ClassVar[int]
    ASK_EXTENSIONS_FIELD_NUMBER: _ClassVar[int]
    pod: bytes
    containers: _containers.RepeatedScalarFieldContainer[bytes]
    runtime_handler: str
    ask_extensions: bool
    def __init__(self, pod: _Optional[bytes] = ..., containers: _Optional[_Iterable[bytes]] = ..., runtime_handler: _Optional[str] = ..., ask_extensions: bool = ...) -> None: ...

class DryRunPodResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: str
    def __init__(self, plan: _Optional[str] = ...) -> None: ...
